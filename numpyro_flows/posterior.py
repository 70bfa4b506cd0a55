"""The result of a fit: draws, densities, evidence, and how far to trust them."""

import copy
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from numpyro_flows.arguments import described, require_counts, require_key
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.density import fit_density
from numpyro_flows.distributions import FlowDistribution
from numpyro_flows.guides import AutoFlow
from numpyro_flows.objectives import standard_normal_log_prob
from numpyro_flows.recipe import RECIPE
from numpyro_flows.sampling import Certificate, Draws, resample
from numpyro_flows.serialization import load_tree, save_tree
from numpyro_flows.stages import OPTIMIZATION_LEVEL, Block, Seed, drawing, join, seed_stream
from numpyro_flows.target import Target

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_POOL = 4  # fresh draws for each one that resampling returns


class FlowPosterior:
    """A trained flow with the importance weights that judge it; made by `FlowVI.run`.

    Attributes:
        certificate: the verdict and all its figures; the next ones repeat the main of them.
        certified: whether the draws can be trusted, as far as weights can see.
        why: where not certified, the reason.
        khat: Pareto k-hat of the weights.
        ess: relative effective sample size of the weights, in [0, 1].
        elbo: the fit's ELBO.
        log_evidence: log of the model's evidence, and `log_evidence_se`, its standard error.
        guide: the trained `AutoFlow`, for NumPyro's `Predictive`, `NeuTraReparam` and so on, with `params`.
        params: the guide's parameters, as `SVI` would return them.
        bijection: the trained map from `N(0, I)` to the unconstrained latent vector; affine where a Gaussian is enough.
        losses: negative ELBO estimates, one for each step of the flow stage, `(steps,)`.
        seconds: wall time by stage: tracing, compilation, gaussian (with the search for modes and its verdict), flow,
            certificate (the verdicts of the flow stage).
        gradient_evaluations: gradients of the model's log density by stage.
        num_skipped: steps left out because their loss or gradient was not finite.
        log_weights: log importance weights of the certificate's draws, `(draws,)`.
        model: the model, with `args` and `kwargs` it was fitted with.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import FlowVI
        >>> def model(y):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 10)), 1), obs=y)
        >>> posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0), jax.numpy.array([1.0, 2.0, 3.0]))
        >>> posterior.ess > 0.9, posterior.sample(jax.random.key(1), 100)["mu"].shape
        (True, (100,))
    """

    def __init__(
        self,
        *,
        model: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        guide: AutoFlow,
        target: Target,
        bijection: AbstractBijection,
        certificate: Certificate,
        log_weights: Float[np.ndarray, " draws"],
        losses: Float[np.ndarray, " steps"],
        seconds: dict[str, float],
        gradient_evaluations: dict[str, int],
        num_skipped: int,
        draw: Callable[[PyTree, Seed], Block] | None = None,
    ):
        self.model = model
        self.args = args
        self.kwargs = kwargs
        self.bijection = bijection
        self.certificate = certificate
        self.log_weights = log_weights
        self.losses = losses
        self.seconds = seconds
        self.gradient_evaluations = gradient_evaluations
        self.num_skipped = num_skipped
        self._guide = guide
        self._target = target
        if draw is None:  # the fit has not compiled it yet
            static = eqx.partition(bijection, eqx.is_array)[1]
            draw = jax.jit(drawing(target, static), compiler_options=OPTIMIZATION_LEVEL)
        self._draw_block = draw
        self._constrain_block = jax.jit(jax.vmap(target.constrain), compiler_options=OPTIMIZATION_LEVEL)

    @property
    def certified(self) -> bool:
        return self.certificate.certified

    @property
    def why(self) -> str:
        return self.certificate.why

    @property
    def khat(self) -> float:
        return self.certificate.khat

    @property
    def ess(self) -> float:
        return self.certificate.ess

    @property
    def elbo(self) -> float:
        return self.certificate.elbo

    @property
    def log_evidence(self) -> float:
        return self.certificate.log_evidence

    @property
    def log_evidence_se(self) -> float:
        return self.certificate.log_evidence_se

    @property
    def params(self) -> dict[str, Any]:
        return {self._guide.param_name: eqx.filter(self.bijection, eqx.is_inexact_array)}

    @cached_property
    def guide(self) -> AutoFlow:
        # NumPyro sets a guide up by running the model op by op, a second or two: only where somebody asks for it
        guide = copy.copy(self._guide)
        guide.set_up(self.bijection, *self.args, **self.kwargs)
        return guide

    def sample(self, rng_key: PRNGKeyArray, num_samples: int = 1000, *, resample: bool = True) -> dict[str, Array]:
        """Draws of all latent and deterministic sites, each of shape `(num_samples, *site)`.

        They are independent draws of the flow, four times as many, of which importance resampling keeps
        `num_samples`: so they follow the posterior also where the flow is a little off. With `resample=False` they
        are the flow's own.

        Raises:
            ValueError: where `num_samples` is below 1.
        """
        _check(rng_key, num_samples)
        draws = self._resampled_draws(rng_key, num_samples) if resample else self._draw(rng_key, num_samples)
        return self._constrain(draws.x)

    def sample_weighted(
        self, rng_key: PRNGKeyArray, num_samples: int = 1000
    ) -> tuple[dict[str, Array], Float[np.ndarray, " num_samples"]]:
        """Draws of the flow with their log weights `log p(x, data) - log q(x)`, which `log_evidence` is the mean of.

        Raises:
            ValueError: where `num_samples` is below 1.
        """
        _check(rng_key, num_samples)
        draws = self._draw(rng_key, num_samples)
        return self._constrain(draws.x), np.asarray(draws.log_weight, np.float64)

    def log_prob(self, sites: dict[str, ArrayLike]) -> Float[Array, "*batch"]:
        """The flow's log density of latent sites' values, each of shape `(*batch, *site)`; others are ignored.

        Raises:
            ValueError: where a latent site is missing or has the wrong shape.
        """
        missing = sorted(self._target.site_shapes.keys() - sites.keys())
        if missing:
            raise ValueError(f"expected a value for every latent site, missing {missing}")
        values = {name: jnp.asarray(sites[name], float) for name in self._target.site_shapes}
        batch = None
        for name, shape in self._target.site_shapes.items():
            cut = values[name].ndim - len(shape)
            if cut < 0 or values[name].shape[cut:] != shape or batch not in (None, values[name].shape[:cut]):
                raise ValueError(f"expected {name!r} of shape (*batch, *{shape}), got {values[name].shape}")
            batch = values[name].shape[:cut]
        assert batch is not None
        flat = {name: value.reshape(-1, *self._target.site_shapes[name]) for name, value in values.items()}
        return self._log_prob(flat).reshape(batch)

    def as_prior(
        self,
        sites: Sequence[str] | None = None,
        *,
        rng_key: PRNGKeyArray | None = None,
        num_samples: int = 10_000,
        **options: Any,
    ) -> FlowDistribution:
        """The posterior of some latent sites as one joint distribution, to be the prior of the next model.

        A density is fitted to resampled draws: the flow itself is only as good as its weights, and today's data would
        not weigh its errors out (at an ESS of 95% an update was off by 0.17 sd, by draws by 0.03). Use it in a model by
        `sample_sites("prior", prior)`.

        Args:
            sites: names of latent sites; all by default.
            rng_key: for the draws and the fit to them.
            num_samples: number of draws.
            options: of `fit_density`.

        Raises:
            ValueError: where a name is none of a latent site, or a site's support depends on other sites.
        """
        rng_key = jax.random.key(0) if rng_key is None else rng_key
        _check(rng_key, num_samples)
        if not (sites is None or isinstance(sites, Sequence)) or isinstance(sites, str):
            raise TypeError(f"sites expected a list of names, for example ['mu'], got {described(sites)}")
        names = list(self._target.site_shapes if sites is None else sites)
        unknown = sorted(set(names) - self._target.site_shapes.keys())
        if unknown or not names:
            raise ValueError(f"sites expected some of {list(self._target.site_shapes)}, got {names}")
        if not self.certified:
            warnings.warn(f"the prior comes from a fit that is not certified: {self.why}", UserWarning, stacklevel=2)
        supports = self._target.supports()
        draw_key, fit_key = jax.random.split(rng_key)
        draws = self.sample(draw_key, num_samples)
        some = {name: draws[name] for name in names}
        return fit_density(fit_key, some, support={name: supports[name] for name in names}, **options)

    def to_datatree(
        self,
        *,
        num_samples: int = 1000,
        rng_key: PRNGKeyArray | None = None,
        coords: dict[str, Any] | None = None,
    ) -> "xr.DataTree":
        """An ArviZ DataTree: posterior, sample_stats, posterior_predictive, log_likelihood and observed_data.

        The posterior's draws are resampled; `sample_stats` has their log weights from before that, and their densities.
        Its attributes hold the certificate. Posterior predictive draws and likelihoods are there where the model has
        observed sites. `coords` are labels of the plates' dimensions, as ArviZ takes them.
        """
        from numpyro_flows.export import to_datatree

        return to_datatree(self, jax.random.key(0) if rng_key is None else rng_key, num_samples, coords)

    def summary(self, **kwargs: Any) -> "pd.DataFrame":
        """ArviZ's summary table of resampled draws; keywords go to `arviz_stats.summary`."""
        from arviz_stats.summary import summary

        from numpyro_flows.export import posterior_dataset

        dataset = posterior_dataset(self, self.sample(jax.random.key(0)))
        options: dict[str, Any] = {"kind": "stats"} | kwargs
        return summary(dataset, **options)  # pyright: ignore[reportReturnType]

    def print_summary(self) -> None:
        """The verdict, then the table of `summary`."""
        print(self.verdict())
        print(self.summary().to_string())

    def verdict(self) -> str:
        """The certificate in a few lines of text."""
        c = self.certificate
        first = "CERTIFIED" if c.certified else f"NOT CERTIFIED: {c.why}"
        figures = (
            f"k-hat {c.khat:.2f}, ESS {c.ess:.1%} of {c.num_draws} draws, largest weight {c.max_weight:.2g}, "
            f"ELBO {c.elbo:.3f}, log evidence {c.log_evidence:.3f} +- {c.log_evidence_se:.3f}"
        )
        work = (
            f"{sum(self.seconds.values()):.1f} s, {sum(self.gradient_evaluations.values()):,} gradient evaluations, "
            f"{self.num_skipped} steps skipped as not finite"
        )
        free = [f"{num} entries of {name!r}" for name, num in self._target.free_entries.items()]
        masked = f"\nmasked, so not in the density, and standard normal here: {', '.join(free)}" if free else ""
        return f"{first}\n{figures}\n{work}{masked}"

    def __repr__(self) -> str:
        return f"FlowPosterior({self.verdict()})"

    def save(self, path: str | os.PathLike) -> None:
        """Write the fit to one file; the model and its data are not in it."""
        tree = {
            "bijection": self.bijection,
            "certificate": dict(self.certificate._asdict()),
            "log_weights": self.log_weights,
            "losses": self.losses,
            "seconds": self.seconds,
            "gradient_evaluations": self.gradient_evaluations,
            "num_skipped": self.num_skipped,
            "prefix": self._guide.prefix,
            "shapes": {name: list(shape) for name, shape in self._target.shapes.items()},
            "probe": np.asarray(self._probe()),
        }
        save_tree(path, "FlowPosterior", tree)

    @classmethod
    def load(cls, path: str | os.PathLike, model: Callable, *args: Any, **kwargs: Any) -> "FlowPosterior":
        """What `save` wrote, for the same model with the same arguments.

        Raises:
            ValueError: where the model has other latent sites, or its density (so its data) is another.
        """
        tree = load_tree(path, "FlowPosterior")
        target = Target(model, jax.random.key(0), args, kwargs)
        shapes = {name: tuple(shape) for name, shape in tree.pop("shapes").items()}
        if shapes != target.shapes:
            raise ValueError(f"expected the model that was fitted, with sites {shapes}, got one with {target.shapes}")
        probe, prefix = tree.pop("probe"), tree.pop("prefix")
        certificate = Certificate(**tree.pop("certificate"))
        bijection = tree.pop("bijection")
        posterior = cls(
            model=model,
            args=args,
            kwargs=kwargs,
            guide=AutoFlow(model, lambda key, dim: bijection.bijections[0], prefix=prefix),
            target=target,
            bijection=bijection,
            certificate=certificate,
            **tree,
        )
        got = np.asarray(posterior._probe())
        if not np.allclose(got, probe, rtol=1e-3, atol=1e-2, equal_nan=True):
            raise ValueError(f"expected the model and data that were fitted, log densities {probe}, got {got}")
        return posterior

    def _probe(self) -> Float[Array, " 3"]:
        """Log densities at three draws: what a loaded fit must reproduce."""
        base = jax.random.normal(jax.random.key(0), (3, self._target.dim))
        return jax.vmap(self._target.log_density)(jax.vmap(self.bijection.transform_and_log_det)(base)[0])

    def _draw(self, rng_key: PRNGKeyArray, num: int) -> Draws:
        return self._draw_from(seed_stream(rng_key), num)

    def _resampled_draws(self, rng_key: PRNGKeyArray, num: int) -> Draws:
        """Draws that importance resampling keeps, with the weights they had before it."""
        fresh_seeds = seed_stream(rng_key)
        draws = self._draw_from(fresh_seeds, _POOL * num)
        index = resample(np.asarray(draws.log_weight), num, np.random.default_rng(next(fresh_seeds)))
        return Draws(*(leaf[index] for leaf in draws))

    def _draw_from(self, fresh_seeds: Iterator[Seed], num: int) -> Draws:
        arrays = eqx.filter(self.bijection, eqx.is_array)
        seeds = itertools.islice(fresh_seeds, -(-num // RECIPE.block))
        draws = join(self._draw_block(arrays, seed) for seed in seeds)
        return Draws(*(leaf[:num] for leaf in draws))

    def _constrain(self, x: Float[Array | np.ndarray, "num dim"]) -> dict[str, Array]:
        num = x.shape[0]
        padded = np.concatenate([x, np.broadcast_to(x[:1], (-num % RECIPE.block, x.shape[1]))])
        blocks = [self._constrain_block(block) for block in padded.reshape(-1, RECIPE.block, x.shape[1])]
        return {name: jnp.asarray(np.concatenate([block[name] for block in blocks])[:num]) for name in blocks[0]}

    @cached_property
    def _log_prob(self) -> Callable:
        def log_prob(sites: dict[str, Array]) -> Array:
            x = self._target.unconstrain(sites)
            base, log_det = self.bijection.inverse_and_log_det(x)
            return standard_normal_log_prob(base) + log_det - self._target.log_det(x)

        return jax.jit(jax.vmap(log_prob))


def _check(rng_key: PRNGKeyArray, num_samples: int) -> None:
    require_key(rng_key)
    require_counts(num_samples=num_samples)
