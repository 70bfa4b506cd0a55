"""The Yeo-Johnson power transform of every coordinate, which makes skewed data nearly normal."""

from typing import Any, override

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Scalar

from numpyro_flows.bijections.base import AbstractShaped

_LEAST_POWER = 1e-3  # a smaller power equals a logarithm in single precision


class YeoJohnson(AbstractShaped):
    """`y = p^-1(x)`, elementwise, for the power transform `p` of Yeo and Johnson, between `low` and `high`.

        p(y) = ((y + 1)^power - 1) / power              for y >= 0
        p(y) = -((1 - y)^(2 - power) - 1) / (2 - power)  for y < 0

    Beyond `low` and `high` both directions go on as straight lines with the slopes there: so the map is onto the reals
    for every power, and its tails are those of the base. A power of 1 is the identity.

    Args:
        power: of each coordinate, `(dim,)`. One within 0.001 of 0 or of 2 is moved to that distance.
        low: where the power transform begins, below zero, of each.
        high: where it ends, above zero.

    Raises:
        ValueError: if not `low < 0 < high`.

    Source: Yeo, Johnson 2000, Biometrika 87(4).

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import YeoJohnson
        >>> logarithm = YeoJohnson(jnp.zeros(1), -1.0, 10.0)
        >>> logarithm.inverse(jnp.array([1.718])).round(2).tolist()
        [1.0]
    """

    power: Float[Array, " dim"]
    low: Float[Array, " dim"]
    high: Float[Array, " dim"]

    def __init__(self, power: ArrayLike, low: ArrayLike, high: ArrayLike):
        power = np.asarray(power, np.float64)
        if not (np.less(low, 0.0).all() and np.greater(high, 0.0).all()):
            raise ValueError(f"expected low < 0 < high, got low {low} and high {high}")
        power = away_from_roots(power)
        self.power, self.low, self.high = (
            jnp.asarray(np.broadcast_to(a, power.shape), float) for a in (power, low, high)
        )
        self._set_dims(power.size)

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        y, log_slope = self._values_and_log_slopes(x)
        return y, -log_slope.sum()

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        x, log_slope = power_transform(y, self.power, self.low, self.high, jnp)
        return x, log_slope.sum()

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        (y, log_slope), vjp = jax.vjp(self._values_and_log_slopes, x)
        (grad,) = vjp((jnp.zeros_like(y), -jnp.ones_like(y)))
        return y, -log_slope.sum(), (score - grad) * jnp.exp(log_slope)

    def _values_and_log_slopes(self, x: Array) -> tuple[Array, Array]:
        """`y` and the logarithm of the slope of `p` there."""
        (lowest, _), (highest, _) = (
            power_transform(end, self.power, self.low, self.high, jnp) for end in (self.low, self.high)
        )
        inside = jnp.clip(x, lowest, highest)
        exponent = jnp.where(inside >= 0, self.power, 2.0 - self.power)
        y = jnp.sign(inside) * jnp.expm1(jnp.log1p(exponent * jnp.abs(inside)) / exponent)
        y = jnp.clip(y, self.low, self.high)
        log_slope = jnp.sign(y) * (self.power - 1.0) * jnp.log1p(jnp.abs(y))
        return y + (x - inside) * jnp.exp(-log_slope), log_slope


def away_from_roots(power: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Powers, those within 0.001 of 0 and of 2 moved to that distance: there the formula has a logarithm instead."""
    for root in (0.0, 2.0):
        away = power - root
        power = np.where(np.abs(away) < _LEAST_POWER, root + np.where(away < 0, -1.0, 1.0) * _LEAST_POWER, power)
    return power


def power_transform(y: Any, power: Any, low: Any, high: Any, xp: Any) -> tuple[Any, Any]:
    """`p(y)` and the logarithm of its slope, elementwise, in NumPy or JAX's."""
    inside = xp.clip(y, low, high)
    exponent = xp.where(inside >= 0, power, 2.0 - power)
    log = xp.log1p(xp.abs(inside))
    log_slope = xp.sign(inside) * (power - 1.0) * log
    x = xp.sign(inside) * xp.expm1(exponent * log) / exponent
    return x + (y - inside) * xp.exp(log_slope), log_slope
