"""Application of a function that is compiled for blocks of one size to any number of points."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float


def in_blocks(function: Callable[[np.ndarray], Any], x: Float[np.ndarray, "num dim"], size: int) -> Any:
    """The arrays that `function` gives for blocks of `x`, joined, each `(num, ...)`. The last block is padded."""
    last = x[-1:] if len(x) else np.zeros((1, x.shape[1]), x.dtype)
    padded = np.concatenate([x, np.broadcast_to(last, (-len(x) % size or size * (not len(x)), x.shape[1]))])
    results = [function(block) for block in padded.reshape(-1, size, x.shape[1])]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(x)], *results)
