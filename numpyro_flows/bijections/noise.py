"""Randomness of estimated log-determinants: one value for each event, the same in every call, new in each step."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from numpyro_flows.arguments import require_key


class EventNoise(eqx.Module):
    """A random key for each event, from a stored seed and the event's bits.

    So a bijection stays a function: an event always has the same estimate, and different events have independent noise.
        Training replaces the seeds at each step, by `reseeded`.
    """

    seed: UInt32[Array, "2"]

    def __init__(self, key: PRNGKeyArray):
        require_key(key, "key")
        self.seed = jax.random.bits(key, (2,), "uint32")

    def key(self, x: Float[Array, " dim"]) -> PRNGKeyArray:
        """A key that changes with every bit of `x`."""
        key = jax.random.wrap_key_data(self.seed, impl="threefry2x32")
        bits = jax.lax.bitcast_convert_type(x, "uint32").ravel()
        odd = jax.random.bits(key, bits.shape, "uint32") | 1
        mixed = bits * odd
        mixed = (mixed ^ (mixed >> 16)) * odd  # else signs, the highest bits, cancel in pairs
        return jax.random.fold_in(key, mixed.sum(dtype="uint32"))


def reseeded[T](tree: T, key: PRNGKeyArray) -> T:
    """`tree` with new seeds for all its `EventNoise`: the same estimators, with other errors."""

    def is_noise(node: Any) -> bool:
        return isinstance(node, EventNoise)

    nodes, structure = jax.tree.flatten(tree, is_leaf=is_noise)
    keys = jax.random.split(key, max(len(nodes), 1))
    for i, node in enumerate(nodes):
        if is_noise(node):  # of the old shape: layers of a stack have one each
            seed = jnp.asarray(jax.random.bits(keys[i], node.seed.shape, "uint32"))
            nodes[i] = eqx.tree_at(lambda n: n.seed, node, seed)
    return jax.tree.unflatten(structure, nodes)


class AbstractEstimator(eqx.Module):
    """A module whose log-determinants may be estimates, including those of all modules in it."""

    @property
    @abstractmethod
    def estimate(self) -> str:
        """How log-determinants are estimated, in words; empty if they are exact."""


def estimates(bijection: Any) -> list[str]:
    """The random estimates of log-determinants in `bijection`, in words; empty if all are exact."""
    nodes = jax.tree.leaves(bijection, is_leaf=lambda node: isinstance(node, AbstractEstimator))
    found = [node.estimate for node in nodes if isinstance(node, AbstractEstimator)]
    return list(dict.fromkeys(text for text in found if text))
