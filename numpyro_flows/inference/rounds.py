"""Rounds of the flow stage: the choice of the next round, and when fresh draws are good enough."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float, PyTree

from numpyro_flows.bijections.compose import trained_and_fixed
from numpyro_flows.continuous.training_form import with_more_steps
from numpyro_flows.inference.certificate import Certificate
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.training.loop import Round
from numpyro_flows.training.reasons import Ending, Reason
from numpyro_flows.training.state import State
from numpyro_flows.training.steps import TrainState, cosine_schedule


class Judged(NamedTuple):
    """A verdict on arrays of the flow, by weights of fresh draws; `coarse`: whether training's solver is too coarse."""

    certificate: Certificate
    log_weights: Float[np.ndarray, " draws"]
    coarse: bool = False


class Best(NamedTuple):
    """The arrays from which the next round begins, and their verdict.

    `trained` is False until a round is better than the Gaussian: then the arrays are untrained and the verdict is the
    Gaussian's.
    """

    arrays: PyTree
    judged: Judged
    trained: bool = False


class Plan(NamedTuple):
    """Peak rate and length of the next round; `ending` names a reason to end the training whatever the ESS."""

    peak: float
    num_steps: int
    ending: str = ""


_ENDINGS = {
    "NOT_FINITE": Ending(Reason.NOT_FINITE, "stopped because the density is not finite where the flow has draws"),
    "LITTLE_GAIN": Ending(Reason.LITTLE_GAIN, "stopped because it gained little"),
}


@dataclass(frozen=True)
class UntilCertified:
    """Rounds of increasing length, until a verdict is good enough.

    They minimise the reverse KL and, once the weights are good enough, mainly the forward KL. A round that ends worse
    than it began is undone, and the next one has half the learning rate.
    """

    settings: FlowVISettings
    begin: Callable[[PyTree], TrainState]

    def init(self) -> Plan:
        return Plan(float(self.settings.learning_rate), self.settings.first_round)

    def next(self, state: State) -> Round | Ending:
        settings, plan, best = self.settings, state.plan, state.best.judged.certificate
        if finished(best, settings):
            return Ending(Reason.GOOD_ENOUGH, "")
        if plan.ending:
            return _ENDINGS[plan.ending]
        left = settings.num_steps - state.step
        if left == 0:
            return Ending(Reason.BUDGET, f"stopped by its budget of {settings.num_steps} steps")
        forward = best.ess >= settings.forward_ess
        rate = plan.peak * (settings.forward_rate if forward else 1.0)
        return Round(cosine_schedule(min(plan.num_steps, left), rate), settings.forward_share * forward)

    def update(self, state: State, score: Judged) -> State:
        settings, plan = self.settings, state.plan
        best, new = state.best.judged.certificate, score.certificate
        num_steps = min(plan.num_steps, settings.num_steps - state.step)
        ending = ""
        if np.isnan(new.elbo) and np.isnan(best.elbo):
            ending = Reason.NOT_FINITE.name
        elif _safe(new, settings) and new.elbo < best.elbo + settings.least_gain * num_steps / 1000:
            ending = Reason.LITTLE_GAIN.name
        better = new.elbo > best.elbo or new.ess > best.ess or (new.certified and not best.certified)
        peak = plan.peak
        if better or np.isnan(best.elbo):
            state = state._replace(best=Best(eqx.combine(state.train.params, state.fixed), score, trained=True))
        else:
            peak /= 2
        # the optimiser's moments restart in each round
        params, _ = trained_and_fixed(state.best.arrays)
        fixed = with_more_steps(state.fixed) if score.coarse else state.fixed
        longer = min(settings.round_growth * num_steps, settings.longest_round)
        return state._replace(train=self.begin(params), fixed=fixed, plan=Plan(peak, longer, ending))


def finished(certificate: Certificate, settings: FlowVISettings) -> bool:
    """Whether more training is of no use: the weights are good, whether or not the fit lacks a mode."""
    return certificate.ess >= settings.target_ess and _safe(certificate, settings)


def _safe(certificate: Certificate, settings: FlowVISettings) -> bool:
    """Whether weights would probably be certified on other draws, too."""
    comfortable = certificate.ess >= settings.min_ess and certificate.khat < settings.target_khat
    return comfortable or certificate.ess >= settings.sufficient_ess
