"""A univariate map that makes tails heavier or lighter, each side by itself."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_flows.bijections.univariate import AbstractUnivariate


class SinhArcsinh(AbstractUnivariate):
    """`y = sinh(p(arcsinh(x)))` with `p(t) = a t + b (sqrt(t^2 + 1) - 1)`, whose slope goes from `l` to `r`.

    With `a = (r + l) / 2`, `b = (r - l) / 2` and positive powers `l`, `r`, far out `|y|` grows like `|x|^l` on the left
    and `|x|^r` on the right. A power of 2 turns a Gaussian tail into the exponential one that a half-Cauchy scale has
    on the log scale. Analytic, both directions in closed form. `params` are `log l` and `log r`, bounded by
    `max_log_power` through a tanh.

    Raises:
        ValueError: where `max_log_power` is not positive.

    Source: Jones and Pewsey 2009, Biometrika 96(4), whose map has one power for both sides.
    """

    max_log_power: float = eqx.field(static=True, default=1.1)
    num_params: int = eqx.field(static=True, default=2, init=False)

    def __check_init__(self):
        if not self.max_log_power > 0:
            raise ValueError(f"SinhArcsinh expected max_log_power > 0, got {self.max_log_power}")

    def transform_and_log_derivative(
        self, x: Float[Array, "*shape"], params: Float[Array, "*shape num_params"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        a, b = self._coefficients(params)
        t = jnp.arcsinh(x)
        root = jnp.sqrt(t**2 + 1.0)
        p = a * t + b * (root - 1.0)
        return jnp.sinh(p), _log_cosh(p) + jnp.log(a + b * t / root) - _log_cosh(t)

    def inverse_and_log_derivative(
        self, y: Float[Array, "*shape"], params: Float[Array, "*shape num_params"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        a, b = self._coefficients(params)
        p = jnp.arcsinh(y)
        # p + b - a t = b sqrt(t^2 + 1) has the root t = (a q - b s) / c; where that cancels, another form of it
        q, c = p + b, a**2 - b**2
        s = jnp.sqrt(q**2 + c)
        cancels = b * q > 0
        t = jnp.where(cancels, p * (q + b) / jnp.where(cancels, a * q + b * s, 1.0), (a * q - b * s) / c)
        root = jnp.sqrt(t**2 + 1.0)
        return jnp.sinh(t), _log_cosh(t) - _log_cosh(p) - jnp.log(a + b * t / root)

    def _coefficients(self, params: Float[Array, "*shape num_params"]) -> tuple[Array, Array]:
        powers = jnp.exp(self.max_log_power * jnp.tanh(params / self.max_log_power))
        left, right = powers[..., 0], powers[..., 1]
        return 0.5 * (right + left), 0.5 * (right - left)


def _log_cosh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.logaddexp(x, -x) - jnp.log(2.0)
