"""All stages of a fit, one after the other; each is logged."""

import logging
import time
from collections.abc import Sequence

from numpyro_flows.arguments import described
from numpyro_flows.inference.fallback import Fallback
from numpyro_flows.inference.flow_training import FlowTraining, explained
from numpyro_flows.inference.mixture_training import MixtureTraining
from numpyro_flows.inference.rounds import finished
from numpyro_flows.inference.stages import Context, Fit, Stage
from numpyro_flows.training.reasons import INTERRUPTED, Reason

_LOG = logging.getLogger("numpyro_flows")
_COUNTED = (MixtureTraining, "mixture"), (FlowTraining, "flow"), (Fallback, "fallback")


def run_stages(stages: Sequence[Stage], context: Context) -> Fit:
    """The fit by all stages. A stage that changes the fit is logged at level INFO: its name, seconds and figures.

    Ctrl-C returns the fit so far, and raises if nothing was fitted yet.
    """
    fit = Fit.before(context.target.dim)
    for stage in stages:
        context.density.counted_for = next((name for kind, name in _COUNTED if isinstance(stage, kind)), "gaussian")
        start = time.perf_counter()
        try:
            staged = stage(context, fit)
        except KeyboardInterrupt:
            if not fit.judged:
                raise
            _LOG.info("%s: interrupted after %.1f s", _name(stage), time.perf_counter() - start)
            if not isinstance(stage, Fallback):
                return explained(fit, INTERRUPTED)
            why = f"{fit.certificate.why}; the fallback was interrupted" if fit.certificate.why else ""
            certificate = fit.certificate._replace(why=why)
            return fit._replace(certificate=certificate, reason=Reason.INTERRUPTED)
        if not isinstance(staged, Fit):
            raise TypeError(f"the stage {stage!r} expected to return a Fit, got {described(staged)}")
        if staged is not fit:
            verdict = "certified" if staged.certificate.certified else "not certified"
            figures = staged.certificate.figures()[0]
            _LOG.info("%s: %.1f s, %s, %s", _name(stage), time.perf_counter() - start, verdict, figures)
        fit = staged
    if fit.reason is None and finished(fit.certificate, context.settings):
        fit = fit._replace(reason=Reason.GOOD_ENOUGH)
    return fit


def _name(stage: Stage) -> str:
    return getattr(stage, "__name__", type(stage).__name__)
