"""The autoregressive scheme: the map of each coordinate depends on the coordinates before it."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import override

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, Scalar

from numpyro_flows.arguments import as_numbers, require_cond_dim, require_counts, require_instance, require_key
from numpyro_flows.bijections.base import AbstractShaped
from numpyro_flows.bijections.sweeps import fixed_point, solve_triangular_by_sweeps
from numpyro_flows.bijections.univariate import AbstractUnivariate
from numpyro_flows.networks import MaskedMLP, OnCircle


class AbstractAutoregressive(AbstractShaped):
    """`y_i = f(x_i; g_i(x))`: `f` is a univariate map, `g_i` a function of the coordinates before `i` in some order.

    The transform is one pass. The inverse solves for all coordinates at once by sweeps (`fixed_point`). It is exact
    after `depth` sweeps, the length of the longest chain of dependence, and its gradients are implicit. `Invert` makes
    the inverse the fast direction.
    """

    univariate: AbstractVar[AbstractUnivariate]
    depth: AbstractVar[int]

    @abstractmethod
    def _params(self, x: Float[Array, " dim"], condition: Array | None) -> Float[Array, "dim num_params"]:
        """The univariate map's parameters; row `i` is a function of the coordinates before `i`."""

    def _elementwise(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Array]:
        return self.univariate.transform_and_log_derivative(x, self._params(x, condition))

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        y, log_derivative = self._elementwise(x, condition)
        return y, log_derivative.sum()

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        x = fixed_point(lambda x: self.univariate.inverse(y, self._params(x, condition)), y, self.depth)
        x, log_derivative = self.univariate.inverse_and_log_derivative(y, self._params(x, condition))
        return x, log_derivative.sum()

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        (y, log_derivative), vjp = jax.vjp(lambda x: self._elementwise(x, condition), x)
        (grad_log_det,) = vjp((jnp.zeros_like(y), jnp.ones_like(y)))
        score = solve_triangular_by_sweeps(
            lambda v: vjp((v, jnp.zeros_like(v)))[0], jnp.exp(log_derivative), score - grad_log_det, self.depth
        )
        return y, log_derivative.sum(), score


class Autoregressive(AbstractAutoregressive):
    """`y_i = f(x_i; g_i(x, condition))` with a network for `g`.

    Args:
        conditioner: function from the vector `(x, condition)` to a vector of length `dim * num_params`. In some order
            of the coordinates, block `i` depends on no coordinate from `i` on.
        univariate: map of each coordinate.
        dim: number of coordinates.
        cond_dim: length of the condition, None without one.
        depth: length of the longest chain of coordinates, each of which depends on the one before.

    Source: Kingma et al. 2016, arXiv 1606.04934; Papamakarios, Pavlakou, Murray 2017, arXiv 1705.07057.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Autoregressive, ShiftUnivariate
        >>> sums = Autoregressive(lambda x: jnp.array([0.0, x[0]]), ShiftUnivariate(), 2, depth=2)
        >>> sums.transform(jnp.array([1.0, 2.0])).tolist()
        [1.0, 3.0]
    """

    univariate: AbstractUnivariate
    conditioner: Callable[[Array], Array]
    depth: int = eqx.field(static=True)

    def __init__(
        self,
        conditioner: Callable[[Array], Array],
        univariate: AbstractUnivariate,
        dim: int,
        *,
        cond_dim: int | None = None,
        depth: int,
    ):
        self._set_dims(dim, cond_dim)
        require_counts(depth=depth)
        require_instance(AbstractUnivariate, "bijections.AffineUnivariate()", univariate=univariate)
        self.univariate = univariate
        self.conditioner = conditioner
        self.depth = depth

    def _params(self, x: Float[Array, " dim"], condition: Array | None) -> Float[Array, "dim num_params"]:
        seen = x if condition is None else jnp.concatenate([x, condition])
        return self.conditioner(seen).reshape(x.size, self.univariate.num_params)


def masked_autoregressive(
    key: PRNGKeyArray,
    dim: int,
    univariate: AbstractUnivariate,
    *,
    cond_dim: int | None = None,
    hidden: Sequence[int] = (64, 64),
    passes: int | None = None,
    adjacency: Bool[ArrayLike, "dim dim"] | None = None,
) -> Autoregressive:
    """An `Autoregressive` layer in the natural order whose conditioner is a `MaskedMLP`.

    Args:
        key: random key of the conditioner.
        dim: number of coordinates.
        univariate: map of each coordinate.
        cond_dim: length of the condition, None without one.
        hidden: widths of the conditioner's hidden layers.
        passes: number of groups of coordinates, each of which depends on the groups before it. 2 gives a coupling that
            moves both halves; `dim`, the default, is fully autoregressive. It is also the largest number of sweeps that
            the inverse takes.
        adjacency: `adjacency[i, j]` says whether coordinate `i` may depend on `j`, if the order allows it; all by
            default.

    Raises:
        ValueError: if `dim` or `passes` is out of its range, or `adjacency` has another shape.

    Source: MADE, Germain, Gregor, Murray, Larochelle 2015, arXiv 1502.03509.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows.bijections import AffineUnivariate, masked_autoregressive
        >>> layer = masked_autoregressive(jax.random.key(0), 4, AffineUnivariate(), hidden=(8,), passes=2)
        >>> layer.transform(jax.numpy.ones(4)).shape
        (4,)
    """
    require_key(key, "key")
    passes = dim if passes is None else passes
    require_counts(dim=dim, passes=passes)
    require_cond_dim(cond_dim)
    require_instance(AbstractUnivariate, "bijections.AffineUnivariate()", univariate=univariate)
    if passes > dim:
        raise ValueError(f"passes expected at most dim={dim}, got {passes}")
    group = np.arange(dim) * passes // dim
    allowed = group[:, None] > group[None, :]
    if adjacency is not None:
        allowed = allowed & checked_adjacency(adjacency, dim)
    copies = 2 if univariate.periodic else 1  # an angle is seen as its cosine and its sine
    network = MaskedMLP(key, jnp.tile(allowed, copies), univariate.num_params, hidden, cond_dim or 0)
    network = OnCircle(network, dim) if univariate.periodic else network
    return Autoregressive(network, univariate, dim, cond_dim=cond_dim, depth=passes)


def checked_adjacency(adjacency: ArrayLike, dim: int) -> Bool[Array, "dim dim"]:
    """`adjacency` as a boolean matrix `(dim, dim)`; a TypeError or a ValueError if it is not one."""
    matrix = adjacency if isinstance(adjacency, Tracer) else as_numbers(adjacency, "adjacency")
    if matrix.shape != (dim, dim):
        raise ValueError(f"adjacency expected the shape {(dim, dim)}, got {matrix.shape}")
    if isinstance(matrix, np.ndarray) and not np.isin(matrix, (0, 1)).all():
        raise ValueError("adjacency expected True and False, or 1 and 0, got other numbers")
    return jnp.asarray(matrix, bool)
