"""Posterior inference by a flow: a NumPyro model in, a certified posterior out."""

import copy
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from numpyro_flows import flows
from numpyro_flows.gaussian import gradient_evaluations
from numpyro_flows.guides import AutoFlow
from numpyro_flows.posterior import FlowPosterior
from numpyro_flows.sampling import Certificate, certify
from numpyro_flows.stages import CHUNK, NUM_STARTS, Seed, Seeds, Stages, compile_stages, seed_key, seed_stream, split
from numpyro_flows.target import Target
from numpyro_flows.training import TrainState, cosine_schedule

_FIRST_ROUND, _LONGEST_ROUND = 300, 2400  # steps; each round has twice as many as the one before
_FORWARD_ESS = 0.5  # from here on the weights are good enough to train by
_CHECK_BLOCKS = 10  # blocks of draws of a check and of the certificate: 10,000 draws


class FlowVI:
    """Variational inference with a normalizing flow, and a verdict on its result by importance sampling.

    A Gaussian is fitted first, from several starts; where its draws are not good enough, the flow is trained around it
    in rounds of a decaying learning rate until fresh draws are certified and reach `target_ess`; then 10,000 others
    give the verdict. Rounds go by the reverse KL, and by the forward KL once the flow is close: it fills the tails
    that decide on k-hat. One default for every model; used like NumPyro's `MCMC`.

    Args:
        model: a NumPyro model with continuous latent sites.
        guide: an `AutoFlow` of the same model, for another flow or other starts; by default of affine couplings, or of
            splines where there is one coordinate only. Its recipe is traced: where it cannot be, as those of FlowJAX,
            make the bijection before and give `lambda key, dim: bijection`.
        num_steps: most steps of the flow stage.
        num_particles: draws for each step.
        learning_rate: peak learning rate of Adam.
        target_ess: relative effective sample size, in (0, 1], at which training stops.
        progress_bar: whether to show one.

    Raises:
        TypeError: where `guide` is not an `AutoFlow`.
        ValueError: for a guide of another model, and numbers out of their range.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro_flows import FlowVI
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0), jax.numpy.array([1.0, 2.0, 3.0]))
        >>> posterior.certified
        True
        >>> posterior.sample(jax.random.key(1), 100)["mu"].shape
        (100,)
    """

    def __init__(
        self,
        model: Callable,
        guide: AutoFlow | None = None,
        *,
        num_steps: int = 10_000,
        num_particles: int = 256,
        learning_rate: float = 1e-2,
        target_ess: float = 0.95,
        progress_bar: bool = True,
    ):
        if not (guide is None or isinstance(guide, AutoFlow)):
            raise TypeError(f"guide expected an AutoFlow or None, got {type(guide).__name__}")
        if guide is not None and guide.model is not model:
            raise ValueError(f"guide expected to be one of {model}, got one of {guide.model}")
        if num_steps < 0 or num_particles < 1:
            raise ValueError(f"expected num_steps >= 0 and num_particles >= 1, got {num_steps} and {num_particles}")
        if not (learning_rate > 0 and 0 < target_ess <= 1):
            raise ValueError(
                f"expected learning_rate > 0 and target_ess in (0, 1], got {learning_rate} and {target_ess}"
            )
        self.model = model
        self.guide = guide
        self.num_steps = num_steps
        self.num_particles = num_particles
        self.learning_rate = learning_rate
        self.target_ess = target_ess
        self.progress_bar = progress_bar

    def run(self, rng_key: PRNGKeyArray, *args: Any, **kwargs: Any) -> FlowPosterior:
        """Fit the posterior of the model called with `args` and `kwargs`.

        Ctrl-C ends the training and returns what was fitted by then. A result that is not certified says so in a
        `UserWarning`, in `FlowPosterior.why` and first in its `print_summary()`.

        Raises:
            ValueError: where the model has no latent site, a discrete one, a subsampled plate or NaN in its data, or
                where its density is not finite at any start.
        """
        fresh_seeds = seed_stream(rng_key)
        clock = _Clock()
        with clock.stage("compilation"):
            target = Target(self.model, seed_key(next(fresh_seeds)), args, kwargs)
            # one coordinate has no other to depend on: affine couplings would be one affine map, splines still bend
            default = flows.realnvp if target.dim > 1 else flows.nsf_coupling
            guide = AutoFlow(self.model, default) if self.guide is None else copy.copy(self.guide)
            stages = compile_stages(target, guide, self.num_particles)
            stages.gaussian.wait()
        with clock.stage("gaussian"):
            gaussian, starts, arrays = jax.block_until_ready(stages.gaussian(_take(fresh_seeds, 3)))
            if not np.isfinite(gaussian.elbo):
                target.require_finite(starts)
        fit = _Fit(self, stages, arrays, fresh_seeds, clock)
        fit.run()
        if not fit.certificate.certified:
            warnings.warn(f"the fit is not certified: {fit.certificate.why}", UserWarning, stacklevel=2)
        return FlowPosterior(
            model=self.model,
            args=args,
            kwargs=kwargs,
            guide=guide,
            target=target,
            bijection=eqx.combine(fit.arrays, stages.static),
            draw=stages.draw,
            constrain=stages.constrain,
            certificate=fit.certificate,
            log_weights=fit.log_weights,
            losses=np.concatenate([np.zeros(0), *fit.losses]),
            seconds=clock.seconds,
            gradient_evaluations={
                "gaussian": gradient_evaluations(NUM_STARTS, target.dim),
                "flow": fit.num_steps * self.num_particles,
            },
            num_skipped=fit.num_skipped,
        )


