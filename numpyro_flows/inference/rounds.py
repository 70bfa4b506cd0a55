"""The flow stage: rounds of training around a Gaussian until fresh draws are good enough."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float, PyTree
from tqdm.auto import tqdm

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.bijections.compose import trained_and_fixed
from numpyro_flows.bijections.noise import estimates
from numpyro_flows.continuous.training_form import with_more_steps
from numpyro_flows.inference.certificate import Certificate, Draws
from numpyro_flows.inference.compiled import FlowStages
from numpyro_flows.inference.gaussian import GaussianFit
from numpyro_flows.inference.modes import weigh
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import Survey, judge
from numpyro_flows.training.ahead import Ahead
from numpyro_flows.training.clock import Clock
from numpyro_flows.training.loop import Round, State, run
from numpyro_flows.training.reasons import INTERRUPTED, Ending, Reason
from numpyro_flows.training.seeds import Seed
from numpyro_flows.training.steps import TrainState, cosine_schedule


class FlowFit(NamedTuple):
    """A bijection from `N(0, I)`, the verdict on it, and how it was trained: `draw` is its compiled sampler."""

    bijection: AbstractBijection
    certificate: Certificate
    log_weights: Float[np.ndarray, " draws"]
    losses: Float[np.ndarray, " steps"] = np.zeros(0)
    num_skipped: int = 0
    draw: Ahead | None = None


class Judged(NamedTuple):
    """A verdict on arrays of the flow, by weights of fresh draws; `coarse`: whether training solves too coarsely."""

    certificate: Certificate
    log_weights: Float[np.ndarray, " draws"]
    coarse: bool = False


class Best(NamedTuple):
    """The arrays that the next round begins from, and their verdict.

    Before a round was better than the Gaussian, which `trained` says, the arrays are untrained and the verdict is its.
    """

    arrays: PyTree
    judged: Judged
    trained: bool = False


class Plan(NamedTuple):
    """Peak of the learning rate and length of the next round, and what ends the training whatever its ESS."""

    peak: float
    num_steps: int
    ending: Ending | None = None


@dataclass(frozen=True)
class UntilCertified:
    """Rounds that grow, until a verdict is good enough.

    They go by the reverse KL, and by the forward KL once the weights are good enough for it. A round that ends worse
    than it began is undone, and the next one goes at half the rate.
    """

    settings: FlowVISettings

    def init(self) -> Plan:
        return Plan(self.settings.learning_rate, self.settings.first_round)

    def next(self, state: State) -> Round | Ending:
        settings, plan, best = self.settings, state.plan, state.best.judged.certificate
        if finished(best, settings):
            return Ending(Reason.GOOD_ENOUGH, "")
        if plan.ending is not None:
            return plan.ending
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
        ending = None
        if np.isnan(new.elbo) and np.isnan(best.elbo):
            ending = Ending(Reason.NOT_FINITE, "stopped because the density is not finite where the flow has draws")
        elif _safe(new, settings) and new.elbo < best.elbo + settings.least_gain * num_steps / 1000:
            ending = Ending(Reason.LITTLE_GAIN, "stopped because it gained little")
        better = new.elbo > best.elbo or new.ess > best.ess or (new.certified and not best.certified)
        peak = plan.peak
        if better or np.isnan(best.elbo):
            state = state._replace(best=Best(eqx.combine(state.train.params, state.fixed), score, trained=True))
        else:
            peak /= 2
        # moments begin anew with each round
        params, _ = trained_and_fixed(state.best.arrays)
        fixed = with_more_steps(state.fixed) if score.coarse else state.fixed
        longer = min(settings.round_growth * num_steps, settings.longest_round)
        return state._replace(train=TrainState.init(params), fixed=fixed, plan=Plan(peak, longer, ending))


class FlowTask:
    """The compiled functions of the flow stage: steps of `stages.train`, and verdicts on draws of `stages.draw`."""

    def __init__(
        self, settings: FlowVISettings, stages: FlowStages, survey: Survey, seeds: Iterator[Seed], clock: Clock
    ):
        self.settings = settings
        self.chunk = settings.chunk
        self.stages = stages
        self.survey = survey
        self.seeds = seeds
        self.clock = clock

    def train(self, state: State, planned: Round, rates: np.ndarray) -> tuple[TrainState, np.ndarray, int]:
        with self.clock.stage("compilation"):
            self.stages.train.wait()
        with self.clock.stage("flow"):
            seeds = np.stack(list(itertools.islice(self.seeds, self.chunk)))
            return self.stages.train(state.train, state.fixed, seeds, rates, rates.dtype.type(planned.forward))

    def score(self, state: State) -> Judged:
        arrays = eqx.combine(state.train.params, state.fixed)
        with self.clock.stage("compilation"):
            self.stages.draw.wait()
        with self.clock.stage("certificate"):
            seeds = itertools.islice(self.seeds, -(-self.settings.certificate_draws // self.settings.block))
            draws = weigh((Draws(*self.stages.draw(arrays, seed)) for seed in seeds), self.survey.modes)
            certificate = judge(draws, self.survey, self.settings)
        if estimated := estimates(self.stages.static):
            why = f"log densities are random estimates, by {', '.join(estimated)}, and weights must not be"
            certificate = certificate._replace(
                certified=False, why="; ".join([why, certificate.why] if certificate.why else [why])
            )
        return Judged(certificate, np.asarray(draws.log_weight, np.float64), self._solves_too_coarsely(arrays))

    def shown(self, state: State) -> dict[str, str]:
        shown = {"ESS": f"{state.best.judged.certificate.ess:.1%}"}
        if not state.losses:
            return shown
        finite = state.losses[-1][np.isfinite(state.losses[-1])]
        return shown | {"loss": f"{finite.mean():.3f}" if finite.size else "not finite"}

    def _solves_too_coarsely(self, arrays: PyTree) -> bool:
        """Whether a continuous flow as training solves it has another ELBO than by its own solver."""
        if self.stages.draw_coarsely is None:
            return False
        seed = next(self.seeds)
        _, _, coarse = self.stages.draw_coarsely(arrays, seed)
        _, _, own = self.stages.draw(arrays, seed)
        apart = np.abs(np.mean(np.asarray(coarse, np.float64) - np.asarray(own, np.float64)))
        return not apart <= self.settings.solver_gap  # nor where it is NaN


def train_flow(task: FlowTask, gaussian: GaussianFit, start: FlowFit, seed: Seed, *, progress_bar: bool) -> FlowFit:
    """The flow around a Gaussian, trained until a verdict on it is good enough, or what comes nearest to that.

    `start` is the fit before: the Gaussian, around which the flow is the identity. Ctrl-C ends the training with a
    verdict on what was trained by then; a second one gives back the best of those judged before.
    """
    settings, policy = task.settings, UntilCertified(task.settings)
    try:
        with task.clock.stage("compilation"):
            task.stages.make.wait()
        arrays = task.stages.make(gaussian.loc, gaussian.scale, seed)
    except KeyboardInterrupt:
        return _explained(start, INTERRUPTED)
    params, fixed = trained_and_fixed(arrays)
    best = Best(arrays, Judged(start.certificate, start.log_weights))
    progress = tqdm(total=settings.num_steps, desc="flow stage", unit="step", disable=not progress_bar)
    state, ending = run(task, policy, State(TrainState.init(params), fixed, best, policy.init()), progress)
    fit, best = start, state.best
    if best.trained:
        bijection = eqx.combine(best.arrays, task.stages.static)
        fit = FlowFit(bijection, best.judged.certificate, best.judged.log_weights, draw=task.stages.draw)
    losses = np.concatenate([np.zeros(0), *state.losses])
    return _explained(fit._replace(losses=losses, num_skipped=state.num_skipped), ending)


def _explained(fit: FlowFit, ending: Ending) -> FlowFit:
    certificate = fit.certificate
    if certificate.certified:
        return fit
    why = f"{certificate.why}, after {fit.losses.size} steps of training"
    why += f" ({fit.num_skipped} skipped as not finite)" if fit.num_skipped else ""
    why += f"; training was {ending.why}" if ending.why else ""
    return fit._replace(certificate=certificate._replace(why=why))


def finished(certificate: Certificate, settings: FlowVISettings) -> bool:
    """Whether more training is of no use: by its weights the fit is good, be it that it lacks a mode or not."""
    return certificate.ess >= settings.target_ess and _safe(certificate, settings)


def _safe(certificate: Certificate, settings: FlowVISettings) -> bool:
    """Whether weights would be certified again on other draws, too."""
    comfortable = certificate.ess >= settings.min_ess and certificate.khat < settings.target_khat
    return comfortable or certificate.ess >= settings.sufficient_ess
