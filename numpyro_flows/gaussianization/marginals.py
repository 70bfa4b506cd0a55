"""Marginal maps fitted to data, one for every coordinate, whose transform makes the coordinate standard normal."""

import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import logsumexp, ndtr, ndtri

from numpyro_flows.bijections import AbstractBijection, Elementwise, RationalQuadraticSpline
from numpyro_flows.bijections.mixture_cdf import Kind, MixtureCDF
from numpyro_flows.bijections.spline import MAX_LOG_SIZE, MIN_SLOPE
from numpyro_flows.gaussianization.empirical import EmpiricalMarginal

Samples = Float[np.ndarray, "num dim"]
Marginal = Callable[[Samples], AbstractBijection]
"""From data `(num, dim)`, of about unit scale, to a map of every coordinate whose transform Gaussianizes."""

_MAX_POINTS = 5_000  # a mixture is fitted to at most so many points; more do not improve it
_MAX_STEPS = 100
_DONE = 1e-4  # fitting ends if a step gains less log likelihood for each point
_PRIOR_COUNT = 2.0  # points that the prior of a component's variance is worth
_PRIOR_SCALE = 0.3  # its scale, in standard deviations of the data
_NO_LOSS = 1e-3  # points that the last location is worth, for a component without points
_BOUND = 6.0  # of a spline, in standard deviations
_LEAST_GAP = 0.005  # of a spline's knots
_NEAR_LIMIT = 0.95  # of its bounded sizes


def fit_mixture(data: Samples, num_components: int = 8, kind: Kind = "normal") -> Elementwise:
    """Maps `MixtureCDF` whose mixtures are fitted by expectation maximisation, started at the quantiles.

    The variance of each component has a prior worth two points, so that duplicates do not make it 0. A logistic
    component is a mixture of normals with many variances; its mean precision at each point is the weight of the point.
    Data are `(num, dim)`, of about unit scale.

    Source: Dempster, Laird, Rubin 1977, JRSS B 39(1); for mixtures of scales 1980, Multivariate Analysis V.

    Example:
        >>> data = np.random.default_rng(0).standard_exponential((1_000, 1))  # doctest: +SLOW
        >>> z, _ = eqx.filter_vmap(fit_mixture(data).transform_and_log_det)(jnp.asarray(data))
        >>> abs(float(z.mean())) < 0.05, abs(float(z.std()) - 1) < 0.05
        (True, True)
    """
    univariate = MixtureCDF(num_components, kind)
    num = len(data)
    kept = np.linspace(0, num - 1, min(num, _MAX_POINTS)).round().astype(int)
    x = np.sort(data, axis=0)[kept][:, :, None]
    deviation = x.std(0)
    locs = np.quantile(x[..., 0], (np.arange(num_components) + 0.5) / num_components, axis=0).T
    scales = np.maximum(np.gradient(locs, axis=1) if num_components > 1 else deviation, 0.1 * deviation)
    weights = np.full(locs.shape, 1 / num_components)
    before = -np.inf
    for _ in range(_MAX_STEPS):
        log_density, precision = _KINDS[kind]((x - locs) / scales)
        log_joint = log_density + np.log(weights / scales)
        log_total = np.asarray(logsumexp(log_joint, axis=2, keepdims=True))
        share = np.exp(log_joint - log_total)
        count, heavy = share.sum(0), share * precision
        weights = (count + 1) / (len(x) + num_components)
        locs = ((heavy * x).sum(0) + _NO_LOSS * locs) / (heavy.sum(0) + _NO_LOSS)
        squares = (heavy * (x - locs) ** 2).sum(0) + _PRIOR_COUNT * (_PRIOR_SCALE * deviation) ** 2
        scales = np.sqrt(squares / (count + _PRIOR_COUNT))
        now = float(np.mean(log_total))
        if now - before < _DONE:
            break
        before = now
    return _elementwise(univariate, univariate.params_of(weights, locs, scales))


