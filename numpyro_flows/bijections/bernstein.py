"""The monotone Bernstein polynomial as a univariate map."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import comb

from numpyro_flows.arguments import require_counts, require_numbers
from numpyro_flows.bijections.root import Values
from numpyro_flows.bijections.univariate import AbstractNumericalUnivariate, Params

_MIN_STEP = 1e-3  # smallest difference of two coefficients, as a share of the identity's


class Bernstein(AbstractNumericalUnivariate):
    """`y = sum_k c_k B_k(t)`, `t = (x + bound) / (2 bound)`: a polynomial of degree n with increasing coefficients `c`.

    `B_k(t) = C(n, k) t^k (1 - t)^(n - k)` are the Bernstein polynomials, so increasing coefficients give an increasing
    map. Outside `[-bound, bound]` the map continues as a straight line with the slope at the end, so it is onto the
    reals and C1. `params` are a shift and the n differences of the coefficients before their softplus; zeros give the
    identity.

    Args:
        degree: degree of the polynomial.
        bound: half of the interval's length.

    Raises:
        ValueError: if `degree` is not 1 to 50, or `bound` is not positive.
        RuntimeError: (from `eqx.error_if`) if an inverse, which is numerical, did not converge.

    Source: Ramasinghe, Fernando, Khan, Barnes 2022, arXiv 2102.03509.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Bernstein
        >>> univariate = Bernstein(degree=6)
        >>> params = jnp.zeros(univariate.num_params).at[0].set(1.0)  # a shift by 1
        >>> y, _ = univariate.transform_and_log_derivative(jnp.array(2.0), params)
        >>> round(float(y), 2)
        3.0
    """

    degree: int = eqx.field(static=True, default=12)
    bound: float = eqx.field(static=True, default=5.0)
    num_params: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.__check_init__()
        self.num_params = self.degree + 1

    def __check_init__(self):  # also checks objects loaded from a file
        require_counts(1, 50, degree=self.degree)
        require_numbers("(0, inf)", bound=self.bound)

    def transform_and_log_derivative(self, x: Values, params: Params) -> tuple[Values, Values]:
        steps = _MIN_STEP + (1 - _MIN_STEP) * jax.nn.softplus(params[..., 1:] + math.log(math.e - 1))  # 1 for zeros
        width = 2 * self.bound / self.degree
        inside = jnp.clip(x, -self.bound, self.bound)
        # rounding must not bring t past its ends, where the polynomial may fall
        t = jnp.clip((inside + self.bound) / (2 * self.bound), 0.0, 1.0)
        # the derivative is the polynomial of degree n - 1 of the steps, and the value that of their sums
        slope = jnp.sum(_basis(t, self.degree - 1) * steps, axis=-1)
        first = jnp.zeros_like(steps[..., :1])
        sums = jnp.concatenate([first, jnp.cumsum(steps, axis=-1)], axis=-1)
        value = jnp.sum(_basis(t, self.degree) * sums, axis=-1) * width - self.bound
        return params[..., 0] + value + slope * (x - inside), jnp.log(slope)


def _basis(t: Values, degree: int) -> Float[Array, "*shape terms"]:
    shape = (*t.shape, degree + 1)
    k = np.broadcast_to(np.arange(degree + 1), shape)
    coefficients = jnp.asarray(comb(degree, k), t.dtype)
    t = jnp.broadcast_to(t[..., None], shape)
    return coefficients * t**k * (1 - t) ** (degree - k)
