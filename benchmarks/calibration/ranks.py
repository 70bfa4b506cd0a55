"""Ranks of true values among posterior draws, and simultaneous bands for the ECDF of uniform ones."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from arviz_stats.ecdf_utils import compute_ecdf, get_pointwise_confidence_band, simulate_confidence_bands
from jaxtyping import Float

SIMULATIONS = 10_000  # uniform samples by which ArviZ makes a band


class Band(NamedTuple):
    """At each of the `points`, an ECDF of uniform values lies between `lower` and `upper`."""

    points: Float[np.ndarray, " points"]
    lower: Float[np.ndarray, " points"]
    upper: Float[np.ndarray, " points"]

    def contains(self, values: Float[np.ndarray, " num"]) -> bool:
        """Whether the ECDF of `values` lies in the band at every point."""
        ecdf = self.ecdf(values)
        return bool(np.all((self.lower <= ecdf) & (ecdf <= self.upper)))

    def ecdf(self, values: Float[np.ndarray, " num"]) -> Float[np.ndarray, " points"]:
        return compute_ecdf(values, self.points)


@lru_cache
def band(num: int, probability: float) -> Band:
    """ArviZ's band, which contains the whole ECDF of `num` uniform values with this probability.

    Source: Säilynoja, Bürkner, Vehtari 2022, arXiv 2103.10522.
    """
    points = np.arange(1, num) / num
    pointwise = simulate_confidence_bands(num, 1, points, probability, SIMULATIONS, np.random.default_rng(0))
    return Band(points, *get_pointwise_confidence_band(pointwise, num, points))


def normalised_ranks(
    true: Float[np.ndarray, " quantities"],
    draws: Float[np.ndarray, "num quantities"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " quantities"]:
    """`(below + u (equal + 1)) / (num + 1)`, uniform on [0, 1] where the draws follow the posterior.

    `below` and `equal` count the draws that are smaller than the true value and equal to it; `u` is uniform.

    Source: Talts, Betancourt, Simpson, Vehtari, Gelman 2018, arXiv 1804.06788.
    """
    below, equal = (draws < true).sum(0), (draws == true).sum(0)
    return (below + rng.uniform(size=true.shape) * (equal + 1)) / (len(draws) + 1)
