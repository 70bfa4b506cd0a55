"""Embeddings: networks that map a condition, such as a set, a series, an image or a dict, to a vector."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_flows.arguments import described, require_callable, require_counts, require_key
from numpyro_flows.networks import MLP, draw_normals


class SetEmbedding(eqx.Module):
    """`r(mean_i p(x_i), max_i p(x_i), log(1 + n))`: a vector for a set of `n` members, independent of their order.

    `p` has the members themselves beside the outputs of a perceptron, so that means of members are exact; `r` is a
    perceptron. Call it with an array `(most, num_features)`, or, for sets of different sizes, with a dict of such
    `values` and a boolean `mask` `(most,)`, which is true for members. Values at masked places change nothing, not even
    NaN. An empty set has a vector, too.

    Args:
        key: random key of the weights.
        num_features: numbers in a member.
        out_dim: length of the vector.
        width: width of both perceptrons' layers.

    Raises:
        ValueError: (when called) for arrays of other shapes.

    Source: Zaheer, Kottur, Ravanbakhsh, Poczos, Salakhutdinov, Smola 2017, arXiv 1703.06114.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro_flows.embeddings import SetEmbedding
        >>> embedding = SetEmbedding(jax.random.key(0), 2, out_dim=3)
        >>> two = embedding({"values": jnp.ones((5, 2)), "mask": jnp.arange(5) < 2})
        >>> bool(jnp.allclose(two, embedding(jnp.ones((2, 2))), atol=1e-6))
        True
    """

    each: MLP
    whole: MLP
    num_features: int = eqx.field(static=True)

    def __init__(self, key: PRNGKeyArray, num_features: int, out_dim: int = 16, *, width: int = 64):
        require_key(key, "key")
        require_counts(num_features=num_features, out_dim=out_dim, width=width)
        each_key, whole_key = jax.random.split(key)
        self.each = _perceptron(each_key, num_features, width, width)
        self.whole = _perceptron(whole_key, num_features + 2 * width + 1, out_dim, width)
        self.num_features = num_features

    def __call__(self, condition: Any) -> Float[Array, " out_dim"]:
        values, mask = _values_and_mask(condition, self.num_features)
        features = jax.vmap(self.each)(values)
        number, there = mask.sum(dtype=values.dtype), mask[:, None]
        total = jnp.where(there, jnp.concatenate([values, features], axis=1), 0.0).sum(0)
        largest = jnp.max(features, axis=0, where=there, initial=-jnp.inf)
        largest = jnp.where(jnp.isfinite(largest), largest, 0.0)  # of an empty set
        return self.whole(jnp.concatenate([total / jnp.maximum(number, 1.0), largest, jnp.log1p(number)[None]]))


class SeriesEmbedding(eqx.Module):
    """A vector for a series, which a gated recurrent network reads from start to end.

    Call it with an array `(length, num_features)`, or, for series of different lengths, with a dict of such `values`
    and a boolean `mask` `(length,)`. A masked place leaves the network's state unchanged, whatever its value. The times
    of an irregular series can be one of the features. A perceptron computes the vector from the last state, the mean of
    all states, and the logarithm of 1 plus their number.

    Args:
        key: random key of the weights.
        num_features: numbers at each time.
        out_dim: length of the vector.
        width: width of the network's state and of the perceptron.

    Raises:
        ValueError: (when called) for arrays of other shapes.

    Source: Cho, van Merrienboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio 2014, arXiv 1406.1078.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro_flows.embeddings import SeriesEmbedding
        >>> SeriesEmbedding(jax.random.key(0), 1, out_dim=3)(jnp.ones((50, 1))).shape
        (3,)
    """

    cell: eqx.nn.GRUCell
    head: MLP

    def __init__(self, key: PRNGKeyArray, num_features: int, out_dim: int = 16, *, width: int = 64):
        require_key(key, "key")
        require_counts(num_features=num_features, out_dim=out_dim, width=width)
        cell_key, head_key = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(num_features, width, key=cell_key)
        self.head = _perceptron(head_key, 2 * width + 1, out_dim, width)

    def __call__(self, condition: Any) -> Float[Array, " out_dim"]:
        values, mask = _values_and_mask(condition, self.cell.input_size)

        def step(carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            state, total = carry
            value, there = inputs
            state = jnp.where(there, self.cell(value, state), state)
            return (state, total + jnp.where(there, state, 0.0)), None

        zero = jnp.zeros(self.cell.hidden_size, jnp.result_type(values, self.cell.weight_hh))
        (state, total), _ = jax.lax.scan(step, (zero, zero), (values, mask))
        number = mask.sum(dtype=state.dtype)
        return self.head(jnp.concatenate([state, total / jnp.maximum(number, 1.0), jnp.log1p(number)[None]]))


class ImageEmbedding(eqx.Module):
    """A vector for an image `(channels, height, width)`: convolutions halve it until its sides are at most 4.

    Each convolution has kernels of 3 by 3 and the SiLU. A perceptron computes the vector from the last output. A gray
    image has one channel: pass `images[:, None]`.

    Args:
        key: random key of the weights.
        shape: `(channels, height, width)` of an image.
        out_dim: length of the vector.
        width: channels of the convolutions, and half the width of the perceptron.

    Raises:
        ValueError: for a shape without three axes; (when called) for images of another shape.

    Source: LeCun, Bottou, Bengio, Haffner 1998, Proceedings of the IEEE 86(11).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro_flows.embeddings import ImageEmbedding
        >>> ImageEmbedding(jax.random.key(0), (1, 28, 28), out_dim=3)(jnp.ones((1, 28, 28))).shape
        (3,)
    """

    kernels: tuple[Float[Array, "_ _ 3 3"], ...]
    biases: tuple[Float[Array, " width"], ...]
    head: MLP
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, key: PRNGKeyArray, shape: tuple[int, int, int], out_dim: int = 16, *, width: int = 32):
        require_key(key, "key")
        require_counts(out_dim=out_dim, width=width)
        if not isinstance(shape, tuple) or len(shape) != 3:
            raise ValueError(f"shape expected (channels, height, width), got {shape}")
        for size in shape:
            require_counts(**{"each size of shape": size})
        channels, *sides = shape
        num = 0
        while num == 0 or max(sides) > _LAST_SIDE:
            num, sides = num + 1, [-(-side // 2) for side in sides]
        kernel_key, head_key = jax.random.split(key)
        shapes = [(width, channels if i == 0 else width, 3, 3) for i in range(num)]
        drawn = draw_normals(kernel_key, shapes)
        self.kernels = tuple(kernel / np.sqrt(math.prod(kernel.shape[1:])) for kernel in drawn)
        self.biases = tuple(jnp.zeros(width) for _ in shapes)
        self.head = _perceptron(head_key, width * math.prod(sides), out_dim, 2 * width)
        self.shape = shape

    def __call__(self, image: Float[Array, "channels height width"]) -> Float[Array, " out_dim"]:
        if isinstance(image, Mapping) or image.shape != self.shape:
            raise ValueError(f"ImageEmbedding expected an image of shape {self.shape}, got {described(image)}")
        x = image.astype(jnp.result_type(image, self.kernels[0]))[None]
        for kernel, bias in zip(self.kernels, self.biases):
            x = jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (2, 2), "SAME")
            x = jax.nn.silu(x + bias[None, :, None, None])
        return self.head(x.ravel())


class JointEmbedding(eqx.Module):
    """The embeddings of a dict's entries, joined to one vector.

    An entry without an embedding is in the vector as it is, raveled. Entries are in the order of sorted keys.

    Args:
        parts: embeddings by key, for some entries.

    Raises:
        TypeError: if `parts` is not a dict of functions.
        ValueError: (when called) for a condition that is not a dict, or lacks an entry of `parts`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro_flows.embeddings import ImageEmbedding, JointEmbedding
        >>> embedding = JointEmbedding({"scan": ImageEmbedding(jax.random.key(0), (1, 8, 8), out_dim=5)})
        >>> embedding({"scan": jnp.ones((1, 8, 8)), "age": jnp.ones(1)}).shape
        (6,)
    """

    parts: dict[str, Callable[..., Any]]

    def __init__(self, parts: Mapping[str, Callable[[Any], Array]]):
        if not isinstance(parts, Mapping):
            raise TypeError(f"parts expected a dict of embeddings, got {described(parts)}")
        require_callable("SetEmbedding(key, 2)", **{f"parts[{name!r}]": part for name, part in parts.items()})
        self.parts = dict(parts)

    def __call__(self, condition: Any) -> Float[Array, " out_dim"]:
        if not isinstance(condition, Mapping) or not self.parts.keys() <= condition.keys():
            got = described(condition)
            raise ValueError(f"JointEmbedding expected a dict with the keys {sorted(self.parts)}, got {got}")
        vectors = []
        for name in sorted(condition):
            value = condition[name]
            vectors += [self.parts[name](value)] if name in self.parts else jax.tree.leaves(value)
        dtype = jnp.result_type(float, *(vector for vector in vectors if jnp.issubdtype(vector.dtype, jnp.inexact)))
        return jnp.concatenate([jnp.ravel(vector).astype(dtype) for vector in vectors])


_LAST_SIDE = 4  # largest side of an image after all convolutions


def _perceptron(key: PRNGKeyArray, in_size: int, out_size: int, width: int) -> MLP:
    """One hidden layer, and a last one that does not start at zero: else conditioners would first see a constant."""
    mlp_key, last_key = jax.random.split(key)
    last = jax.random.normal(last_key, (width, out_size)) / np.sqrt(width)
    return eqx.tree_at(lambda mlp: mlp.weights[-1], MLP(mlp_key, in_size, out_size, (width,)), last)


def _values_and_mask(condition: Any, num_features: int) -> tuple[Float[Array, "most features"], Bool[Array, " most"]]:
    """Values and mask of a set or a series; values are 0 where masked."""
    values, mask = condition, None
    if isinstance(condition, Mapping):
        if condition.keys() != {"values", "mask"}:
            raise ValueError(f"expected an array, or a dict of 'values' and 'mask', got {described(condition)}")
        values, mask = condition["values"], condition["mask"]
    if values.ndim != 2 or values.shape[1] != num_features:
        raise ValueError(f"expected values of shape (num, {num_features}), got {values.shape}")
    if mask is None:
        return values, jnp.ones(len(values), bool)
    if mask.shape != values.shape[:1]:
        raise ValueError(f"expected a mask of shape {values.shape[:1]}, one for each of the values, got {mask.shape}")
    mask = mask.astype(bool)
    return jnp.where(mask[:, None], values, 0.0), mask
