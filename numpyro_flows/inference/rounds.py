"""The flow stage: rounds of training around a Gaussian until fresh draws are good enough."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
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


class FlowStage:
    """One training of a flow."""

    def __init__(
        self,
        settings: FlowVISettings,
        stages: FlowStages,
        survey: Survey,
        seeds: Iterator[Seed],
        clock: Clock,
        progress_bar: bool,
    ):
        self.settings = settings
        self.stages = stages
        self.survey = survey
        self.seeds = seeds
        self.clock = clock
        self.losses: list[np.ndarray] = []
        self.num_steps = 0
        self.num_skipped = 0
        self.stopped = ""  # what ended the training before its time, in words
        self.progress = tqdm(total=settings.num_steps, desc="flow stage", unit="step", disable=not progress_bar)

    def run(self, gaussian: GaussianFit, start: FlowFit, seed: Seed) -> FlowFit:
        """Rounds of training, each judged on fresh draws, until one passes or the steps are used up.

        `start` is the fit before: the Gaussian, around which the flow is the identity.

        Rounds go by the reverse KL, and by the forward KL once the weights are good enough for it. A round that ends
        worse than it began is undone, and the next one goes at half the rate. Ctrl-C ends the training with a
        verdict on what was trained by then; a second one gives back the best of those judged before.
        """
        self._best = start
        with self.progress:
            try:
                self._rounds(gaussian, seed)
            except KeyboardInterrupt:
                self.stopped = "interrupted"
        return self._best._replace(
            certificate=self._explain(self._best.certificate),
            losses=np.concatenate([np.zeros(0), *self.losses]),
            num_skipped=self.num_skipped,
        )

    def _rounds(self, gaussian: GaussianFit, seed: Seed) -> None:
        settings = self.settings
        with self.clock.stage("compilation"):
            self.stages.make.wait()
        arrays = self.stages.make(gaussian.loc, gaussian.scale, seed)
        best = self._best.certificate
        self.ess = f"{best.ess:.1%}"
        peak, num_steps = settings.learning_rate, settings.first_round
        while not (finished(best, settings) or self.stopped):
            left = settings.num_steps - self.num_steps
            if left == 0:
                self.stopped = f"stopped by its budget of {settings.num_steps} steps"
                break
            forward = best.ess >= settings.forward_ess
            rate = peak * (settings.forward_rate if forward else 1.0)
            num_steps = min(num_steps, left)
            new_arrays = self._round(arrays, num_steps, rate, forward)
            try:
                new, log_weights = self._judge(new_arrays)
            except KeyboardInterrupt:
                self.stopped = "interrupted"
                new, log_weights = self._judge(new_arrays)  # so that what was trained is not lost
            if np.isnan(new.elbo) and np.isnan(best.elbo):
                self.stopped = self.stopped or "stopped because the density is not finite where the flow has draws"
            if _safe(new, settings) and new.elbo < best.elbo + settings.least_gain * num_steps / 1000:
                self.stopped = self.stopped or "stopped because it gained little"
            better = new.elbo > best.elbo or new.ess > best.ess or (new.certified and not best.certified)
            if better or np.isnan(best.elbo):
                arrays, best = new_arrays, new
                bijection = eqx.combine(arrays, self.stages.static)
                self._best = FlowFit(bijection, best, log_weights, draw=self.stages.draw)
            else:
                peak /= 2
            if self._solver_is_too_coarse(new_arrays):
                arrays = with_more_steps(arrays)
            num_steps = min(settings.round_growth * num_steps, settings.longest_round)

    def _explain(self, certificate: Certificate) -> Certificate:
        if certificate.certified:
            return certificate
        why = f"{certificate.why}, after {self.num_steps} steps of training"
        why += f" ({self.num_skipped} skipped as not finite)" if self.num_skipped else ""
        why += f"; training was {self.stopped}" if self.stopped else ""
        return certificate._replace(why=why)

    def _round(self, arrays: PyTree, num_steps: int, peak: float, forward: bool) -> PyTree:
        """Train for `num_steps` steps from `arrays`, and return the new ones."""
        params, fixed = trained_and_fixed(arrays)
        chunk = self.settings.chunk
        with self.clock.stage("compilation"):
            self.stages.train.wait()
        with self.clock.stage("flow"):
            state = TrainState.init(params)
            num_chunks = -(-num_steps // chunk)
            # the steps that fill up the last chunk have learning rate 0
            rates = np.pad(cosine_schedule(num_steps, peak), (0, num_chunks * chunk - num_steps))
            rates = rates.astype(jnp.result_type(float))
            try:
                for rates_of_chunk in rates.reshape(num_chunks, chunk):
                    seeds = np.stack(list(itertools.islice(self.seeds, chunk)))
                    state, losses, skipped = jax.block_until_ready(
                        self.stages.train(
                            state, fixed, seeds, rates_of_chunk, rates.dtype.type(self.settings.forward_share * forward)
                        )
                    )
                    taken = min(chunk, num_steps)
                    num_steps -= taken
                    self.num_steps += taken
                    self.num_skipped += int(skipped)
                    self.losses.append(np.asarray(losses[:taken]))
                    self.progress.update(taken)
                    finite = self.losses[-1][np.isfinite(self.losses[-1])]
                    loss = f"{finite.mean():.3f}" if finite.size else "not finite"
                    self.progress.set_postfix(loss=loss, ESS=self.ess)
            except KeyboardInterrupt:
                self.stopped = "interrupted"
            except jax.errors.JaxRuntimeError as error:
                self.stopped = f"stopped by an error: {error}"
        return eqx.combine(state.params, fixed)

    def _judge(self, arrays: PyTree) -> tuple[Certificate, np.ndarray]:
        with self.clock.stage("compilation"):
            self.stages.draw.wait()
        with self.clock.stage("certificate"):
            seeds = itertools.islice(self.seeds, -(-self.settings.certificate_draws // self.settings.block))
            draws = weigh((Draws(*self.stages.draw(arrays, seed)) for seed in seeds), self.survey.modes)
            certificate = judge(draws, self.survey, self.settings)
        self.ess = f"{certificate.ess:.1%}"
        if estimated := estimates(self.stages.static):
            why = f"log densities are random estimates, by {', '.join(estimated)}, and weights must not be"
            certificate = certificate._replace(
                certified=False, why="; ".join([why, certificate.why] if certificate.why else [why])
            )
        return certificate, np.asarray(draws.log_weight, np.float64)

    def _solver_is_too_coarse(self, arrays: PyTree) -> bool:
        """Whether a continuous flow as training solves it has another ELBO than by its own solver."""
        if self.stages.draw_coarsely is None:
            return False
        seed = next(self.seeds)
        _, _, coarse = self.stages.draw_coarsely(arrays, seed)
        _, _, own = self.stages.draw(arrays, seed)
        apart = np.abs(np.mean(np.asarray(coarse, np.float64) - np.asarray(own, np.float64)))
        return not apart <= self.settings.solver_gap  # nor where it is NaN


def finished(certificate: Certificate, settings: FlowVISettings) -> bool:
    """Whether more training is of no use: by its weights the fit is good, be it that it lacks a mode or not."""
    return certificate.ess >= settings.target_ess and _safe(certificate, settings)


def _safe(certificate: Certificate, settings: FlowVISettings) -> bool:
    """Whether weights would be certified again on other draws, too."""
    comfortable = certificate.ess >= settings.min_ess and certificate.khat < settings.target_khat
    return comfortable or certificate.ess >= settings.sufficient_ess
