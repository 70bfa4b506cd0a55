"""One univariate map for each coordinate, with parameters of its own."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from numpyro_flows.bijections.base import AbstractBijection
from numpyro_flows.bijections.univariate import AbstractUnivariate


class Elementwise(AbstractBijection):
    """`y_i = f(x_i; params_i)` with a univariate map `f` and learned `params`; the identity at the start.

    Args:
        dim: number of coordinates.
        univariate: the map.
    """

    univariate: AbstractUnivariate
    params: Float[Array, "dim num_params"]
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: None = eqx.field(static=True)

    def __init__(self, dim: int, univariate: AbstractUnivariate):
        self.univariate = univariate
        self.params = jnp.zeros((dim, univariate.num_params))
        self.shape = (dim,)
        self.cond_shape = None

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        y, log_derivative = self.univariate.transform_and_log_derivative(x, self.params)
        return y, log_derivative.sum()

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        x, log_derivative = self.univariate.inverse_and_log_derivative(y, self.params)
        return x, log_derivative.sum()
