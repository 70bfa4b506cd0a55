"""A univariate map of angles."""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from numpyro_flows.arguments import require_counts
from numpyro_flows.bijections.root import Values
from numpyro_flows.bijections.spline import spline_forward, spline_inverse
from numpyro_flows.bijections.univariate import AbstractUnivariate, Params


class CircularSpline(AbstractUnivariate):
    """`y = wrap(f(wrap(x)) + phase)` on the circle: `f` is a rational-quadratic spline of `[-pi, pi]` onto itself.

    The derivatives of `f` at both ends are one parameter, so the map is C1 on the circle, but not C2: prefer smooth
    maps under Hamiltonian samplers. The phase turns by any angle. Angles are in `[-pi, pi)`; all others are wrapped
    into it first, so this is a bijection of the circle, not of the reals. Its flow needs a base on the circle, for
    example the uniform density. `params` are those of a `RationalQuadraticSpline` with one more derivative, then the
    phase; zeros give the identity of the circle.

    Args:
        num_bins: number of pieces.

    Raises:
        ValueError: if `num_bins` is not 1 to 999.

    Source: circular splines, Rezende, Papamakarios, Racaniere, Albergo, Kanwar, Shanahan, Cranmer 2020,
    arXiv 2002.02428.

    Example:
        >>> import jax.numpy as jnp  # doctest: +SLOW
        >>> from numpyro_flows.bijections import CircularSpline
        >>> univariate = CircularSpline(num_bins=4)
        >>> params = jnp.zeros(univariate.num_params).at[-1].set(jnp.pi / 2)  # a turn by a right angle
        >>> y, _ = univariate.transform_and_log_derivative(jnp.array(0.75 * jnp.pi), params)
        >>> round(float(y / jnp.pi), 2)
        -0.75
    """

    num_bins: int = eqx.field(static=True, default=8)
    num_params: int = eqx.field(static=True, init=False)
    periodic: ClassVar[bool] = True

    def __post_init__(self):
        self.__check_init__()
        self.num_params = 3 * self.num_bins + 1

    def __check_init__(self):  # also checks objects loaded from a file
        require_counts(1, 999, num_bins=self.num_bins)

    def transform_and_log_derivative(self, x: Values, params: Params) -> tuple[Values, Values]:
        y, log_derivative = spline_forward(wrap(x), *self._split(params), math.pi)
        return wrap(y + params[..., -1]), log_derivative

    def inverse_and_log_derivative(self, y: Values, params: Params) -> tuple[Values, Values]:
        x, log_derivative = spline_inverse(wrap(y - params[..., -1]), *self._split(params), math.pi)
        return wrap(x), log_derivative

    def _split(self, params: Params) -> tuple[Array, Array, Array]:
        k = self.num_bins
        widths, heights, slopes = (params[..., i * k : (i + 1) * k] for i in range(3))
        return widths, heights, jnp.concatenate([slopes, slopes[..., :1]], axis=-1)


def wrap(angle: Values) -> Values:
    """The same angle within `[-pi, pi)`, unchanged if it was there."""
    wrapped = angle - 2 * math.pi * jnp.floor((angle + math.pi) / (2 * math.pi))
    # rounding may leave it just outside
    wrapped = jnp.where(wrapped < -math.pi, wrapped + 2 * math.pi, wrapped)
    return jnp.where(wrapped >= math.pi, wrapped - 2 * math.pi, wrapped)
