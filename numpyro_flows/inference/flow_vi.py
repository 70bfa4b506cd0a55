"""Posterior inference by a flow: a NumPyro model in, a certified posterior out."""

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from numpyro_flows import flows
from numpyro_flows.arguments import (
    require_callable,
    require_choice,
    require_instance,
    require_key,
    require_model,
)
from numpyro_flows.bijections import Chain
from numpyro_flows.bijections.partial import Partial
from numpyro_flows.inference.background import BackgroundFit, not_certified
from numpyro_flows.inference.density_cost import Cost
from numpyro_flows.inference.fallback import Fallback
from numpyro_flows.inference.flow_training import FlowTraining
from numpyro_flows.inference.host_density import HostDensity, HostPrior
from numpyro_flows.inference.many import InAxes, ManyFits, run_many
from numpyro_flows.inference.mixture_training import MixtureTraining
from numpyro_flows.inference.model_arguments import copied
from numpyro_flows.inference.posterior import FlowPosterior
from numpyro_flows.inference.run_stages import run_stages
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.several import SeveralFits, run_several
from numpyro_flows.inference.stages import Context, Stage
from numpyro_flows.inference.start import GaussianStart
from numpyro_flows.inference.target import Target
from numpyro_flows.modeling.angles import with_angles_on_line
from numpyro_flows.modeling.guides import AutoFlow
from numpyro_flows.training.ahead import compilers
from numpyro_flows.training.clock import Clock
from numpyro_flows.training.devices import Devices, automatically_sharded, mesh_of, on_one_device
from numpyro_flows.training.one_thread import one_thread
from numpyro_flows.training.reasons import Reason
from numpyro_flows.training.seeds import Seeds
from numpyro_flows.training.watch import Callback, Watch

_DEFAULTS = FlowVISettings()


