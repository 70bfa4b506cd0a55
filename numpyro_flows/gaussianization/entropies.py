"""Entropies of samples, by spacings in one dimension and by nearest neighbours in several; exact for Gaussians."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from jaxtyping import Float
from scipy.special import digamma, gammaln, polygamma

_LOG_2PI = math.log(2 * math.pi)
_NUM_NULL = 6  # samples for the estimate of the bias
_MAX_NULL = 100_000  # numbers in one of them: with more points the bias is small
_LEAST = 1e-12  # smallest spacing or distance, in standard deviations: duplicates have no finite entropy

Samples = Float[np.ndarray, "num dim"]


def spacing_entropies(x: Samples) -> Float[np.ndarray, "num dim"]:
    """Contribution of each point to the entropy of its coordinate, in nats; the mean over points is the estimate.

    For the sorted points it is `log[n (x_(i+m) - x_(i-m)) / (c_i m)]` with `m = sqrt(n)`. `c_i` is 2, and from 1 to 2
    at either end, where a spacing is cut short. The bias that the same estimate has on Gaussian samples is subtracted.

    Source: Vasicek 1976, JRSS B 38(1); Ebrahimi, Pflughoeft, Soofi 1994, Statistics and Probability Letters 20(3).

    Example:
        >>> x = np.random.default_rng(0).uniform(size=(5_000, 1))
        >>> abs(float(spacing_entropies(x).mean())) < 0.02
        True
    """
    return _spacings(x) - _bias(_spacings, len(x), 1)


def neighbour_entropy(x: Samples) -> float:
    """The joint entropy, in nats, by each point's distance `r` to its fifth neighbour, in one dimension its 15th.

    The estimate is the mean of `psi(n) - psi(k) + log V + d log r`, with `V` the volume of the unit ball, minus the
    bias of the same estimate on Gaussian samples. If `x` is nearly Gaussian, no other bias remains. So Gaussianize
    first.

    Source: Kozachenko, Leonenko 1987, Problems of Information Transmission 23(2); after a flow: Ao, Li 2022, AAAI 36.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(2_000, 3))
        >>> bool(abs(neighbour_entropy(x) - 1.5 * (1 + np.log(2 * np.pi))) < 0.1)
        True
    """
    return float(_neighbours(x).mean()) - _bias(_neighbours, *x.shape)


def neighbour_noise(dim: int) -> float:
    """The variance, times the number of points, that distances to neighbours add to that of the log density."""
    return float(polygamma(1, _num_neighbours(dim)))


def divergences_from_normal(x: Samples) -> Float[np.ndarray, "num dim"]:
    """Contribution of each point to `KL(p_i || N(0, 1))` of its coordinate; for variance 1 this is the negentropy."""
    return 0.5 * (x**2 + _LOG_2PI) - spacing_entropies(x)


def neighbour_distances(x: Samples, among: Samples, k: int) -> Float[np.ndarray, " num"]:
    """From each point to its `k`-th neighbour, in logarithms."""
    from scipy.spatial import KDTree  # takes a quarter of a second to import, and is rarely needed

    distances, _ = KDTree(among).query(x, k)
    return np.log(np.maximum(distances[:, -1], _LEAST))


def _spacings(x: Samples) -> Float[np.ndarray, "num dim"]:
    num = len(x)
    order = np.argsort(x, axis=0)
    ordered = np.take_along_axis(x, order, axis=0)
    m = max(round(math.sqrt(num)), 1)
    place = np.arange(num)
    above, below = np.minimum(place + m, num - 1), np.maximum(place - m, 0)
    spacing = np.maximum(ordered[above] - ordered[below], _LEAST * x.std(0))
    cut = 1 + np.minimum(np.minimum(place, num - 1 - place) / m, 1.0)
    contributions = np.empty_like(ordered)
    np.put_along_axis(contributions, order, np.log(num / (cut[:, None] * m) * spacing), axis=0)
    return contributions


def _neighbours(x: Samples) -> Float[np.ndarray, " num"]:
    num, dim = x.shape
    log_ball = 0.5 * dim * math.log(math.pi) - gammaln(0.5 * dim + 1)
    k = _num_neighbours(dim)
    return (
        digamma(num) - digamma(k) + log_ball + dim * neighbour_distances(x, x, k + 1)
    )  # the first neighbour is the point itself


def _num_neighbours(dim: int) -> int:
    return 15 if dim == 1 else 5  # one dimension is full


@cache
def _bias(estimate: Callable, num: int, dim: int) -> float:
    """Bias of an estimate on standard normal samples, the same ones each time, relative to their mean log density."""
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(min(num, _MAX_NULL // dim), dim)) for _ in range(_NUM_NULL)]
    return float(np.mean([estimate(x).mean() - 0.5 * (x**2 + _LOG_2PI).sum(1).mean() for x in samples]))
