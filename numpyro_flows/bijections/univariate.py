"""Transformers: monotone maps of one coordinate, whose parameters a conditioner gives."""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float


class AbstractUnivariate(eqx.Module):
    """A monotone map `y = f(x; params)` of one coordinate; parameters of zero give the identity.

    Both methods work elementwise: `x` has any shape, `params` that shape with one more axis of length `num_params`
    behind, and the log-derivative the shape of `x`. Any scheme (coupling, autoregressive) takes any of these.
    """

    num_params: AbstractVar[int]

    @abstractmethod
    def transform_and_log_derivative(
        self, x: Float[Array, "*shape"], params: Float[Array, "*shape num_params"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]: ...

    @abstractmethod
    def inverse_and_log_derivative(
        self, y: Float[Array, "*shape"], params: Float[Array, "*shape num_params"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]: ...


class AffineUnivariate(AbstractUnivariate):
    """`y = exp(s) x + t` with a bounded log-scale `s = c tanh(r / c)`; `params = (r, t)`.

    The bound `c = max_log_scale` keeps a deep stack finite; what scale it cannot reach is the work of the affine
    layer around the flow. Log-scales without a bound are the commonest cause of NaN in trained RealNVPs.

    Source: RealNVP, Dinh, Sohl-Dickstein, Bengio 2017, arXiv 1605.08803.
    """

    max_log_scale: float = eqx.field(static=True, default=2.0)
    num_params: int = eqx.field(static=True, default=2, init=False)

    def transform_and_log_derivative(
        self, x: Float[Array, "*shape"], params: Float[Array, "*shape num_params"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        log_scale, shift = self._log_scale(params), params[..., 1]
        return jnp.exp(log_scale) * x + shift, log_scale

    def inverse_and_log_derivative(
        self, y: Float[Array, "*shape"], params: Float[Array, "*shape num_params"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        log_scale, shift = self._log_scale(params), params[..., 1]
        return jnp.exp(-log_scale) * (y - shift), -log_scale

    def _log_scale(self, params: Float[Array, "*shape num_params"]) -> Float[Array, "*shape"]:
        return self.max_log_scale * jnp.tanh(params[..., 0] / self.max_log_scale)


class SinhArcsinh(AbstractUnivariate):
    """`y = sinh(d arcsinh(x) + e)`: skewness `e` and weight of the tails `d = exp(c tanh(r / c))`; `params = (r, e)`.

    A Gaussian `x` of `d < 1` gets lighter, of `d > 1` heavier tails: like `exp(-|y|^(2/d) / 2)`, so exponential at
    `d = 2`, which `c = max_log_weight` allows and a little more. Smooth, and both directions have closed forms.

    Source: Jones and Pewsey 2009, Biometrika 96(4).
    """

    max_log_weight: float = eqx.field(static=True, default=1.0)
    num_params: int = eqx.field(static=True, default=2, init=False)

    def transform_and_log_derivative(
        self, x: Float[Array, "*shape"], params: Float[Array, "*shape num_params"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        log_weight, skew = self._weight_and_skew(params)
        u = jnp.exp(log_weight) * jnp.arcsinh(x) + skew
        return jnp.sinh(u), log_weight + _log_cosh(u) - 0.5 * jnp.log1p(x**2)

    def inverse_and_log_derivative(
        self, y: Float[Array, "*shape"], params: Float[Array, "*shape num_params"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        log_weight, skew = self._weight_and_skew(params)
        u = jnp.exp(-log_weight) * (jnp.arcsinh(y) - skew)
        return jnp.sinh(u), -log_weight + _log_cosh(u) - 0.5 * jnp.log1p(y**2)

    def _weight_and_skew(self, params: Float[Array, "*shape num_params"]) -> tuple[Array, Array]:
        return self.max_log_weight * jnp.tanh(params[..., 0] / self.max_log_weight), params[..., 1]


def _log_cosh(x: Array) -> Array:
    return jnp.abs(x) + jnp.log1p(jnp.exp(-2 * jnp.abs(x))) - jnp.log(2.0)
