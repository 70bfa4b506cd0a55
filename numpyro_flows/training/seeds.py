"""Seeds from NumPy, and keys of them: splitting keys by JAX would compile a function for each number of them."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, UInt32

Seed = UInt32[np.ndarray, "4"]
Seeds = UInt32[np.ndarray, "num 4"]


def seed_stream(rng_key: PRNGKeyArray) -> Iterator[Seed]:
    """Seeds without end from a key of either style, by NumPy: each shape of `jax.random.split` is a compilation."""
    typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rng_key) if typed else rng_key))
    while True:
        yield rng.integers(2**32, size=4, dtype=np.uint32)


def seed_key(seed: Seed | Seeds | Array) -> PRNGKeyArray:
    """A key, or keys, of XLA's own generator, which compiles and runs in a fraction of Threefry's time."""
    return jax.random.wrap_key_data(jnp.asarray(seed), impl="rbg")
