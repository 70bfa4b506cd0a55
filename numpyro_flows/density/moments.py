"""Means and standard deviations of weighted rows, in blocks."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from numpyro_flows.density.row_blocks import blocks

_ROUNDING = 1e-12  # of a column's largest value: smaller standard deviations count as 0


def mean_and_deviation(x: Float[np.ndarray, "num dim"], weights: Float[np.ndarray, " num"]) -> tuple[np.ndarray, ...]:
    """Mean and standard deviation of each column; a standard deviation of rounding errors only becomes 1."""
    loc = _mean(lambda block: x[block], x.shape[1], weights)
    deviation = np.sqrt(_mean(lambda block: (x[block] - loc) ** 2, x.shape[1], weights))
    return loc, np.where(deviation > _ROUNDING * np.abs(x).max(0, initial=0.0), deviation, 1.0)


def _mean(
    values: Callable[[slice], Float[np.ndarray, "block dim"]], dim: int, weights: Float[np.ndarray, " num"]
) -> Float[np.ndarray, " dim"]:
    total = np.zeros(dim)
    for block in blocks(len(weights)):
        total += (values(block) * weights[block, None]).sum(0)
    return total / weights.sum()
