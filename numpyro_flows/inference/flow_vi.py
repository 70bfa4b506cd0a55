"""Posterior inference by a flow: a NumPyro model in, a certified posterior out."""

import copy
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray
from numpyro.infer.initialization import init_to_uniform

from numpyro_flows import flows
from numpyro_flows.arguments import require_instance, require_key, require_model
from numpyro_flows.bijections import Chain, Identity
from numpyro_flows.bijections.partial import Partial
from numpyro_flows.inference.certificate import Certificate
from numpyro_flows.inference.compiled import compile_flow_stages, compile_starts
from numpyro_flows.inference.gaussian import GaussianFit
from numpyro_flows.inference.host_density import HostDensity
from numpyro_flows.inference.modes import Weighed
from numpyro_flows.inference.posterior import FlowPosterior
from numpyro_flows.inference.rounds import FlowFit, FlowTask, finished, train_flow
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import fit_and_survey, judge
from numpyro_flows.inference.target import Target
from numpyro_flows.modeling.guides import AutoFlow, affine
from numpyro_flows.training.ahead import Ahead
from numpyro_flows.training.clock import Clock
from numpyro_flows.training.seeds import Seed, seed_key, seed_stream

_DEFAULTS = FlowVISettings()


class FlowVI:
    """Variational inference with a normalizing flow, and a verdict on its result by importance sampling.

    A Gaussian is fitted first, from several starts. Where 20,000 fresh draws of it are not good enough, the flow is
    trained around it in rounds of a decaying learning rate, each judged on other fresh draws, until they are certified
    with `target_ess`. Rounds go by the reverse KL, and by the forward KL once the flow is close: it fills the tails
    that decide on k-hat. Modes that the fit lacks are searched for from dispersed starts.

    One default for every model, whose constants `FlowVISettings` has. Used like NumPyro's `MCMC`. The page
    docs/how_a_fit_is_certified.md explains what a verdict means.

    Args:
        model: a NumPyro model with continuous latent sites.
        guide: an `AutoFlow` of the same model, for another flow or other starts; by default of affine couplings with
            tails, or of splines where there is one coordinate only. Its recipe is traced: where it cannot be, as those
            of FlowJAX, make the bijection before and give `lambda key, dim: bijection`.
        settings: every constant of the fit. Four of them have arguments of their own, which count where they are given:
        num_steps: most steps of the flow stage.
        num_particles: draws for each step.
        learning_rate: peak learning rate of Adam.
        target_ess: relative effective sample size, in (0, 1], at which training stops.
        progress_bar: whether to show one.

    Raises:
        TypeError: where `model` cannot be called, `guide` is not an `AutoFlow`, or an argument is no number.
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
        settings: FlowVISettings = _DEFAULTS,
        num_steps: int | None = None,
        num_particles: int | None = None,
        learning_rate: float | None = None,
        target_ess: float | None = None,
        progress_bar: bool = True,
    ):
        require_model(model)
        if not (guide is None or isinstance(guide, AutoFlow)):
            raise TypeError(f"guide expected an AutoFlow or None, got {type(guide).__name__}")
        if guide is not None and guide.model is not model:
            raise ValueError(f"guide expected to be one of {model}, got one of {guide.model}")
        require_instance(FlowVISettings, "FlowVISettings(num_steps=2000)", settings=settings)
        given = {
            "num_steps": num_steps,
            "num_particles": num_particles,
            "learning_rate": learning_rate,
            "target_ess": target_ess,
        }
        self.model = model
        self.guide = guide
        self.settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
        self.progress_bar = progress_bar

    def run(self, rng_key: PRNGKeyArray, *args: Any, **kwargs: Any) -> FlowPosterior:
        """Fit the posterior of the model called with `args` and `kwargs`.

        Ctrl-C ends the fit and returns the best that there is by then; before there is a Gaussian it raises. A result
        that is not certified says so in a `UserWarning`, in `FlowPosterior.why` and first in its `print_summary()`.

        Raises:
            TypeError: where `rng_key` is not one random key.
            ValueError: where the model has no latent site, a discrete one, a `numpyro.param` site without a given
                value, a subsampled plate, a site larger than its plates or data that are not finite, or where its
                density is not finite at any start.
        """
        require_key(rng_key)
        settings = self.settings
        seeds = seed_stream(rng_key)
        rng = np.random.default_rng(next(seeds))
        clock = Clock()
        with clock.stage("tracing"):
            target = Target(self.model, seed_key(next(seeds)), args, kwargs)
            fitted = target.fitted
            guide = self._guide(fitted.dim)
        with _compilers() as pool:
            with clock.stage("tracing"):
                start = compile_starts(pool, fitted, guide.init_loc_fn)
                density = HostDensity(pool, fitted, settings.batch)
            with clock.stage("compilation"):
                start.wait()
                density.wait()
            with clock.stage("gaussian"):
                starts = _starts(start, guide.init_loc_fn, fitted.dim, seeds, rng, settings)
                gaussian, draws, survey = fit_and_survey(density, rng, starts, settings)
                if not np.isfinite(gaussian.elbo):
                    fitted.require_finite(jnp.asarray(starts))
                fit = _gaussian_fit(gaussian, judge(draws, survey, settings), draws)
            if settings.num_steps > 0 and not (survey.interrupted or finished(fit.certificate, settings)):
                try:
                    with clock.stage("tracing"):
                        stages = compile_flow_stages(pool, fitted, guide, gaussian.scale, settings)
                    task = FlowTask(settings, stages, survey, seeds, clock)
                    fit = train_flow(task, gaussian, fit, next(seeds), progress_bar=self.progress_bar)
                except KeyboardInterrupt:
                    fit = _interrupted(fit)
        if target.free.any():
            whole = Partial(fit.bijection, np.flatnonzero(~target.free), target.dim)
            fit = fit._replace(bijection=Chain([whole]), draw=None)
        if not fit.certificate.certified:
            warnings.warn(f"the fit is not certified: {fit.certificate.why}", UserWarning, stacklevel=2)
        return FlowPosterior(
            model=self.model,
            args=args,
            kwargs=kwargs,
            guide=guide,
            target=target,
            bijection=fit.bijection,
            draw=fit.draw,
            certificate=fit.certificate,
            log_weights=fit.log_weights,
            losses=fit.losses,
            seconds=clock.seconds,
            gradient_evaluations={
                "gaussian": density.num_evaluations,
                "flow": fit.losses.size * settings.num_particles,
            },
            num_skipped=fit.num_skipped,
            settings=settings,
        )

    def _guide(self, dim: int) -> AutoFlow:
        if self.guide is not None:
            return copy.copy(self.guide)
        # one coordinate has no other to depend on: affine couplings would be one affine map, splines still bend
        recipe = flows.realnvp if dim > 1 else flows.nsf_coupling
        return AutoFlow(self.model, flows.with_tails(partial(recipe, order="nearby")))


def _starts(
    start: Ahead,
    init_loc_fn: Callable,
    dim: int,
    seeds: Iterator[Seed],
    rng: np.random.Generator,
    settings: FlowVISettings,
) -> Float[np.ndarray, "starts dim"]:
    """Starts of a user's own strategy; by default draws from the prior and uniform ones."""
    by_strategy = np.stack([start(next(seeds)) for _ in range(settings.num_starts)])
    if init_loc_fn is not init_to_uniform:
        return by_strategy
    uniform = rng.uniform(-settings.start_radius, settings.start_radius, (settings.num_starts, dim))
    return np.concatenate([uniform.astype(by_strategy.dtype), by_strategy])


@contextmanager
def _compilers() -> Iterator[Executor]:
    """Threads to compile in; at the end none is waited for whose function nobody needed."""
    pool = ThreadPoolExecutor()
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _interrupted(fit: FlowFit) -> FlowFit:
    certificate = fit.certificate
    if not certificate.certified:
        certificate = certificate._replace(why=f"{certificate.why}; interrupted before the flow was trained")
    return fit._replace(certificate=certificate)


def _gaussian_fit(gaussian: GaussianFit, certificate: Certificate, draws: Weighed) -> FlowFit:
    """The Gaussian as a fit, its flow the identity."""
    bijection = Chain([Identity(gaussian.loc.shape), affine(jnp.asarray(gaussian.loc), jnp.asarray(gaussian.scale))])
    return FlowFit(bijection, certificate, draws.log_weight)
