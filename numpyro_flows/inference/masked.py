"""Latent values that a mask removes from the density, as `obs_mask` does: flat, improper directions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Scalar
from numpyro.distributions.transforms import biject_to
from numpyro.handlers import trace

from numpyro_flows.inference.model_checks import unwrapped
from numpyro_flows.modeling._numpyro import mask_of

_PROBES = 3  # random points at which the density must not depend on a masked entry


class Traced(Protocol):
    """The methods of a target that this module needs."""

    dim: int

    def log_density(self, x: Float[Array, " dim"], /) -> Scalar: ...
    def log_det(self, x: Float[Array, " dim"], /) -> Scalar: ...
    def sites(self, x: Float[Array, " dim"], /) -> dict[str, dict[str, Any]]: ...
    def unravel(self, x: Float[Array, " dim"], /) -> dict[str, Array]: ...


class Free(NamedTuple):
    """The entries of a site that the density does not depend on, each `(*batch,)`.

    entries: true for these entries.
    with_jacobian: true for those of them whose constraint's Jacobian is still in the density, because the distribution
        itself is masked, `dist.Gamma(1, 1).mask(False)`, and not the site.
    """

    entries: Bool[np.ndarray, "*batch"]
    with_jacobian: Bool[np.ndarray, "*batch"]


def find_free(target: Traced, masked: list[str]) -> dict[str, Free]:
    """The free entries of the sites `masked`: entries for which the mask is false and that have no influence.

    A mask that depends on latent sites frees no entry: it may remove an entry here and keep it elsewhere.
    """

    def probe(x: Float[Array, " dim"]) -> Any:
        gradients = [target.unravel(jax.grad(f)(x)) for f in (target.log_density, target.log_det)]
        sites = target.sites(x)
        return [(*(g[name] for g in gradients), _kept(sites[name]["fn"])) for name in masked]

    x = jax.random.uniform(jax.random.key(0), (_PROBES, target.dim), minval=-1.0, maxval=1.0)
    found = {}
    for name, (gradient, jacobian, kept) in zip(masked, jax.jit(jax.vmap(probe))(x)):
        gradient, jacobian, kept = map(np.asarray, (gradient, jacobian, kept))
        flat = _entries(gradient == 0, kept.shape)
        with_jacobian = _entries(np.isclose(gradient, jacobian, rtol=1e-5), kept.shape) & ~flat
        entries = ~kept[0] & (flat | with_jacobian)
        if entries.any() and _is_fixed(lambda x, name=name: _kept(target.sites(x)[name]["fn"]), x):
            found[name] = Free(entries, entries & with_jacobian)
    return found


def with_normals(model: Callable, free: Mapping[str, Free]) -> Callable:
    """`model` with a standard normal for its free entries, unconstrained, which leaves its evidence unchanged."""

    def completed(*args: Any, **kwargs: Any) -> Any:
        with trace() as sites:
            result = model(*args, **kwargs)
        for name, (entries, with_jacobian) in free.items():
            transform = biject_to(sites[name]["fn"].support)
            value = sites[name]["value"]
            x = transform.inv(value)
            log_prob = dist.Normal(0.0, 1.0).log_prob(x)
            log_det = transform.log_abs_det_jacobian(x, value)
            terms = [
                jnp.where(entries, _event_sum(log_prob, entries.ndim), 0.0),
                jnp.where(with_jacobian, -_event_sum(log_det, entries.ndim), 0.0),
            ]
            numpyro.factor(f"_{name}_free", sum(term.sum() for term in terms))
        return result

    return completed


def free_coordinates(shapes: Mapping[str, tuple[int, ...]], free: Mapping[str, Free]) -> Bool[np.ndarray, " dim"]:
    """The free coordinates of the unconstrained vector."""
    parts = []
    for name, shape in shapes.items():
        entries = free[name].entries if name in free else np.array(False)
        parts.append(np.broadcast_to(entries.reshape((*entries.shape, *[1] * (len(shape) - entries.ndim))), shape))
    return np.concatenate([part.ravel() for part in parts])


def _kept(distribution: Any) -> Bool[Array, "*batch"]:
    """Which entries of a site its masks keep, of its batch shape: those of which they keep any element."""
    shape = distribution.shape()
    kept = jnp.ones(shape, bool)
    for d in unwrapped(distribution):
        if isinstance(d, dist.MaskedDistribution):
            mask = jnp.broadcast_to(mask_of(d), d.batch_shape)
            kept &= mask.reshape((*d.batch_shape, *[1] * d.event_dim))
    return kept.reshape((*distribution.batch_shape, -1)).any(-1)


def _is_fixed(function: Callable[[Array], Array], points: Float[Array, "points dim"]) -> bool:
    """Whether a function does not depend on its argument: JAX sees this in the program, and gives it no axis."""
    try:
        jax.eval_shape(jax.vmap(function, out_axes=None), points)
    except ValueError:  # "vmap has mapped output but out_axes is None"
        return False
    return True


def _entries(of_coordinates: Bool[np.ndarray, "probes *shape"], shape: tuple[int, ...]) -> Bool[np.ndarray, "*batch"]:
    """Whether a property holds at all probes for all coordinates of an entry."""
    return of_coordinates.reshape((*shape, -1)).all((0, -1))


def _event_sum(value: Array, num_batch_axes: int) -> Array:
    return value.sum(tuple(range(num_batch_axes, value.ndim)))
