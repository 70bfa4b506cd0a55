"""A trained flow as a distribution on the host."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from numpyro_flows.training.ahead import Ahead


@dataclass(frozen=True)
class FlowComponent:
    """The flow of given arrays, by its compiled functions (`FlowFunctions`), which take blocks of `block` points."""

    arrays: PyTree
    sampler: Ahead
    scorer: Ahead
    block: int

    def draw(self, rng: np.random.Generator, num: int) -> Float[np.ndarray, "num dim"]:
        seeds = rng.integers(2**32, size=(-(-num // self.block), 4), dtype=np.uint32)
        return np.concatenate([np.asarray(self.sampler(self.arrays, seed)[0]) for seed in seeds])[:num]

    def log_prob(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        dtype = np.dtype(jnp.result_type(float))
        padded = np.concatenate([x, np.broadcast_to(x[-1:], (-len(x) % self.block, x.shape[1]))]).astype(dtype)
        blocks = padded.reshape(-1, self.block, x.shape[1])
        return np.concatenate([np.asarray(self.scorer(self.arrays, block)) for block in blocks])[: len(x)]
