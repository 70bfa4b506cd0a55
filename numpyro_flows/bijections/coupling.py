"""The coupling scheme: one half of the coordinates determines the map of the other half."""

from collections.abc import Callable, Sequence
from typing import override

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, Scalar

from numpyro_flows.arguments import require_instance, require_key
from numpyro_flows.bijections.autoregressive import checked_adjacency
from numpyro_flows.bijections.base import AbstractShaped
from numpyro_flows.bijections.univariate import AbstractUnivariate
from numpyro_flows.networks import MLP, MaskedMLP, OnCircle


class Coupling(AbstractShaped):
    """`y_1 = x_1`, `y_2 = f(x_2; g(x_1, condition))` with a univariate map `f` and a perceptron `g` as the conditioner.

    `x_1` is the first `dim // 2` coordinates; alternate with permutations to move all. The Jacobian is triangular, so
    both directions take one pass. In one dimension `x_1` is empty, and the layer is a trained univariate map.

    Args:
        key: random key of the conditioner.
        dim: number of coordinates.
        univariate: map of each coordinate of `x_2`.
        cond_dim: length of the condition, None without one.
        hidden: widths of the conditioner's hidden layers.
        adjacency: `adjacency[i, j]` says whether coordinate `i` may depend on `j`; all by default.

    Raises:
        ValueError: if `dim` is below 1, or `adjacency` is not `(dim, dim)`.

    Source: NICE, Dinh, Krueger, Bengio 2015, arXiv 1410.8516.

    Example:
        >>> import jax
        >>> from numpyro_flows.bijections import AffineUnivariate, Coupling
        >>> layer = Coupling(jax.random.key(0), 4, AffineUnivariate(), cond_dim=1)
        >>> layer.transform(jax.numpy.ones(4), jax.numpy.zeros(1)).shape
        (4,)
    """

    univariate: AbstractUnivariate
    conditioner: Callable[[Array], Array]

    def __init__(
        self,
        key: PRNGKeyArray,
        dim: int,
        univariate: AbstractUnivariate,
        *,
        cond_dim: int | None = None,
        hidden: Sequence[int] = (32, 32),
        adjacency: Bool[ArrayLike, "dim dim"] | None = None,
    ):
        require_key(key, "key")
        self._set_dims(dim, cond_dim)
        require_instance(AbstractUnivariate, "bijections.AffineUnivariate()", univariate=univariate)
        split = dim // 2
        self.univariate = univariate
        copies = 2 if univariate.periodic else 1  # an angle is seen as its cosine and its sine
        if adjacency is None:
            seen = copies * split + (cond_dim or 0)
            network = MLP(key, seen, (dim - split) * univariate.num_params, hidden)
        else:
            allowed = checked_adjacency(adjacency, dim)[split:, :split]
            network = MaskedMLP(key, jnp.tile(allowed, copies), univariate.num_params, hidden, cond_dim or 0)
        self.conditioner = OnCircle(network, split) if univariate.periodic else network

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        x1, x2, params = self._split(x, condition)
        y2, log_derivative = self.univariate.transform_and_log_derivative(x2, params)
        return jnp.concatenate([x1, y2]), log_derivative.sum()

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        y1, y2, params = self._split(y, condition)
        x2, log_derivative = self.univariate.inverse_and_log_derivative(y2, params)
        return jnp.concatenate([y1, x2]), log_derivative.sum()

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        # J^T score_y = score_x - grad log_det, solved block by block: first y_2, whose block of J is diagonal.
        x1, x2 = jnp.split(x, [x.size // 2])
        score1, score2 = jnp.split(score, [x.size // 2])
        params, conditioner_vjp = jax.vjp(lambda x1: self._params(x1, x2.size, condition), x1)
        (y2, log_derivative), univariate_vjp = jax.vjp(self.univariate.transform_and_log_derivative, x2, params)
        grad_log_det, _ = univariate_vjp((jnp.zeros_like(y2), jnp.ones_like(y2)))
        score2 = (score2 - grad_log_det) * jnp.exp(-log_derivative)
        _, params_cotangent = univariate_vjp((score2, jnp.ones_like(y2)))
        score1 = score1 - conditioner_vjp(params_cotangent)[0]
        return jnp.concatenate([x1, y2]), log_derivative.sum(), jnp.concatenate([score1, score2])

    def _split(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Array, Array]:
        x1, x2 = jnp.split(x, [x.size // 2])
        return x1, x2, self._params(x1, x2.size, condition)

    def _params(self, x1: Array, num_transformed: int, condition: Array | None) -> Array:
        seen = x1 if condition is None else jnp.concatenate([x1, condition])
        return self.conditioner(seen).reshape(num_transformed, self.univariate.num_params)
