"""A univariate map applied to every coordinate."""

from typing import override

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from numpyro_flows.arguments import require_instance
from numpyro_flows.bijections.base import AbstractShaped
from numpyro_flows.bijections.univariate import AbstractUnivariate


class Elementwise(AbstractShaped):
    """`y_i = f(x_i; params_i)` with a univariate map `f`; the trained `params` start at zero, the identity.

    Args:
        dim: number of coordinates.
        univariate: map of each coordinate.

    Example:
        >>> from numpyro_flows.bijections import Elementwise, SinhArcsinh
        >>> Elementwise(3, SinhArcsinh()).params.shape
        (3, 2)
    """

    univariate: AbstractUnivariate
    params: Float[Array, "dim num_params"]

    def __init__(self, dim: int, univariate: AbstractUnivariate):
        self._set_dims(dim)
        require_instance(AbstractUnivariate, "bijections.SinhArcsinh()", univariate=univariate)
        self.univariate = univariate
        self.params = jnp.zeros((dim, univariate.num_params))

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        y, log_derivative = self.univariate.transform_and_log_derivative(x, self.params)
        return y, log_derivative.sum()

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        x, log_derivative = self.univariate.inverse_and_log_derivative(y, self.params)
        return x, log_derivative.sum()

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        (y, log_derivative), vjp = jax.vjp(lambda x: self.univariate.transform_and_log_derivative(x, self.params), x)
        (grad_log_det,) = vjp((jnp.zeros_like(y), jnp.ones_like(y)))
        return y, log_derivative.sum(), (score - grad_log_det) * jnp.exp(-log_derivative)