def _normal(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log density, and the mean precision of the mixed normals given a point."""
    return -0.5 * (t**2 + math.log(2 * math.pi)), np.ones_like(t)


def _logistic(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = np.maximum(np.abs(t), 1e-6)
    return -size - 2 * np.log1p(np.exp(-size)), np.tanh(0.5 * size) / size


_KINDS = {"normal": _normal, "logistic": _logistic}


def fit_spline(data: Samples, num_bins: int = 32) -> Elementwise:
    """Maps `RationalQuadraticSpline` through means of neighbouring points and of their normal scores.

    The spline is straight from the data's last knots to its ends at 6 standard deviations, and the identity beyond.
    Data are `(num, dim)`, of about unit scale.

    Example:
        >>> data = np.random.default_rng(0).uniform(-1.7, 1.7, (1_000, 1))
        >>> z, _ = eqx.filter_vmap(fit_spline(data).transform_and_log_det)(jnp.asarray(data))
        >>> abs(float(z.mean())) < 0.05, abs(float(z.std()) - 1) < 0.05
        (True, True)
    """
    univariate = RationalQuadraticSpline(num_bins, _BOUND)
    x, y = knots(data, num_bins - 3)
    # knots no nearer to each other, and ends no further, than the bounded sizes of bins allow
    apart = _LEAST_GAP * np.arange(num_bins - 3)
    x, y = (np.maximum.accumulate(np.clip(k, -0.7 * _BOUND, 0.7 * _BOUND) - apart, axis=1) + apart for k in (x, y))
    x, y = (
        np.concatenate([_to_end(k[:, :1], -_BOUND), k, _to_end(k[:, -1:], _BOUND)[:, ::-1]], axis=1) for k in (x, y)
    )
    sizes = [_raw_sizes(np.diff(k, axis=1)) for k in (x, y)]
    slopes = np.maximum(knot_slopes(x, y)[:, 1:-1], 2 * MIN_SLOPE)
    scaled = (slopes - MIN_SLOPE) / (1 - MIN_SLOPE)
    params = np.concatenate([*sizes, scaled - 1 / scaled], axis=1)  # the inverse of squareplus
    return _elementwise(univariate, jnp.asarray(params, float))


def fit_empirical(data: Samples, num_knots: int = 32) -> EmpiricalMarginal:
    """The empirical distribution function, smoothed through knots, with the straight tails of a Gaussian.

    Data are `(num, dim)`.

    Example:
        >>> data = np.random.default_rng(0).uniform(-1.7, 1.7, (1_000, 1))
        >>> z, _ = eqx.filter_vmap(fit_empirical(data).transform_and_log_det)(jnp.asarray(data))
        >>> abs(float(z.mean())) < 0.05, abs(float(z.std()) - 1) < 0.05
        (True, True)
    """
    x, y = knots(data, num_knots)
    return EmpiricalMarginal(x, y, knot_slopes(x, y))


def knots(data: Samples, num: int) -> tuple[Float[np.ndarray, "dim num"], Float[np.ndarray, "dim num"]]:
    """Means of neighbouring points, and of their normal scores: `num` groups of about equal range in scores.

    In small samples groups share points. Groups that would give one knot are moved a little apart.
    """
    size = len(data)
    ordered, score = np.sort(data, axis=0), ndtri((np.arange(size) + 0.5) / size)
    edge = ndtri(1 - min(4 / size, 0.25))
    places = (size * ndtr(np.linspace(-edge, edge, num - 1))).round().astype(int)
    starts = np.concatenate([[0], np.clip(places, 1, size - 1)])
    ends = np.concatenate([starts[1:], [size]])
    ends = np.maximum(ends, starts + 1)
    totals = [np.concatenate([np.zeros((1, v.shape[1])), np.cumsum(v, axis=0)]) for v in (ordered, score[:, None])]
    x, y = (((total[ends] - total[starts]) / (ends - starts)[:, None]).T for total in totals)
    least = 1e-6 * data.std(0)[:, None]
    x = np.maximum.accumulate(x - least * np.arange(num), axis=1) + least * np.arange(num)
    y = np.maximum.accumulate(y - 1e-6 * np.arange(num), axis=1) + 1e-6 * np.arange(num)
    return x, np.broadcast_to(y, x.shape)


def knot_slopes(x: Float[np.ndarray, "dim num"], y: Float[np.ndarray, "dim num"]) -> Float[np.ndarray, "dim num"]:
    """Slopes of a monotone curve through knots; inner ones are harmonic means of the neighbouring secants.

    Source: Fritsch, Butland 1984, SIAM Journal on Scientific and Statistical Computing 5(2).
    """
    gaps = np.diff(x, axis=1)
    secants = np.diff(y, axis=1) / gaps
    left, right = 2 * gaps[:, 1:] + gaps[:, :-1], gaps[:, 1:] + 2 * gaps[:, :-1]
    inner = (left + right) / (left / secants[:, :-1] + right / secants[:, 1:])
    return np.concatenate([secants[:, :1], inner, secants[:, -1:]], axis=1)


def _to_end(knot: Float[np.ndarray, "dim 1"], end: float) -> Float[np.ndarray, "dim 2"]:
    """The end of a spline and the middle between it and the last knot."""
    return np.concatenate([np.full_like(knot, end), 0.5 * (knot + end)], axis=1)


def _raw_sizes(sizes: Float[np.ndarray, "dim bins"]) -> Float[np.ndarray, "dim bins"]:
    """The raw parameters that a spline turns into bins of these sizes."""
    log_size = np.log(sizes)
    log_size = log_size - log_size.mean(1, keepdims=True)
    return MAX_LOG_SIZE * np.arctanh(np.clip(log_size / MAX_LOG_SIZE, -_NEAR_LIMIT, _NEAR_LIMIT))


def _elementwise(univariate: MixtureCDF | RationalQuadraticSpline, params: Float[Array, "dim n"]) -> Elementwise:
    return eqx.tree_at(lambda e: e.params, Elementwise(len(params), univariate), params)
