"""The triangular core of Sylvester flows."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_flows.arguments import require_key
from numpyro_flows.bijections.autoregressive import AbstractAutoregressive
from numpyro_flows.bijections.root import Values
from numpyro_flows.bijections.univariate import AbstractNumericalUnivariate, AbstractUnivariate, Params
from numpyro_flows.networks import Parameters

_MAX_DIAGONAL = 0.99  # of A and B: the slope of the map of a coordinate stays above 0.02


class Sylvester(AbstractAutoregressive):
    """`y = x + A tanh(B x + b)`, where `A` and `B` are upper-triangular and the products of their diagonals exceed -1.

    This is a planar flow with as many units as coordinates. Coordinate `i` depends on those after it, so it is an
    autoregressive layer in the reversed order. Between an orthogonal map and its inverse it is the Sylvester flow
    `x + Q A tanh(B Q^T x + b)`. It starts as the identity, with `A = 0`.

    Args and errors are those of `Planar`. Source: van den Berg, Hasenclever, Tomczak, Welling 2018, arXiv 1803.05649.

    Example:
        >>> import jax
        >>> from numpyro_flows.bijections import Sylvester
        >>> Sylvester(jax.random.key(0), 2).transform(jax.numpy.array([1.0, 2.0])).round(2).tolist()
        [1.0, 2.0]
    """

    univariate: AbstractUnivariate
    parameters: Parameters
    depth: int = eqx.field(static=True)

    def __init__(self, key: PRNGKeyArray, dim: int, *, cond_dim: int | None = None, hidden: Sequence[int] = (32, 32)):
        require_key(key, "key")
        self._set_dims(dim, cond_dim)
        b_key, network_key = jax.random.split(key)
        b = jax.random.normal(b_key, (dim, dim)) / np.sqrt(dim)
        start = jnp.concatenate([jnp.zeros(dim * dim), b.ravel(), jnp.zeros(dim)])
        self.parameters = Parameters(network_key, start, cond_dim, hidden)
        self.univariate = _Ridge()
        self.depth = dim

    def _params(self, x: Float[Array, " dim"], condition: Array | None) -> Float[Array, "dim num_params"]:
        dim = x.size
        numbers = self.parameters(condition)
        a, b = numbers[: 2 * dim**2].reshape(2, dim, dim)
        a_diagonal, b_diagonal = (_MAX_DIAGONAL * jnp.tanh(jnp.diagonal(m)) for m in (a, b))
        inner = jnp.triu(b, 1) @ x + numbers[2 * dim**2 :]
        outer = jnp.triu(a, 1) @ jnp.tanh(inner + b_diagonal * x)
        return jnp.stack([a_diagonal, b_diagonal, inner, outer], axis=1)


class _Ridge(AbstractNumericalUnivariate):
    """`y = x + a tanh(b x + c) + d` for `|a b| < 1`; `params = (a, b, c, d)`."""

    num_params: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.num_params = 4

    def transform_and_log_derivative(self, x: Values, params: Params) -> tuple[Values, Values]:
        a, b, c, d = jnp.moveaxis(params, -1, 0)
        ridge = jnp.tanh(b * x + c)
        return x + a * ridge + d, jnp.log1p(a * b * (1 - ridge**2))
