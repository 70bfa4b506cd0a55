"""Seeds from NumPy, and keys from these: JAX would compile a function for each number of split keys."""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, UInt32

Seed = UInt32[np.ndarray, "4"]
SeedRows = UInt32[np.ndarray, "num 4"]


class Seeds(NamedTuple):
    """The seeds of a fit. Each depends only on the fit's key, the name of a use and numbers, not on earlier draws."""

    entropy: tuple[int, ...]

    @classmethod
    def of(cls, rng_key: PRNGKeyArray) -> "Seeds":
        """The seeds of a key of either style."""
        typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(rng_key) if typed else rng_key)
        return cls(tuple(map(int, data.ravel())))

    def many(self, num: int, use: str, *numbers: int) -> SeedRows:
        return self._sequence(use, *numbers).generate_state(4 * num).reshape(num, 4)

    def one(self, use: str, *numbers: int) -> Seed:
        return self.many(1, use, *numbers)[0]

    def key(self, use: str) -> PRNGKeyArray:
        return seed_key(self.one(use))

    def rng(self, use: str, *numbers: int) -> np.random.Generator:
        return np.random.default_rng(self._sequence(use, *numbers))

    def _sequence(self, use: str, *numbers: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.entropy, spawn_key=(len(use), *use.encode(), *numbers))


def seed_key(seed: Seed | SeedRows | Array) -> PRNGKeyArray:
    """A key, or keys, of XLA's own generator, which compiles and runs in a fraction of Threefry's time."""
    return jax.random.wrap_key_data(jnp.asarray(seed), impl="rbg")


def threefry_key(seed: Seed | Array) -> PRNGKeyArray:
    """A key of JAX's default generator, whose splits are independent under `vmap` too."""
    return jax.random.wrap_key_data(jnp.asarray(seed)[:2], impl="threefry2x32")


def named_key(rng_key: PRNGKeyArray, use: str) -> PRNGKeyArray:
    """The key of a named use, within jit too: a function of `rng_key` and the name, whatever other uses there are."""
    return jax.random.fold_in(rng_key, zlib.crc32(use.encode()))
