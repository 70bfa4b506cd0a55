"""Pareto-smoothed importance sampling, and the tail shape of any sample.

ArviZ has it too, and the tests compare the results. But importing ArviZ's statistics takes half as long as a whole fit
of an everyday posterior, and a certificate needs only these few lines.
"""

import numpy as np
from jaxtyping import Float

_VANISHING = 1e-290  # ratio of a quartile to the largest value
_PRIOR_SHAPE, _PRIOR_WEIGHT = 0.5, 10  # shrinks k-hat of a short tail


def smooth(log_weights: Float[np.ndarray, " draws"]) -> tuple[Float[np.ndarray, " draws"], float]:
    """Pareto-smoothed, normalised log weights, and k-hat, the shape of their tail.

    The largest weights, `min(n / 5, 3 sqrt(n))` of them, are replaced by the expected order statistics of a generalized
    Pareto distribution fitted to them, truncated at the largest. Weights of zero stay zero. If the tail is too nearly
    constant for a fit, k-hat is NaN and nothing is smoothed.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry 2024, arXiv 1507.02646.
    """
    log_weights = np.asarray(log_weights, np.float64)
    log_weights = log_weights - log_weights.max()
    num_tail = _num_tail(log_weights.size)
    order = np.argsort(log_weights)
    tail, cutoff = order[-num_tail:], np.exp(log_weights[order[-num_tail - 1]])
    excess = np.exp(log_weights[tail]) - cutoff
    shape, scale = _fit_generalized_pareto(excess)
    if np.isfinite(shape):
        exceeded = 1 - (np.arange(num_tail) + 0.5) / num_tail
        with np.errstate(over="ignore"):  # degenerate weights: infinite values are truncated at the largest
            quantiles = scale * np.expm1(-shape * np.log(exceeded)) / shape if shape else -scale * np.log(exceeded)
        log_weights[tail] = np.minimum(np.log(cutoff + quantiles), 0.0)
    return log_weights - np.log(np.exp(log_weights).sum()), float(shape)


def tail_shape(values: Float[np.ndarray, " draws"], least_share: float = 0.0) -> float:
    """k-hat of positive values: the shape of a generalized Pareto distribution fitted to the largest of them.

    `E values^p` exists if the shape is below `1 / p`. The shape is NaN if there is no tail. Then the largest values are
    too nearly constant for a fit, or their excess over the smallest of them has less than `least_share` of the sum of
    squares. The shape is infinite if a value is infinite.
    """
    largest = values.max()
    if not np.isfinite(largest):
        return float(largest)
    num_tail = _num_tail(values.size)
    if largest == 0 or num_tail == 0:
        return np.nan
    values = values / largest
    tail = np.sort(np.partition(values, -num_tail - 1)[-num_tail - 1 :])
    excess = tail[1:] - tail[0]
    if (excess**2).sum() < least_share * (values**2).sum():
        return np.nan
    return float(_fit_generalized_pareto(excess)[0])


def _num_tail(num: int) -> int:
    """How many of `num` values belong to their tail."""
    return int(min(num / 5, 3 * np.sqrt(num)))


def _fit_generalized_pareto(x: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Shape and scale from ascending `x >= 0`: the posterior mean over `theta = -shape / scale` on a grid.

    Source: Zhang and Stephens 2009, Technometrics 51(3).
    """
    n = x.size
    quartile = x[int(n / 4 + 0.5) - 1]
    if quartile <= x[0]:
        return np.nan, np.nan
    if quartile < x[-1] * _VANISHING:  # rounding decides: some values are all there is
        return np.inf, np.nan
    num_grid = 30 + int(np.sqrt(n))
    theta = 1 / x[-1] + (1 - np.sqrt(num_grid / (np.arange(num_grid) + 0.5))) / (3 * quartile)
    shapes = np.log1p(-np.outer(theta, x)).mean(axis=1)
    profile = n * (np.log(-theta / shapes) - shapes - 1)
    weights = np.exp(profile - profile.max())
    mean_theta = weights @ theta / weights.sum()
    shape = np.log1p(-mean_theta * x).mean()
    scale = -shape / mean_theta
    return (n * shape + _PRIOR_WEIGHT * _PRIOR_SHAPE) / (n + _PRIOR_WEIGHT), scale