class FlowVI:
    """Variational inference with a normalizing flow, and a verdict on its result by importance sampling.

    FlowVI tries three approximations and stops at the first that passes its checks:

    1. A Gaussian, fitted from several starts and checked by up to 20,000 fresh draws.
    2. A mixture of simple distributions, which takes about a second.
    3. The flow, trained around the Gaussian in rounds with a decaying learning rate. Fresh draws check each round, and
       training ends when the fit is certified with `target_ess`. The rounds minimise the reverse KL; once the flow is
       close, they mainly minimise the forward KL, which fills the tails that determine k-hat.

    FlowVI also searches for missed modes, necks and heavy tails at points that the fit did not choose.

    The same defaults (`FlowVISettings`) serve every model. `run` is used like that of NumPyro's `MCMC`. The page
    docs/how_a_fit_is_certified.md explains how to read a verdict.

    Args:
        model: a NumPyro model with continuous latent sites.
        guide: an `AutoFlow` of the same model, to choose another flow or other starts. FlowVI then tries no mixture
            before the flow. The default flow has affine couplings with tails, or splines if the model has only one
            coordinate. FlowVI traces the guide's recipe. FlowJAX's recipes cannot be traced: make the bijection first
            and pass `lambda key, dim: bijection`.
        stages: functions `stage(context, fit) -> fit`, called one after the other: `GaussianStart`, `MixtureTraining`
            (left out by default if `guide` is given), `FlowTraining`, and your own (CONTRIBUTING.md has an example).
        verify: how thoroughly to search for what the fit lacks. `"auto"` uses about 20,000 evaluations of the density,
            `"thorough"` ten times as many, and `"weights"` does not search. The verdict names every check that ran.
        fallback: what to do if the fit is refused. `"mcmc"` fits a mixture with components in every mode that a search
            finds; if that is refused too, it runs Markov chains with this mixture as their proposal. None does nothing.
        settings: the constants of the fit. An argument below replaces the setting of the same name.
        num_steps: maximum number of steps of the flow stage.
        num_particles: draws for each step.
        learning_rate: peak learning rate of Adam.
        target_ess: relative effective sample size, in (0, 1], at which training stops.
        progress_bar: whether to show a progress bar.
        callback: called after each round of the flow stage with `step`, `losses` and `figures` ("ess", "khat", "elbo").
            If it returns True, the fit ends.
        checkpoint: path of a file to which the state of the flow stage is written after each round, on Ctrl-C and, in
            the main thread, on SIGTERM. A second call with the same model, data, key and settings continues from this
            file. It gives the result of an uninterrupted call, bit for bit if the device computes deterministically.
            Use one file for one fit. The file does not notice a change of data behind a callback to the host. Fits by
            several processes cannot have a checkpoint.
        mesh: a `jax.sharding.Mesh` with one axis. Its devices split the particles of a step, the draws of a verdict and
            the points of an evaluation. The result equals that of one device up to rounding. docs/several_devices.md
            explains how to use data on several devices and several processes.

    Raises:
        TypeError: if `model` cannot be called, `guide` is not an `AutoFlow`, or an argument has the wrong type.
        ValueError: if `guide` belongs to another model, a number is out of its range, the folder of `checkpoint` does
            not exist, or `mesh` has several axes.

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
        stages: Sequence[Stage] | None = None,
        settings: FlowVISettings = _DEFAULTS,
        verify: Literal["auto", "thorough", "weights"] = "auto",
        fallback: Literal["mcmc"] | None = "mcmc",
        num_steps: int | None = None,
        num_particles: int | None = None,
        learning_rate: float | None = None,
        target_ess: float | None = None,
        progress_bar: bool = True,
        callback: Callback | None = None,
        checkpoint: str | os.PathLike | None = None,
        mesh: Mesh | None = None,
    ):
        require_model(model)
        if not (guide is None or isinstance(guide, AutoFlow)):
            raise TypeError(f"guide expected an AutoFlow or None, got {type(guide).__name__}")
        if guide is not None and guide.model is not model:
            raise ValueError(
                f"guide expected an AutoFlow of the model {model}, got one of {guide.model}: make it by AutoFlow(model)"
            )
        require_instance(FlowVISettings, "FlowVISettings(num_steps=2000)", settings=settings)
        if stages is None:
            mixture = [MixtureTraining()] if guide is None else []
            stages = [GaussianStart(), *mixture, FlowTraining()]
        stages = tuple(stages)
        for number, stage in enumerate(stages, 1):
            require_callable("GaussianStart()", **{f"each stage, number {number}": stage})
            if isinstance(stage, type):
                raise TypeError(
                    f"each stage, number {number} expected an object such as GaussianStart(), got the class "
                    f"{stage.__name__}: write {stage.__name__}()"
                )
        given = {
            "num_steps": num_steps,
            "num_particles": num_particles,
            "learning_rate": learning_rate,
            "target_ess": target_ess,
        }
        self.model = model
        self.guide = guide
        require_choice(("auto", "thorough", "weights"), verify=verify)
        if verify == "thorough":
            settings = settings.thorough()
        self.verify = verify
        if fallback is not None:
            require_choice(("mcmc",), fallback=fallback)
        self.fallback = fallback
        self.settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
        trainings = sum(isinstance(stage, FlowTraining) for stage in stages)
        if checkpoint is not None and trainings > 1:
            raise ValueError(
                f"checkpoint expected one FlowTraining stage, because it stores the state of one, got {trainings}"
            )
        self.stages = stages
        self.devices = Devices.of(mesh)
        self.watch = Watch(progress_bar, callback, checkpoint).checked()

    def run(self, rng_key: PRNGKeyArray, *args: Any, **kwargs: Any) -> FlowPosterior:
        """Fit the posterior of the model called with `args` and `kwargs`.

        If the model cannot use a pandas Series or DataFrame as it is, it gets an array `(rows,)` or `(rows, columns)`.
        For a DataFrame this brings a warning; pass `dict(table)` to use columns by name.

        Ctrl-C ends the fit and returns the best result so far; before the Gaussian is fitted it raises. If the result
        is not certified, a `UserWarning`, `FlowPosterior.why` and the first line of `print_summary()` give the reason.

        Raises:
            TypeError: if `rng_key` is not one random key, or a Series or DataFrame has values that are not numbers.
            ValueError: if the model cannot be fitted: it has no latent site, a discrete one, or a `numpyro.param` site
                without a given value. Also if it has several subsampled plates, a latent site in such a plate, a site
                larger than its plates, or data that are not finite. Also if the density is finite at no start, or the
                checkpoint belongs to another fit or to several processes.
        """
        posterior = self._fitted(rng_key, args, kwargs)
        if not posterior.certified:
            warnings.warn(not_certified(posterior.why), UserWarning, stacklevel=2)
        return posterior

    def run_in_background(self, rng_key: PRNGKeyArray, *args: Any, **kwargs: Any) -> BackgroundFit:
        """Start `run` in a thread, without a progress bar, and return a handle of it at once.

        `handle.result()` waits for the posterior, and `handle.cancel()` ends the fit like Ctrl-C. Errors and the
        warning about a refused fit come from `result`. Several fits may run at once. NumPyro's handlers are global, so
        do not run NumPyro models of your own meanwhile; this library's functions wait for each other. The fit has its
        own copies of NumPy arrays, except files (`np.memmap`).

        Raises:
            TypeError: if `rng_key` is not one random key.
        """
        require_key(rng_key)
        args, kwargs = copied((args, kwargs))

        def fitted(watch: Watch) -> FlowPosterior:
            other = copy.copy(self)
            other.watch = watch
            return other._fitted(rng_key, args, kwargs)

        return BackgroundFit(fitted, self.watch)

    def _fitted(self, rng_key: PRNGKeyArray, args: tuple, kwargs: dict[str, Any]) -> FlowPosterior:
        """The posterior, without a warning if it is refused."""
        require_key(rng_key)
        seeds, clock = Seeds.of(rng_key), Clock()
        args, kwargs = automatically_sharded((args, kwargs))
        watch = Devices(mesh_of((args, kwargs))).watched(self.devices.watched(self.watch))
        with clock.stage("tracing"):
            target = Target(with_angles_on_line(self.model), seeds.key("model"), args, kwargs)
            guide = self._guide(target.fitted.dim)
        with compilers() as pool, one_thread():
            with clock.stage("tracing"):
                cost = Cost.of(target.fitted.log_density, target.fitted.dim)
                settings = self.settings.affordable(cost)
                density = HostDensity(pool, target.fitted, settings.batch, settings.block, self.devices, watch.check)
                prior = HostPrior(pool, target.fitted, settings.batch)
            context = Context(
                target=target.fitted,
                density=density,
                prior=prior,
                verify=self.verify,
                guide=guide,
                settings=settings,
                seeds=seeds,
                clock=clock,
                pool=pool,
                watch=watch,
                devices=self.devices,
            )
            fit = run_stages(self._all_stages(), context)
        read = target.rows.block / target.rows.size if target.rows else 1.0  # share of the data that a step reads
        density.gradients["flow"] += round(fit.losses.size * settings.num_particles * read)
        fit = fit._replace(bijection=on_one_device(fit.bijection))
        if self.devices.several_processes:  # so that a process can draw by itself
            fit = fit._replace(draw=None)
        if target.free.any():
            whole = Partial(fit.bijection, np.flatnonzero(~target.free), target.dim)
            chains = fit.chains and fit.chains.with_normals(target.free, seeds.rng("free coordinates"))
            fit = fit._replace(bijection=Chain([whole]), draw=None, mixture=None, chains=chains)
        return FlowPosterior(
            model=self.model,
            args=target.args,
            kwargs=target.kwargs,
            guide=guide,
            target=target,
            bijection=fit.bijection,
            draw=fit.draw,
            mixture=fit.mixture,
            chains=fit.chains,
            certificate=fit.certificate,
            log_weights=fit.log_weights,
            losses=fit.losses,
            seconds=clock.seconds,
            gradient_evaluations=density.gradients,
            value_evaluations=density.values_alone,
            num_skipped=fit.num_skipped,
            reason=fit.reason or Reason.UNTRAINED,
            settings=self.settings.of_draws(cost),
        )

    def run_several(self, rng_key: PRNGKeyArray, num: int, *args: Any, **kwargs: Any) -> SeveralFits:
        """Fit the same posterior `num` times with different keys, to see how well the fits agree.

        Raises:
            TypeError: if `rng_key` is not one random key, or `num` is not an integer.
            ValueError: if `num` is below 2, a checkpoint is given (a file stores one fit), or `run` raises one.
        """
        if self.watch.checkpoint is not None:
            raise ValueError("checkpoint expected None for several fits, because a file stores one fit: call run")
        return run_several(self.run, rng_key, num, args, kwargs)

    def run_many(self, rng_key: PRNGKeyArray, *args: Any, in_axes: InAxes = 0, **kwargs: Any) -> ManyFits:
        """Fit the model to many data sets of the same shapes, with one compilation.

        Fit `i` equals `run` with data set `i` and the key `jax.random.split(rng_key, num)[i]`. If a fit fails, its row
        has the error, and the others go on. Ctrl-C returns the finished fits.

        Args:
            rng_key: a random key.
            args: the model's arguments, with a leading axis of data sets.
            in_axes: the axis of data sets for each argument, as in `jax.vmap`; None for an argument that all share.
            kwargs: keyword arguments that all data sets share.

        Raises:
            TypeError: if `rng_key` is not one random key.
            ValueError: if the arguments have different numbers of data sets, or a checkpoint is given (a file stores
                one fit).
        """
        if self.watch.checkpoint is not None:
            raise ValueError("checkpoint expected None for many fits, because a file stores one fit: call run")
        quiet = copy.copy(self)
        quiet.watch = self.watch._replace(progress_bar=False)
        return run_many(quiet._fitted, rng_key, args, in_axes, kwargs, self.watch.progress_bar)

    def _all_stages(self) -> list[Stage]:
        if self.fallback is None:
            return list(self.stages)
        stages: list[Stage] = []
        for stage in self.stages:
            stages += [Fallback(of_modes=True), stage] if isinstance(stage, FlowTraining) else [stage]
        return [*stages, Fallback()]

    def _guide(self, dim: int) -> AutoFlow:
        if self.guide is not None:
            return copy.copy(self.guide)
        # one coordinate has no other to depend on: affine couplings would be one affine map, splines still bend
        recipe = flows.realnvp if dim > 1 else flows.nsf_coupling
        return AutoFlow(self.model, flows.with_tails(partial(recipe, order="nearby")))


def run_without_warning(fit: FlowVI, rng_key: PRNGKeyArray, args: tuple, kwargs: dict[str, Any]) -> FlowPosterior:
    """`fit.run(rng_key, *args, **kwargs)`; a filter of warnings would be one of all threads."""
    return fit._fitted(rng_key, args, kwargs)
