"""Conditioners: the networks that turn what a layer may see into the parameters of what it does."""

import itertools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


class MLP(eqx.Module):
    """Multilayer perceptron `x -> W_n s(... s(W_1 x + b_1) ...) + b_n` with `s` the SiLU.

    The last layer starts at zero, so a flow that is the identity for zero parameters starts as the identity. SiLU
    is smooth, and so is the density of a flow built on it: Hamiltonian samplers may run through it. `in_size` may
    be 0 (a learned constant), which is what a coupling of one coordinate conditions on.

    Args:
        key: random key of the hidden layers' weights.
        in_size: length of the input.
        out_size: length of the output.
        hidden: widths of the hidden layers, for example `(64, 64)`.
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"], ...]

    def __init__(self, key: PRNGKeyArray, in_size: int, out_size: int, hidden: Sequence[int]):
        sizes = [in_size, *hidden, out_size]
        shapes = list(itertools.pairwise(sizes))
        areas = [m * n for m, n in shapes[:-1]]
        # all in one call: each use of a random generator costs compile time
        normals = jnp.split(jax.random.normal(key, (sum(areas),)), np.cumsum(areas)[:-1])
        drawn = [normal.reshape(m, n) / np.sqrt(max(m, 1)) for normal, (m, n) in zip(normals, shapes)]
        self.weights = (*drawn, jnp.zeros(shapes[-1]))
        self.biases = tuple(jnp.zeros(n) for n in sizes[1:])

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1]):
            x = jax.nn.silu(x @ weight + bias)
        return x @ self.weights[-1] + self.biases[-1]
