"""Whether events are in the support of a distribution, and the results for events that are not."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from numpyro_flows.modeling.sites import Sites


def inside(constrain: Transform | None, y: Float[Array, "..."], event_dim: int, real_dim: int) -> Bool[Array, "..."]:
    """Whether events are in the interior of the support that `constrain` maps real numbers to; None means all reals.

    The map to real numbers and back decides, within rounding. NumPyro's constraints contain boundaries, where densities
    are 0 here, and some have tolerances below the rounding errors of single precision. An event has `event_dim` axes,
    and `real_dim` as real numbers.
    """
    y = jax.lax.stop_gradient(y)
    if constrain is None:
        return all_of_events(jnp.isfinite(y), event_dim)
    x = jnp.asarray(constrain.inv(y))
    error = jnp.abs(jnp.asarray(constrain(x)) - y)
    back = error <= jnp.sqrt(jnp.finfo(y.dtype).eps) * (1 + jnp.abs(y))
    within = all_of_events(back, event_dim) & all_of_events(jnp.isfinite(x), real_dim)
    return within & _off_faces(constrain.codomain, y, event_dim)


def _off_faces(support: constraints.Constraint, y: Array, event_dim: int) -> Bool[Array, "..."]:
    """Whether no number of a simplex is 0; NumPyro's transform maps such a point back as if it were inside."""
    if isinstance(support, Sites):
        checks = [_off_faces(support.supports[k], v, len(support.shapes[k])) for k, v in support.unpack(y).items()]
        return jnp.stack(checks).all(0)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    positive = y > 0 if support is constraints.simplex else jnp.ones_like(y, bool)
    return all_of_events(positive, event_dim)


def all_of_events(values: Bool[Array, "..."], event_dim: int) -> Array:
    """Whether all of every event's values are true."""
    return values.all(range(values.ndim - event_dim, values.ndim))


def where_events(condition: Bool[Array, "*batch"], x: Array, y: Array) -> Array:
    """`x` or `y` by events, which have any number of axes."""
    return jnp.where(condition.reshape(*condition.shape, *(1,) * (x.ndim - condition.ndim)), x, y)


def log_det_of_events(constrain: Transform, x: Array, y: Array, intermediates: Any, real_dim: int) -> Array:
    """`log |det dy/dx|` of every event, which has `real_dim` axes as real numbers `x`."""
    each = jnp.asarray(constrain.log_abs_det_jacobian(x, y, intermediates))
    return each.sum(range(x.ndim - real_dim, each.ndim))
