"""Ranks of true values among posterior draws, and exact tests that they are uniform."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from arviz_stats.ecdf_utils import compute_ecdf, get_pointwise_confidence_band
from jaxtyping import Float
from scipy import stats
from scipy.special import bdtr, gammaln

_MOST_POINTS = 500  # at which an ECDF is compared with the uniform distribution
_LEAST = 1e-12  # smallest tail probability that double precision resolves next to one
_HALVINGS = 25


def normalised_ranks(
    true: Float[np.ndarray, " quantities"],
    draws: Float[np.ndarray, "num quantities"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " quantities"]:
    """`(below + u (equal + 1)) / (num + 1)`, uniform on [0, 1] if the draws follow the posterior.

    `below` and `equal` count the draws that are smaller than the true value and equal to it; `u` is uniform.

    Source: Talts, Betancourt, Simpson, Vehtari, Gelman 2018, arXiv 1804.06788.
    """
    below, equal = (draws < true).sum(0), (draws == true).sum(0)
    return (below + rng.uniform(size=true.shape) * (equal + 1)) / (len(draws) + 1)


def joint_rank(true: Float[np.ndarray, " dim"], draws: Float[np.ndarray, "num dim"], rng: np.random.Generator) -> float:
    """The normalised rank of the true point's distance from the centre, among the distances of the draws.

    The points are the draws and the true one. Their mean is the centre and their covariance the metric, so that all
    points are treated alike: the rank is exactly uniform if the draws follow the posterior. It is near 1 for a true
    point farther out than the draws.

    Source: TARP, Lemos, Coogan, Hezaveh, Perreault-Levasseur 2023, arXiv 2302.03026. They take random points of
        reference; the centre has more power against wrong scales and correlations.
    """
    points = np.concatenate([true[None], draws]).astype(np.float64)
    points -= points.mean(0)
    scale = np.sqrt((points**2).mean(0))
    points = points[:, scale > 0] / scale[scale > 0]
    num, dim = points.shape
    if 1 < dim < num:
        share = dim / (dim + num)  # keeps the correlations' inverse from being noise
        correlations = (1 - share) * (points.T @ points) / num + share * np.eye(dim)
        points = np.linalg.solve(np.linalg.cholesky(correlations), points.T).T
    distance = (points**2).sum(1, keepdims=True)
    return float(normalised_ranks(distance[0], distance[1:], rng)[0])


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
    """ArviZ's band that contains the whole ECDF of `num` uniform values with at least this probability, exactly.

    Source: Säilynoja, Bürkner, Vehtari 2022, arXiv 2103.10522.
    """
    low, high = np.log(_LEAST), np.log(1 - probability)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _outside(num, np.exp(middle)) > 1 - probability else (middle, high)
    return _pointwise(num, np.exp(low))


class Uniformity(NamedTuple):
    """Whether values are uniform on [0, 1]: p-values of three exact tests, on the values or their normal scores.

    ecdf: p-value of the largest difference between ECDF and uniform distribution, each point by its own tail
        probability.
    location: p-value of the mean of the normal scores, `mean`.
    dispersion: p-value of the variance of the normal scores, `variance`.
    """

    ecdf: float
    location: float
    dispersion: float
    mean: float
    variance: float

    @property
    def p_value(self) -> float:
        """The p-value of all three tests, by Bonferroni."""
        return min(1.0, 3 * min(self.ecdf, self.location, self.dispersion))


def uniformity(values: Float[np.ndarray, " num"]) -> Uniformity:
    """The tests of uniform values."""
    num = len(values)
    scores = stats.norm.ppf(np.clip(values, 1e-15, 1 - 1e-15))
    mean, variance = float(scores.mean()), float(scores.var(ddof=1))
    location = 2 * stats.norm.sf(abs(mean) * num**0.5)
    chi2 = stats.chi2(num - 1)
    dispersion = 2 * min(chi2.cdf((num - 1) * variance), chi2.sf((num - 1) * variance), 0.5)
    points = _points(num)
    counts = np.round(compute_ecdf(values, points) * num)
    above = np.where(counts > 0, 1 - bdtr(np.maximum(counts - 1, 0), num, points), 1.0)
    tail = max(min(bdtr(counts, num, points).min(), above.min()), _LEAST)
    return Uniformity(_outside(num, tail * (1 + 1e-6)), float(location), float(dispersion), mean, variance)


def _points(num: int) -> Float[np.ndarray, " points"]:
    most = min(num, _MOST_POINTS)
    return np.arange(1, most) / most


def _pointwise(num: int, tail: float) -> Band:
    """Where the count at each point has this probability, or more, on either side."""
    points = _points(num)
    return Band(points, *get_pointwise_confidence_band(1 - 2 * tail, num, points))


def _outside(num: int, tail: float) -> float:
    """The probability that an ECDF of `num` uniform values leaves the pointwise band: a recursion over its points."""
    limits = _pointwise(num, tail)
    log_factorial = gammaln(np.arange(num + 1) + 1.0)
    counts, probability, before = np.zeros(1, int), np.ones(1), 0.0
    for point, lower, upper in zip(limits.points, np.round(limits.lower * num), np.round(limits.upper * num)):
        following = np.arange(int(lower), int(upper) + 1)
        new, left = following - counts[:, None], num - counts[:, None]
        share = (point - before) / (1 - before)  # of those that are left
        some, rest = np.maximum(new, 0), np.maximum(left - new, 0)
        log_pmf = log_factorial[left] - log_factorial[np.minimum(some, num)] - log_factorial[rest]
        log_pmf += some * np.log(share) + rest * np.log1p(-share)
        probability = probability @ np.where((new >= 0) & (new <= left), np.exp(log_pmf), 0.0)
        counts, before = following, point
    return float(np.clip(1 - probability.sum(), 0.0, 1.0))
