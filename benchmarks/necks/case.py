"""A neck: a model with group-level scales near zero, and the exact marginals of their logarithms."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Values = dict[str, np.ndarray]


class Marginal(NamedTuple):
    """A distribution of one number.

    values: in increasing order.
    cdf: the probability below each of them.
    sd_se: the standard error of `sd`, where integration was by random points.
    """

    mean: float
    sd: float
    values: Float[np.ndarray, " values"]
    cdf: Float[np.ndarray, " values"]
    sd_se: float = 0.0

    @classmethod
    def on_grid(cls, grid: Float[np.ndarray, " cells"], weights: Float[np.ndarray, " cells"]) -> "Marginal":
        """From the midpoints of cells that are equally wide, and weights that are proportional to their masses."""
        probabilities = weights / weights.sum()
        mean = probabilities @ grid
        half = 0.5 * (grid[1] - grid[0])
        values = np.append(grid - half, grid[-1] + half)
        cdf = np.append(0.0, np.cumsum(probabilities))
        return cls(float(mean), float(np.sqrt(probabilities @ (grid - mean) ** 2)), values, cdf)

    def below(self, value: float) -> float:
        return float(np.interp(value, self.values, self.cdf))

    def above(self, value: float) -> float:
        return 1.0 - self.below(value)


class Truth(NamedTuple):
    """The exact answers: the log evidence, with its standard error, and the marginal of each log scale."""

    log_evidence: float
    marginals: dict[str, Marginal]
    log_evidence_se: float = 0.0


class Case(NamedTuple):
    """A model with its exact answer; `log_scales` maps draws of the sites to the logarithms of the scales."""

    model: Callable
    args: tuple
    truth: Callable[[], Truth]
    log_scales: Callable[[Values], Values]


def midpoints(low: float, high: float, num: int) -> Float[np.ndarray, " cells"]:
    """Midpoints of `num` cells between two ends."""
    width = (high - low) / num
    return low + width * (np.arange(num) + 0.5)
