"""The block neural autoregressive layer: one monotone network for all coordinates, in blocks."""

import itertools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_flows.arguments import as_widths, require_key
from numpyro_flows.bijections.autoregressive import AbstractAutoregressive
from numpyro_flows.bijections.root import Values
from numpyro_flows.bijections.univariate import AbstractNumericalUnivariate, AbstractUnivariate, Params
from numpyro_flows.networks import draw_normals

_LEAK = 0.1  # smallest slope of the activation
_GATE = -2.0  # initial gate: the network's share is sigmoid(-2) = 0.12
_SPREAD = 0.1  # initial spread of the log of positive weights


class BlockAutoregressive(AbstractAutoregressive):
    """`y = (1 - g) x + g h(x)`, where block `i` of the network `h` depends on `x_1 ... x_i` and increases in `x_i`.

    Between layers, weights from block `j` to block `i` are free for `j < i`, positive for `j = i` and zero for `j > i`.
    The activation `0.1 t + 0.9 tanh(t)` is smooth and onto the reals, and so is the layer. A layer with tanh alone is
    not, and its density does not integrate to 1. For coordinate `i` the layer is a univariate map, a small monotone
    network, whose offsets depend on the coordinates before. So its inverse is that of any autoregressive layer. The
    layer starts near the identity: the gate lets in 12% of the network.

    Args:
        key: random key of the weights.
        dim: number of coordinates.
        cond_dim: length of the condition, None without one.
        hidden: numbers of units for each coordinate in the hidden layers.

    Raises:
        ValueError: if `dim` is below 1 or there is no hidden layer.
        RuntimeError: (from `eqx.error_if`) if an inverse, which is numerical, did not converge.

    Source: De Cao, Titov, Aziz 2019, arXiv 1904.04676.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows.bijections import BlockAutoregressive
        >>> layer = BlockAutoregressive(jax.random.key(0), 3, hidden=(4,))
        >>> layer.transform(jax.numpy.ones(3)).shape
        (3,)
    """

    univariate: AbstractUnivariate
    weights: tuple[Float[Array, "_ _"], ...]
    masks: tuple[Bool[Array, "_ _"], ...]
    log_blocks: tuple[Float[Array, "dim _ _"], ...]
    biases: tuple[Float[Array, "dim _"], ...]
    condition_weight: Float[Array, "_ _"]
    gate: Float[Array, " dim"]
    depth: int = eqx.field(static=True)

    def __init__(self, key: PRNGKeyArray, dim: int, *, cond_dim: int | None = None, hidden: Sequence[int] = (8, 8)):
        require_key(key, "key")
        self._set_dims(dim, cond_dim)
        if not (hidden := as_widths(hidden)):
            raise ValueError("hidden expected at least one width, got none")
        sizes = list(itertools.pairwise([1, *hidden, 1]))
        before = np.tri(dim, k=-1)
        shapes = [shape for m, n in sizes for shape in ((dim * m, dim * n), (dim, m, n), (dim, n))]
        *drawn, condition = draw_normals(key, [*shapes, (cond_dim or 0, dim * hidden[0])])
        self.masks = tuple(jnp.asarray(np.kron(before, np.ones((n, m))).T, bool) for m, n in sizes)
        self.weights = tuple(
            jnp.where(mask, w, 0.0) / np.sqrt(dim * m) for w, mask, (m, _) in zip(drawn[0::3], self.masks, sizes)
        )
        self.log_blocks = tuple(_SPREAD * w - np.log(m) for w, (m, _) in zip(drawn[1::3], sizes))
        # biases make the hidden units differ; the last layer has none
        self.biases = (*drawn[2::3][:-1], jnp.zeros((dim, 1)))
        self.condition_weight = condition / np.sqrt(max(cond_dim or 0, 1))
        self.gate = jnp.full(dim, _GATE, jnp.result_type(float))
        self.univariate = _MonotoneNetwork(tuple(hidden))
        self.depth = dim

    def _params(self, x: Float[Array, " dim"], condition: Array | None) -> Float[Array, "dim num_params"]:
        return self._run(x, condition)[2]

    def _elementwise(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Array]:
        # not from the parameters: a batch would copy the positive weights, which are the same for all
        return self._run(x, condition)[:2]

    def _run(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Array, Array]:
        """`y`, `log dy_i/dx_i`, and the univariate map's parameters."""
        dim = x.size
        a, slope, params = x[:, None], jnp.ones((dim, 1), x.dtype), [self.gate[:, None]]
        for i, (weight, mask, log_block, bias) in enumerate(
            zip(self.weights, self.masks, self.log_blocks, self.biases)
        ):
            if i > 0:
                slope = slope * _activation_slope(a)
                a = _activation(a)
            offset = (a.ravel() @ jnp.where(mask, weight, 0.0)).reshape(dim, -1) + bias
            if i == 0 and condition is not None:
                offset = offset + (condition @ self.condition_weight).reshape(dim, -1)
            block = jnp.exp(log_block)
            params += [block.reshape(dim, -1), offset]
            a = jnp.einsum("im,imn->in", a, block) + offset
            slope = jnp.einsum("im,imn->in", slope, block)
        share = jax.nn.sigmoid(self.gate)
        y = (1 - share) * x + share * a[:, 0]
        return y, jnp.log((1 - share) + share * slope[:, 0]), jnp.concatenate(params, axis=1)


class _MonotoneNetwork(AbstractNumericalUnivariate):
    """`y = (1 - g) x + g h(x)` with a network `h` of positive weights; `params`: gate, layers' weights, offsets."""

    hidden: tuple[int, ...] = eqx.field(static=True)
    num_params: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.num_params = 1 + sum(m * n + n for m, n in itertools.pairwise([1, *self.hidden, 1]))

    def transform_and_log_derivative(self, x: Values, params: Params) -> tuple[Values, Values]:
        a, slope, start = x[..., None], jnp.ones((*x.shape, 1), x.dtype), 1
        for m, n in itertools.pairwise([1, *self.hidden, 1]):
            if start > 1:
                slope = slope * _activation_slope(a)
                a = _activation(a)
            block = params[..., start : start + m * n].reshape(*x.shape, m, n)
            offset = params[..., start + m * n : start + m * n + n]
            # sums of positive numbers: nothing cancels in the slope
            a = jnp.einsum("...m,...mn->...n", a, block) + offset
            slope = jnp.einsum("...m,...mn->...n", slope, block)
            start += m * n + n
        share = jax.nn.sigmoid(params[..., 0])
        y = (1 - share) * x + share * a[..., 0]
        return y, jnp.log((1 - share) + share * slope[..., 0])


def _activation(t: Values) -> Values:
    return _LEAK * t + (1 - _LEAK) * jnp.tanh(t)


def _activation_slope(t: Values) -> Values:
    return _LEAK + (1 - _LEAK) * (1 - jnp.tanh(t) ** 2)
