"""The log density of a flow: for a draw from the results of drawing, and for any value by the inverse."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions.transforms import Transform

from numpyro_flows.modeling.supports import all_of_events, inside, log_det_of_events, where_events
from numpyro_flows.modeling.transforms import FlowTransform


class LogProbParts(NamedTuple):
    """The two terms of a log density: `log_prob = base + log_det`, each of the batch's shape, in nats.

    base: log density of the base distribution at `x = f^-1(y)`.
    log_det: `log |det dx/dy|`.
    """

    base: Float[Array, "*batch"]
    log_det: Float[Array, "*batch"]


def parts_of_draw(
    base: dist.Distribution, flow: FlowTransform, constrain: Transform | None, y: Array, intermediates: list[Any]
) -> LogProbParts:
    """The terms from the intermediate results of the transforms when `y` was drawn, those of the base first."""
    real_dim = len(flow.event_shape)
    of_base = len(intermediates) - (1 if constrain is None else 2)
    x, increment = intermediates[of_base]
    log_det = -jnp.asarray(increment)
    if constrain is not None:
        log_det = log_det - log_det_of_events(constrain, intermediates[-1][0], y, intermediates[-1][1], real_dim)
    log_prob = jnp.asarray(base.log_prob(x, intermediates[:of_base]) if of_base else base.log_prob(x))
    return LogProbParts(log_prob, jnp.broadcast_to(log_det, log_prob.shape))


def parts_of_value(
    base: dist.Distribution, flow: FlowTransform, constrain: Transform | None, y: Array, event_dim: int
) -> LogProbParts:
    """The terms by the inverse of `constrain(flow(u))`; an event of `y` has `event_dim` axes."""
    real_dim = len(flow.event_shape)
    y = jnp.asarray(y, jnp.result_type(y, float))
    # values outside are replaced by a point inside: their results are not used, but would have NaN gradients
    possible = inside(constrain, y, event_dim, real_dim)
    place, log_det = jnp.zeros(flow.event_shape, y.dtype), jnp.zeros((), y.dtype)
    if constrain is None:
        x = where_events(possible, y, place)
    else:
        y = where_events(possible, y, jnp.asarray(constrain(place)))
        x = jnp.asarray(constrain.inv(y))
        log_det = -log_det_of_events(constrain, x, y, None, real_dim)
    u, increment = flow.inverse_and_log_det(x)
    if base.support is not None:  # NumPyro's densities do not check this
        # a flow of NaN has densities of NaN
        in_base = jnp.asarray(base.support(u)) | ~all_of_events(~jnp.isnan(u), real_dim)
        u = where_events(in_base, u, jnp.asarray(base.support.feasible_like(u)))
        possible = possible & in_base
    log_prob = jnp.where(possible, base.log_prob(u), -jnp.inf)
    return LogProbParts(log_prob, jnp.broadcast_to(log_det + increment, log_prob.shape))


def standard_normal_log_prob(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
    """Log density of `N(0, I)` over the last axis."""
    return -0.5 * jnp.sum(x**2 + jnp.log(2 * jnp.pi), axis=-1)