class _Fit:
    """The flow stage of one run, and its verdict."""

    certificate: Certificate
    log_weights: np.ndarray

    def __init__(self, settings: FlowVI, stages: Stages, arrays: PyTree, fresh_seeds: Iterator[Seed], clock: "_Clock"):
        self.settings = settings
        self.stages = stages
        self.arrays = arrays  # the best so far
        self.fresh_seeds = fresh_seeds
        self.check_seeds = _take(fresh_seeds, _CHECK_BLOCKS)
        self.clock = clock
        self.losses: list[np.ndarray] = []
        self.num_steps = 0
        self.num_skipped = 0
        self.stopped = ""  # what ended the training before its time, in words
        self.progress = tqdm(
            total=settings.num_steps, desc="flow stage", unit="step", disable=not settings.progress_bar
        )

    def run(self) -> None:
        with self.progress:
            try:
                confirmed = self._improve()
            except KeyboardInterrupt:
                confirmed, self.stopped = False, "interrupted"
            if not confirmed:
                self._certify()
        if not self.certificate.certified:
            why = f"{self.certificate.why}, after {self.num_steps} steps of training"
            why += f" ({self.num_skipped} skipped as not finite)" if self.num_skipped else ""
            why += f"; training was {self.stopped}" if self.stopped else ""
            self.certificate = self.certificate._replace(why=why)

    def _improve(self) -> bool:
        """Rounds of training until a check is passed and a certificate on other draws too, or the steps are used up.

        All checks use the same draws, which makes them comparable; a round that ends worse than it began is undone.
        """
        check, _ = self._judge(self.arrays, self.check_seeds)
        peak, num_steps = self.settings.learning_rate, _FIRST_ROUND
        while not (self._passes(check) and self._certify()):
            left = self.settings.num_steps - self.num_steps
            if left == 0 or self.stopped:
                return False
            forward = check.ess >= _FORWARD_ESS
            arrays = self._round(min(num_steps, left), peak / 2 if forward else peak, float(forward))
            new_check, _ = self._judge(arrays, self.check_seeds)
            if np.isnan(check.elbo) or new_check.elbo > check.elbo or new_check.ess > check.ess:
                self.arrays, check = arrays, new_check
            else:
                peak /= 2
            num_steps = min(2 * num_steps, _LONGEST_ROUND)
        return True

    def _round(self, num_steps: int, peak: float, forward: float) -> PyTree:
        """Train for `num_steps` steps from the best arrays so far, and return the new ones."""
        params, fixed = split(self.arrays)
        with self.clock.stage("compilation"):
            self.stages.train.wait()
        with self.clock.stage("flow"):
            state = TrainState.init(params)
            num_chunks = -(-num_steps // CHUNK)
            # the steps that fill up the last chunk have learning rate 0
            rates = np.pad(cosine_schedule(num_steps, peak), (0, num_chunks * CHUNK - num_steps))
            rates = rates.astype(jnp.result_type(float))
            try:
                for rates_of_chunk in rates.reshape(num_chunks, CHUNK):
                    state, losses, skipped = jax.block_until_ready(
                        self.stages.train(
                            state, fixed, _take(self.fresh_seeds, CHUNK), rates_of_chunk, rates.dtype.type(forward)
                        )
                    )
                    taken = min(CHUNK, num_steps)
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

    def _passes(self, check: Certificate) -> bool:
        return check.certified and check.ess >= self.settings.target_ess

    def _certify(self) -> bool:
        """Judge the best arrays on fresh draws."""
        self.certificate, self.log_weights = self._judge(self.arrays, _take(self.fresh_seeds, _CHECK_BLOCKS))
        return self.certificate.certified

    def _judge(self, arrays: PyTree, block_seeds: Seeds) -> tuple[Certificate, np.ndarray]:
        with self.clock.stage("compilation"):
            self.stages.draw.wait()
        with self.clock.stage("certificate"):
            blocks = [self.stages.draw(arrays, seed) for seed in block_seeds]
            log_weights = np.concatenate([np.asarray(block.log_weight, np.float64) for block in blocks])
            log_density = np.concatenate([np.asarray(block.log_density) for block in blocks])
            finite = np.abs(log_density[np.isfinite(log_density)])
            resolution = float(np.spacing(finite.max())) if finite.size else 0.0
            certificate = certify(log_weights, resolution)
        self.ess = f"{certificate.ess:.1%}"
        return certificate, log_weights


def _take(fresh_seeds: Iterator[Seed], num: int) -> Seeds:
    return np.stack(list(itertools.islice(fresh_seeds, num)))


class _Clock:
    """Wall time by stage."""

    def __init__(self) -> None:
        self.seconds = {"compilation": 0.0, "gaussian": 0.0, "flow": 0.0, "certificate": 0.0}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
