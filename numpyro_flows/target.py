"""A NumPyro model with its data as a density on unconstrained vectors."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Scalar
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn


class Target:
    """The unnormalized posterior `p(x, data)` of a model on `x` in `R^dim`, its latent sites unconstrained and raveled.

    The sites follow each other in the order of the trace, as in NumPyro's continuous autoguides. The model is traced
    abstractly, which costs no compilation. `shapes` and `site_shapes` are the latent sites' shapes, unconstrained and
    as the model has them.

    Args:
        model: a NumPyro model.
        rng_key: random key for what the model itself draws (initial values of its `param` sites, say).
        args: the model's positional arguments.
        kwargs: the model's keyword arguments.

    Raises:
        ValueError: where the model has no latent site, a discrete one, a subsampled plate, or NaN in its data.
    """

    def __init__(self, model: Callable, rng_key: PRNGKeyArray, args: tuple = (), kwargs: dict[str, Any] | None = None):
        self.args = args
        self.kwargs = kwargs or {}
        self._unseeded = model
        self._model = seed(model, rng_key)
        unconstrained, constrained = _ordered_shapes(lambda: self._latents(self._model, init_to_uniform))
        self.shapes = unconstrained
        self.site_shapes = constrained
        self._sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        self.dim = sum(self._sizes)
        if self.dim == 0:
            raise ValueError("the model expected at least one continuous latent site, got none")

    def log_density(self, x: Float[Array, " dim"]) -> Scalar:
        """`log p(x, data)`, with the Jacobian of the constraints."""
        return jnp.asarray(-potential_energy(self._model, self.args, self.kwargs, self._unravel(x)))

    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Array]:
        """The latent sites' values at `x`, and those of the deterministic sites."""
        return constrain_fn(self._model, self.args, self.kwargs, self._unravel(x), return_deterministic=True)

    def unconstrain(self, sites: Mapping[str, ArrayLike]) -> Float[Array, " dim"]:
        """The vector `x` of latent sites' values.

        Raises:
            ValueError: where a latent site is missing.
        """
        missing = sorted(self.shapes.keys() - sites.keys())
        if missing:
            raise ValueError(f"expected a value for every latent site, missing {missing}")
        values = {name: sites[name] for name in self.shapes}
        unconstrained = unconstrain_fn(self._model, self.args, self.kwargs, values)
        return jnp.concatenate([jnp.ravel(unconstrained[name]) for name in self.shapes])

    def start(self, rng_key: PRNGKeyArray, init_loc_fn: Callable) -> Float[Array, " dim"]:
        """One point `x` to start from, by a NumPyro initialisation strategy."""
        latents = self._latents(seed(self._unseeded, rng_key), init_loc_fn)[0]
        return jnp.concatenate([jnp.ravel(value) for value in latents.values()])

    def log_det(self, x: Float[Array, " dim"]) -> Scalar:
        """`log |det dsites/dx|` of the constraints at `x`."""
        sites = self._sites(x)
        log_dets = [
            jnp.sum(biject_to(sites[name]["fn"].support).log_abs_det_jacobian(value, sites[name]["value"]))
            for name, value in self._unravel(x).items()
        ]
        return jnp.sum(jnp.stack(log_dets))

    def supports(self) -> dict[str, constraints.Constraint]:
        """The support of every latent site.

        Raises:
            ValueError: where one depends on the values of other sites.
        """
        low, high = (self._sites(jnp.full(self.dim, value)) for value in (-1.0, 1.0))
        moving = [name for name in self.shapes if low[name]["fn"].support != high[name]["fn"].support]
        if moving:
            raise ValueError(f"expected supports that do not depend on other sites, got such of {moving}")
        return {name: low[name]["fn"].support for name in self.shapes}

    def require_finite(self, starts: Float[Array, "starts dim"]) -> None:
        """Make sure that the log density is finite at one of `starts`.

        Raises:
            ValueError: where it is at none; it names the sites that are not.
        """
        if np.isfinite(jax.vmap(self.log_density)(starts)).any():
            return
        bad = [
            name
            for name, site in self._sites(starts[0]).items()
            if site["type"] == "sample" and not np.all(np.isfinite(site["fn"].log_prob(site["value"])))
        ]
        raise ValueError(
            f"expected a density that is finite somewhere near a start, got none at {len(starts)} starts: "
            f"not finite are the sites {bad or list(self.shapes)}"
        )

    def _sites(self, x: Float[Array, " dim"]) -> dict[str, dict[str, Any]]:
        """The trace of the model at `x`."""
        values = constrain_fn(self._model, self.args, self.kwargs, self._unravel(x))
        return trace(substitute(self._model, data=values)).get_trace(*self.args, **self.kwargs)

    def _unravel(self, x: Float[Array, " dim"]) -> dict[str, Array]:
        parts = jnp.split(x, np.cumsum(self._sizes)[:-1])
        return {name: part.reshape(shape) for part, (name, shape) in zip(parts, self.shapes.items())}

    def _latents(self, model: Callable, init_loc_fn: Callable) -> tuple[dict[str, Array], dict[str, Array]]:
        """Unconstrained and constrained values of the latent sites in one run of the model; raises for unfit models."""
        sites = trace(substitute(model, substitute_fn=init_loc_fn)).get_trace(*self.args, **self.kwargs)
        for name, site in sites.items():
            if site["type"] == "plate":
                _check_plate(name, *site["args"])
        unconstrained, constrained = {}, {}
        for name, site in sites.items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                _check_observed(name, site)
            elif site["fn"].support.is_discrete:
                raise ValueError(f"expected continuous latent sites, got the discrete {name!r}: marginalise it")
            else:
                constrained[name] = site["value"]
                unconstrained[name] = biject_to(site["fn"].support).inv(site["value"])
        return unconstrained, constrained


def _ordered_shapes(trees: Callable) -> list[dict[str, tuple[int, ...]]]:
    """Shapes of the dicts that `trees` would return; JAX itself would sort them by name."""
    result: list[dict[str, tuple[int, ...]]] = []
    jax.eval_shape(lambda: result.extend({k: jnp.shape(v) for k, v in tree.items()} for tree in trees()))
    return result


def _check_plate(name: str, size: int, subsample_size: int | None) -> None:
    if subsample_size is not None and subsample_size != size:
        raise ValueError(
            f"expected the whole data, got plate {name!r} subsampled ({subsample_size} of {size}): "
            "give all of it, or train an AutoFlow by NumPyro's SVI"
        )


def _check_observed(name: str, site: dict[str, Any]) -> None:
    value = site["value"]
    if isinstance(value, Tracer) or isinstance(site["fn"], dist.MaskedDistribution):
        return
    value = np.asarray(value)
    if np.issubdtype(value.dtype, np.floating) and np.isnan(value).any():
        raise ValueError(
            f"expected observed values without NaN, got {np.isnan(value).sum()} of {value.size} at {name!r}"
        )
