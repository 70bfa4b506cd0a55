"""A monotone curve through given knots for every coordinate, with straight lines beyond the knots."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Scalar

from numpyro_flows.bijections.base import AbstractShaped
from numpyro_flows.bijections.spline import rational_quadratic, rational_quadratic_root


class EmpiricalMarginal(AbstractShaped):
    """`y_i = f_i(x_i)`: rational-quadratic between the knots `(x_k, y_k)` with slopes `d_k`, straight lines beyond.

    With `w`, `h` a bin's width and height, `s = h / w`, `t = (x - x_k) / w`:

        y = y_k + h (s t^2 + d_k t (1 - t)) / (s + (d_k + d_k+1 - 2 s) t (1 - t))

    The map is C1 and onto the reals, and both directions have a closed form.

    Args:
        x: knots, `(dim, knots)`, increasing along the last axis.
        y: values at the knots, of the same shape, increasing too.
        slopes: positive derivatives at the knots, of the same shape.

    Raises:
        ValueError: if the shapes differ, there are fewer than two knots, or knots do not increase.

    Source: Gregory, Delbourgo 1982, IMA Journal of Numerical Analysis 2(2).

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.gaussianization import EmpiricalMarginal
        >>> double = EmpiricalMarginal([[0.0, 1.0, 2.0]], [[0.0, 2.0, 4.0]], slopes=[[2.0, 2.0, 2.0]])
        >>> double.transform(jnp.array([5.0])).round(2).tolist()
        [10.0]
    """

    x: Float[Array, "dim knots"]
    y: Float[Array, "dim knots"]
    slopes: Float[Array, "dim knots"]

    def __init__(self, x: ArrayLike, y: ArrayLike, slopes: ArrayLike):
        self.x, self.y, self.slopes = (jnp.asarray(a, float) for a in (x, y, slopes))
        if not self.x.shape == self.y.shape == self.slopes.shape or self.x.ndim != 2 or self.x.shape[1] < 2:
            got = self.x.shape, self.y.shape, self.slopes.shape
            raise ValueError(f"EmpiricalMarginal expected three arrays (dim, knots) with two knots or more, got {got}")
        if not ((jnp.diff(self.x) > 0).all() and (jnp.diff(self.y) > 0).all() and (self.slopes > 0).all()):
            raise ValueError("EmpiricalMarginal expected rising knots of positive slopes")
        self.shape, self.cond_shape = self.x.shape[:1], None

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        inside = jnp.clip(x, self.x[:, 0], self.x[:, -1])
        x0, y0, w, h, d0, d1 = self._bin(inside, self.x)
        y, log_slope = rational_quadratic((inside - x0) / w, h / w, d0, d1)
        # outside, `d0` or `d1` is the slope of the tail: the piece's own at its end
        return y0 + h * y + jnp.exp(log_slope) * (x - inside), log_slope.sum()

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        inside = jnp.clip(y, self.y[:, 0], self.y[:, -1])
        x0, y0, w, h, d0, d1 = self._bin(inside, self.y)
        t = rational_quadratic_root((inside - y0) / h, h / w, d0, d1)
        log_slope = rational_quadratic(t, h / w, d0, d1)[1]
        return x0 + w * t + jnp.exp(-log_slope) * (y - inside), -log_slope.sum()

    def _bin(self, place: Float[Array, " dim"], among: Float[Array, "dim knots"]) -> tuple[Array, ...]:
        number = (place[:, None] >= among[:, 1:-1]).sum(1, keepdims=True)

        def at(values: Array, number: Array) -> Array:
            return jnp.take_along_axis(values, number, axis=1)[:, 0]

        x0, y0, d0 = (at(a, number) for a in (self.x, self.y, self.slopes))
        x1, y1, d1 = (at(a, number + 1) for a in (self.x, self.y, self.slopes))
        return x0, y0, x1 - x0, y1 - y0, d0, d1
