"""The monotone rational-quadratic spline as a univariate map."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_flows.bijections.univariate import AbstractUnivariate

_MIN_BIN = 1e-3  # least width and height of a bin, as a share of the interval
_MIN_SLOPE = 1e-3  # least derivative at a knot


class RationalQuadraticSpline(AbstractUnivariate):
    """A monotone spline of `num_bins` rational-quadratic pieces on `[-bound, bound]`, the identity outside.

    In the bin of knots `(x_k, y_k)` and `(x_k+1, y_k+1)`, with `w`, `h` its width and height, `s = h / w`,
    `t = (x - x_k) / w` and the knots' derivatives `d_k`, `d_k+1`:

        y = y_k + h (s t^2 + d_k t (1 - t)) / (s + (d_k + d_k+1 - 2 s) t (1 - t))

    The outermost derivatives are 1, so the map is C1 everywhere (and no more: prefer smooth maps under Hamiltonian
    samplers). `params` are `num_bins` widths and heights before their softmax and `num_bins - 1` derivatives before
    their softplus; zeros give the identity.

    Args:
        num_bins: number of pieces.
        bound: half of the interval's length.

    Raises:
        ValueError: where `num_bins` is not 1 to 999, or `bound` not positive.

    Source: neural spline flows, Durkan, Bekasov, Murray, Papamakarios 2019, arXiv 1906.04032.
    """

    num_bins: int = eqx.field(static=True, default=8)
    bound: float = eqx.field(static=True, default=5.0)
    num_params: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        if not 1 <= self.num_bins < 1 / _MIN_BIN:
            raise ValueError(f"RationalQuadraticSpline expected 1 to 999 bins, got {self.num_bins}")
        if not self.bound > 0:
            raise ValueError(f"RationalQuadraticSpline expected bound > 0, got {self.bound}")
        self.num_params = 3 * self.num_bins - 1

    def transform_and_log_derivative(
        self, x: Float[Array, "*shape"], params: Float[Array, "*shape num_params"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        inside = jnp.abs(x) < self.bound
        x_in = jnp.where(inside, x, 0.0)  # so that neither branch of the last `where` makes a NaN gradient
        knots_x, knots_y, slopes = self._knots(params)
        y, log_derivative = spline_forward(x_in, knots_x, knots_y, slopes)
        return jnp.where(inside, y, x), jnp.where(inside, log_derivative, 0.0)

    def inverse_and_log_derivative(
        self, y: Float[Array, "*shape"], params: Float[Array, "*shape num_params"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        inside = jnp.abs(y) < self.bound
        y_in = jnp.where(inside, y, 0.0)
        knots_x, knots_y, slopes = self._knots(params)
        x, log_derivative = spline_inverse(y_in, knots_x, knots_y, slopes)
        return jnp.where(inside, x, y), jnp.where(inside, log_derivative, 0.0)

    def _knots(self, params: Array) -> tuple[Array, Array, Array]:
        """Knots' x, y and derivatives, each with a last axis of length `num_bins + 1`."""
        k = self.num_bins
        widths, heights, slopes = jnp.split(params, [k, 2 * k], axis=-1)
        ones = jnp.ones_like(widths[..., :1])
        xs, ys = knot_positions(widths, self.bound), knot_positions(heights, self.bound)
        return xs, ys, jnp.concatenate([ones, knot_slopes(slopes), ones], axis=-1)


def knot_positions(sizes: Float[Array, "*shape bins"], bound: float) -> Array:
    """Knots on `[-bound, bound]`, one more than bins: the bins' sizes are the softmax of `sizes`, or nearly so."""
    shares = _MIN_BIN + (1 - _MIN_BIN * sizes.shape[-1]) * jax.nn.softmax(sizes, axis=-1)
    inner = 2 * bound * jnp.cumsum(shares[..., :-1], axis=-1) - bound
    end = jnp.full_like(shares[..., :1], bound)
    return jnp.concatenate([-end, inner, end], axis=-1)


def knot_slopes(raw: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Positive derivatives at knots; 1 for 0."""
    return _MIN_SLOPE + jax.nn.softplus(raw + jnp.log(jnp.expm1(1 - _MIN_SLOPE)))


def spline_forward(
    x: Float[Array, "*shape"], knots_x: Array, knots_y: Array, slopes: Array
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """`y` and `log dy/dx` between the first knot and the last; knots and slopes on a last axis."""
    x0, w, y0, h, d0, d1 = _pick(knots_x, x, knots_x, knots_y, slopes)
    return _piece((x - x0) / w, w, y0, h, d0, d1)


def spline_inverse(
    y: Float[Array, "*shape"], knots_x: Array, knots_y: Array, slopes: Array
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """`x` and `log dx/dy` between the first knot and the last."""
    x0, w, y0, h, d0, d1 = _pick(knots_y, y, knots_x, knots_y, slopes)
    # a t^2 + b t + c = 0, by the form of the root that cancels nothing; rounding may push the discriminant below 0
    s, up = h / w, y - y0
    a = h * (s - d0) + up * (d0 + d1 - 2 * s)
    b = h * d0 - up * (d0 + d1 - 2 * s)
    c = -s * up
    root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, jnp.finfo(y.dtype).tiny))
    q = -0.5 * jnp.where(b < 0, b - root, b + root)
    t = jnp.where(b < 0, q, c) / jnp.where(b < 0, a, q)
    return x0 + t * w, -_piece(t, w, y0, h, d0, d1)[1]


def _pick(knots: Array, value: Array, xs: Array, ys: Array, slopes: Array) -> tuple[Array, ...]:
    """The bin of `value` among `knots`: its left x, width, lower y, height, left and right derivative."""
    above = value[..., None] >= knots[..., :-1]
    # a one-hot row contracts faster than a gather
    one_hot = above & jnp.concatenate([~above[..., 1:], jnp.ones_like(above[..., :1])], axis=-1)

    def at(a: Array) -> Array:
        return jnp.where(one_hot, a, 0.0).sum(-1)

    return (
        at(xs[..., :-1]),
        at(jnp.diff(xs, axis=-1)),
        at(ys[..., :-1]),
        at(jnp.diff(ys, axis=-1)),
        at(slopes[..., :-1]),
        at(slopes[..., 1:]),
    )


def _piece(t: Array, w: Array, y0: Array, h: Array, d0: Array, d1: Array) -> tuple[Array, Array]:
    s, mix = h / w, t * (1 - t)
    denominator = s + (d0 + d1 - 2 * s) * mix
    y = y0 + h * (s * t**2 + d0 * mix) / denominator
    derivative = s**2 * (d1 * t**2 + 2 * s * mix + d0 * (1 - t) ** 2)
    return y, jnp.log(derivative) - 2 * jnp.log(denominator)
