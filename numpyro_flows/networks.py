"""Conditioners: networks that compute the parameters of a layer from the coordinates that it may depend on."""

import itertools
import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from numpyro_flows.arguments import as_widths, require_cond_dim, require_counts


def draw_normals(key: PRNGKeyArray, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Standard normal arrays of the shapes, all in one call: each use of a random generator costs compile time."""
    sizes = [math.prod(shape) for shape in shapes]
    numbers = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(numbers, shapes)]


class MLP(eqx.Module):
    """Multilayer perceptron `x -> W_n s(... s(W_1 x + b_1) ...) + b_n` with `s` the SiLU.

    The last layer starts at zero, so a flow that is the identity for zero parameters starts as the identity. SiLU is
    smooth, and so is the density of a flow built on it: Hamiltonian samplers work well with it. `in_size` may be 0, for
    a trained constant, which a coupling of one coordinate needs.

    Args:
        key: random key of the hidden layers' weights.
        in_size: length of the input.
        out_size: length of the output.
        hidden: widths of the hidden layers, for example `(64, 64)`.
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"], ...]

    def __init__(self, key: PRNGKeyArray, in_size: int, out_size: int, hidden: Sequence[int]):
        sizes = [in_size, *as_widths(hidden), out_size]
        shapes = list(itertools.pairwise(sizes))
        drawn = [normal / np.sqrt(max(m, 1)) for normal, (m, _) in zip(draw_normals(key, shapes[:-1]), shapes)]
        self.weights = (*drawn, jnp.zeros(shapes[-1]))
        self.biases = tuple(jnp.zeros(n) for n in sizes[1:])

    def __call__(
        self, x: Float[Array, " in_size"], modulation: Sequence[tuple[Array, Array]] | None = None
    ) -> Float[Array, " out_size"]:
        """The output. With `modulation`, a pair for each hidden layer, its units are `s((1 + scale) u + shift)`."""
        for i, (weight, bias) in enumerate(zip(self.weights[:-1], self.biases[:-1])):
            x = x @ weight + bias
            if modulation is not None:
                scale, shift = modulation[i]
                x = (1.0 + scale) * x + shift
            x = jax.nn.silu(x)
        return x @ self.weights[-1] + self.biases[-1]


class Parameters(eqx.Module):
    """A trained vector; with a condition, its sum with an `MLP` of the condition. It starts equal to `start`.

    Args:
        key: random key of the network.
        start: the vector at the start.
        cond_dim: length of the condition, None without one.
        hidden: widths of the network's hidden layers.
    """

    network: MLP

    def __init__(self, key: PRNGKeyArray, start: Float[Array, " size"], cond_dim: int | None, hidden: Sequence[int]):
        require_cond_dim(cond_dim)
        hidden = as_widths(hidden)
        network = MLP(key, cond_dim or 0, start.size, hidden if cond_dim else ())
        self.network = eqx.tree_at(lambda mlp: mlp.biases[-1], network, start)

    def __call__(self, condition: Float[Array, " cond_dim"] | None) -> Float[Array, " size"]:
        return self.network.biases[-1] if condition is None else self.network(condition)


class MaskedMLP(eqx.Module):
    """A perceptron whose output block `i` depends on the inputs `j` with `adjacency[i, j]`, and on all further ones.

    Each hidden unit gets the inputs of one output, and sees no unit with another input. Units are shared out evenly. If
    there are fewer units than outputs, neighbours share one, so `hidden` should be no narrower than the number of
    outputs.

    Args:
        key: random key of the hidden layers' weights.
        adjacency: matrix of shape `(outputs, inputs)`.
        out_size: numbers in each output block.
        hidden: widths of the hidden layers.
        cond_dim: number of further inputs, after the others, which every output may depend on.

    Source: MADE, Germain, Gregor, Murray, Larochelle 2015, arXiv 1502.03509; any adjacency, as in zuko.
    """

    mlp: MLP
    masks: tuple[Bool[Array, "_ _"], ...]

    def __init__(
        self,
        key: PRNGKeyArray,
        adjacency: Bool[ArrayLike, "outputs inputs"],
        out_size: int,
        hidden: Sequence[int],
        cond_dim: int = 0,
    ):
        adjacency = jnp.asarray(adjacency, bool)
        num_outputs, num_inputs = adjacency.shape
        num_seen = adjacency.sum(1)
        # outputs that depend on nothing need no unit, unless there are further inputs
        order, num_blind = jnp.argsort(num_seen), 0 if cond_dim else (num_seen == 0).sum()
        given = jnp.eye(num_inputs, dtype=bool)  # what each unit of the layer below depends on
        masks = []
        for width in as_widths(hidden):
            # the place among the outputs that see something, in whole numbers: (i + 1/2) / width of them
            chosen = num_blind + (2 * jnp.arange(width) + 1) * (num_outputs - num_blind) // (2 * width)
            patterns = adjacency[order[jnp.minimum(chosen, num_outputs - 1)]]
            masks.append(_within(given, patterns))
            given = patterns
        masks.append(jnp.repeat(_within(given, adjacency), out_size, axis=1))
        masks[0] = jnp.concatenate([masks[0], jnp.ones((cond_dim, masks[0].shape[1]), bool)])
        self.masks = tuple(masks)
        mlp = MLP(key, num_inputs + cond_dim, num_outputs * out_size, hidden)
        # a unit with few inputs should not start weaker than one with many
        sizes = [jnp.sqrt(mask.shape[0] / jnp.maximum(mask.sum(0, dtype=float), 1.0)) for mask in masks]
        self.mlp = eqx.tree_at(lambda m: m.weights, mlp, tuple(w * size[None] for w, size in zip(mlp.weights, sizes)))

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        weights = tuple(jnp.where(mask, w, 0.0) for w, mask in zip(self.mlp.weights, self.masks))
        return eqx.tree_at(lambda m: m.weights, self.mlp, weights)(x)


def _within(given: Bool[Array, "below inputs"], allowed: Bool[Array, "above inputs"]) -> Bool[Array, "below above"]:
    """Whether all inputs of a unit below are allowed above."""
    forbidden = given.astype("float32") @ (~allowed).T.astype("float32")  # how many of what was given
    return forbidden == 0


class OnCircle(eqx.Module):
    """A network that sees its first `num_angles` inputs as their cosines and sines."""

    network: Callable[[Array], Array]
    num_angles: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        angles, rest = x[: self.num_angles], x[self.num_angles :]
        return self.network(jnp.concatenate([jnp.cos(angles), jnp.sin(angles), rest]))


class CausalTransformer(eqx.Module):
    """A transformer over blocks of coordinates, whose output block `i` depends on the input blocks before `i`.

    The `dim` inputs are padded to blocks of `block_size`, which are the tokens. A token is embedded linearly, combined
    with its position and the condition, and moved one position on, so that causal attention sees only earlier tokens.
    Layers are those of a pre-norm transformer. The last layer starts at zero.

    Args:
        key: random key of the weights.
        dim: number of coordinates.
        out_size: numbers in the output for each coordinate.
        block_size: coordinates in a token.
        width: width of the embedding; a multiple of `num_heads`.
        num_heads: number of attention heads.
        num_blocks: number of transformer blocks.
        cond_dim: number of further inputs, after the coordinates, which every output may depend on.

    Raises:
        ValueError: if `width` is not a multiple of `num_heads`.
    """

    embed: Float[Array, "_ width"]
    places: Float[Array, "tokens width"]
    condition: Float[Array, "_ width"]
    blocks: "_TransformerBlock"
    unembed: Float[Array, "width _"]
    bias: Float[Array, "tokens _"]
    dim: int = eqx.field(static=True)
    block_size: int = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        dim: int,
        out_size: int,
        *,
        block_size: int,
        width: int,
        num_heads: int,
        num_blocks: int,
        cond_dim: int = 0,
    ):
        require_cond_dim(cond_dim)
        require_counts(block_size=block_size, width=width, num_heads=num_heads, num_blocks=num_blocks)
        if width % num_heads:
            raise ValueError(f"CausalTransformer expected a width that {num_heads} heads divide, got {width}")
        num_tokens = -(-dim // block_size)
        shapes = [(block_size, width), (num_tokens, width), (cond_dim, width), (num_blocks, 4, width, width)]
        drawn_key, mlp_key = jax.random.split(key)
        self.embed, self.places, self.condition, matrices = draw_normals(drawn_key, shapes)
        self.embed, self.condition = self.embed / np.sqrt(block_size), self.condition / np.sqrt(max(cond_dim, 1))
        mlps = eqx.filter_vmap(lambda key: MLP(key, width, width, (2 * width,)))(jax.random.split(mlp_key, num_blocks))
        self.blocks = _TransformerBlock(matrices / np.sqrt(width), mlps, num_heads)
        self.unembed = jnp.zeros((width, block_size * out_size))
        self.bias = jnp.zeros((num_tokens, block_size * out_size))
        self.dim = dim
        self.block_size = block_size

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        coordinates, condition = x[: self.dim], x[self.dim :]
        num_tokens = len(self.places)
        padded = jnp.pad(coordinates, (0, num_tokens * self.block_size - self.dim))
        tokens = padded.reshape(num_tokens, self.block_size) @ self.embed
        tokens = jnp.pad(tokens[:-1], ((1, 0), (0, 0))) + self.places
        tokens = tokens + jnp.broadcast_to(condition @ self.condition, tokens.shape)
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        tokens, _ = jax.lax.scan(lambda t, block: (eqx.combine(block, static)(t), None), tokens, arrays)
        outputs = (_normalised(tokens) @ self.unembed + self.bias).reshape(num_tokens * self.block_size, -1)
        return outputs[: self.dim].ravel()


class _TransformerBlock(eqx.Module):
    """Causal self-attention, then a perceptron on every token; each is added to its input."""

    matrices: Float[Array, "*blocks 4 width width"]  # for queries, keys, values and output; stacked for the scan
    mlp: MLP
    num_heads: int = eqx.field(static=True)

    def __call__(self, tokens: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
        num_tokens = len(tokens)
        q, k, v = (
            (_normalised(tokens) @ matrix).reshape(num_tokens, self.num_heads, -1) for matrix in self.matrices[:3]
        )
        # not jax.nn.dot_product_attention, whose softmax is in single precision always
        logits = jnp.einsum("thc,shc->hts", q, k) / np.sqrt(q.shape[-1])
        logits = jnp.where(np.tri(num_tokens, dtype=bool)[None], logits, -jnp.inf)
        attended = jnp.einsum("hts,shc->thc", jax.nn.softmax(logits, axis=-1), v)
        tokens = tokens + attended.reshape(tokens.shape) @ self.matrices[3]
        return tokens + jax.vmap(self.mlp)(_normalised(tokens))


def _normalised(tokens: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
    """Each token with mean 0 and variance 1 (except for tiny tokens)."""
    centred = tokens - tokens.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
