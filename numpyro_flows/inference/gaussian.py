"""The Gaussian stage: from several starts to one Gaussian that fits an unnormalized density.

Newton's method climbs from every start, the Gaussians compete by their ELBO on the same draws, and natural-gradient
variational inference refines the best. There is no learning rate to choose. All of this runs on the host around one
compiled function, the density with its gradient: for algebra of this size NumPy takes less time than XLA needs to
compile it.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_triangular

from numpyro_flows.inference.certificate import Draws, relative_ess
from numpyro_flows.inference.newton import Climb, Density, climb, values
from numpyro_flows.inference.settings import FlowVISettings

_DEEPEST = 100.0  # nats
_BLOCK = 1_000  # draws for a verdict at a time; they are not kept
_WIDTHS = (1.0, 0.1)  # of Gaussians at starts: with counts in 45 dimensions the wider ones diverged
_MORE = 4  # maximum number of repeated refinements for a Gaussian from a start, which may be far away


class GaussianFit(NamedTuple):
    """`N(loc, scale scale^T)`: `scale` is lower-triangular, or a vector if the covariance is diagonal.

    `elbo` is its ELBO on a few draws, -inf if every start and everything found from it is not finite. `climbs` are the
    results of Newton's method from the starts.
    """

    loc: Float[np.ndarray, " dim"]
    scale: Float[np.ndarray, "dim dim"] | Float[np.ndarray, " dim"]
    elbo: float
    climbs: Climb

    @property
    def usable(self) -> bool:
        """Whether its width is positive in every direction, and small enough that squares in the tails are finite."""
        widths = self.scale if self.scale.ndim == 1 else np.diag(self.scale)
        most = 1e-7 * np.sqrt(np.finfo(self.scale.dtype).max)
        small = np.isfinite(self.loc).all() and (np.abs(self.scale) < most).all()
        return bool(small and (widths > 0.0).all())


@np.errstate(over="ignore", invalid="ignore")  # code that needs finite values checks for them
def fit_gaussian(
    density: Density, rng: np.random.Generator, starts: Float[np.ndarray, "starts dim"], settings: FlowVISettings
) -> GaussianFit:
    """The Gaussian with the largest ELBO that Newton's method and natural gradients find from `starts`.

    The best of those at the modes is refined. If few of its draws have weight, the best of a few widths at the starts
    is refined too, at first as a diagonal Gaussian, and the better one of the two is returned.
    """
    dim = starts.shape[1]
    full = dim <= settings.max_full_dim
    climbs = no_climbs(starts[0])
    best = None
    u = _antithetic(rng, settings.refine_draws, dim, starts.dtype)
    if full:
        climbs = climb(density, starts, np.eye(dim, dtype=starts.dtype), settings)
        best = _refine(density, rng, *_best(density, _candidates(climbs, settings.num_candidates), u), settings)
    if best is None or relative_ess(best.log_weights) < settings.unit_start_ess:
        at_starts = [(start, np.full_like(start, width)) for start in starts for width in _WIDTHS]
        other = _refine(density, rng, *_best(density, at_starts, u), settings)
        if full:
            other = _refine(density, rng, other.loc, np.diag(other.factor), settings)
            for _ in range(_MORE):
                further = _refine(density, rng, other.loc, other.factor, settings)
                if not further.elbo > other.elbo + 1.0:
                    break
                other = further
        if best is None or other.elbo > best.elbo:
            best = other
    return GaussianFit(best.loc, triangular(best.factor), best.elbo, climbs)


def moment_matched(x: Float[np.ndarray, "draws dim"], settings: FlowVISettings) -> GaussianFit:
    """The Gaussian with the mean and the covariance of draws; diagonal if there are few draws or many dimensions.

    It has the draws' own precision, on which tolerances depend.
    """
    num, dim = x.shape
    dtype, x = x.dtype, x.astype(np.float64)
    loc, sds = x.mean(0), x.std(0) + np.finfo(dtype).tiny
    scale = sds
    if dim <= settings.max_full_dim and num >= 5 * dim:
        with contextlib.suppress(np.linalg.LinAlgError):  # draws on a line, up to rounding
            scale = sds[:, None] * np.linalg.cholesky(np.cov((x - loc) / sds, rowvar=False).reshape(dim, dim))
    loc, scale = loc.astype(dtype), scale.astype(dtype)
    return GaussianFit(loc, scale, -np.inf, no_climbs(loc))


@np.errstate(over="ignore", invalid="ignore")
def refined(
    density: Density, rng: np.random.Generator, loc: np.ndarray, factor: np.ndarray, settings: FlowVISettings
) -> GaussianFit:
    """A Gaussian improved by natural gradients."""
    best = _refine(density, rng, loc, factor, settings)
    return GaussianFit(best.loc, triangular(best.factor), best.elbo, no_climbs(loc))


def _candidates(climbs: Climb, num: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Locations and factors of the Gaussians at the best few different ends of climbs."""
    evidence = climbs.log_density + np.linalg.slogdet(climbs.factor)[1]
    _, different = np.unique(np.round(evidence, 2), return_index=True)  # a mode found twice has the same evidence
    best = sorted(different, key=lambda i: -np.nan_to_num(evidence[i], nan=-np.inf))[:num]
    return [(climbs.x[i], climbs.factor[i]) for i in best]


def no_climbs(loc: np.ndarray) -> Climb:
    """The climbs of a Gaussian that no climb led to."""
    dim = loc.size
    return Climb(np.zeros((0, dim), loc.dtype), np.zeros(0), np.zeros((0, dim, dim)), np.zeros(0, bool))


def _best(
    density: Density, gaussians: list[tuple[np.ndarray, np.ndarray]], u: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Location and factor of the Gaussian of largest ELBO on the base draws `u`."""
    elbos = [
        _finite_mean(values(density, loc + outward(factor, u)) - _log_prob(factor, u)) for loc, factor in gaussians
    ]
    return gaussians[int(np.argmax(elbos))]


class _Ascent(NamedTuple):
    """A Gaussian, its ELBO, the log weights of some draws, and their means `E[r]` and `E[r u^T]` (or its diagonal)."""

    loc: np.ndarray
    factor: np.ndarray
    elbo: float
    log_weights: np.ndarray
    mean: np.ndarray
    moment: np.ndarray


def _refine(
    density: Density, rng: np.random.Generator, loc: np.ndarray, factor: np.ndarray, settings: FlowVISettings
) -> _Ascent:
    """Natural-gradient ascent of the ELBO over Gaussians, full or diagonal like `factor`.

    The coordinates `u` are those in which the Gaussian is standard. Let `r = grad log p(u) + u`, which is zero
    everywhere once p equals that Gaussian, so that the noise vanishes at a perfect fit. The precision becomes
    `P = I - rate E[r u^T]`, by Stein's identity for the expected Hessian, and the mean moves by `rate P^-1 E[r]`. Both
    changes are bounded.

    Source: Khan and Rue 2023, arXiv 2107.04562.
    """
    kept: list[np.ndarray] = []  # log weights of the Gaussians that were kept
    before, damping = None, 1.0  # the last of these
    for step in range(settings.refine_steps):
        u = _antithetic(rng, settings.refine_draws, loc.size, loc.dtype)
        log_p, gradients = density(loc + outward(factor, u))
        log_weights = log_p - _log_prob(factor, u)
        elbo, noise = _finite_mean(log_weights), _clipped(log_weights).std() / np.sqrt(len(u))
        if before is None or elbo > before.elbo - 2.0 * noise:
            gradients = np.where(np.isfinite(gradients).all(1, keepdims=True), gradients, 0.0)
            residual = _bounded(gradients * factor if factor.ndim == 1 else gradients @ factor) + u
            moment = (residual * u).mean(0) if factor.ndim == 1 else residual.T @ u / len(u)
            before = _Ascent(loc, factor, elbo, log_weights, residual.mean(0), moment)
            damping = min(1.0, 2.0 * damping)
            kept.append(log_weights)
            if _settled(kept, settings):
                break
        else:  # the step made it worse
            damping *= 0.25
        loc, factor = _stepped(before, damping / (1.0 + step / 10.0), settings)
    assert before is not None
    last = np.concatenate(kept[-settings.refine_window :])
    return before._replace(elbo=_finite_mean(last), log_weights=last)  # of all draws of the last steps


def _settled(kept: list[np.ndarray], settings: FlowVISettings) -> bool:
    """Whether the last steps gained next to nothing over as many before; if noise allows, a quarter of a window."""
    for window in (settings.refine_window // 4, settings.refine_window):
        if window == 0 or len(kept) < 2 * window or len(kept) % window:
            continue
        old, new = np.stack(kept[-2 * window :]).reshape(2, -1)
        noise = np.hypot(_clipped(old).std(), _clipped(new).std()) / np.sqrt(old.size)
        if window == settings.refine_window or noise < settings.refine_gain:
            return not _finite_mean(new) > _finite_mean(old) + settings.refine_gain
    return False


def _bounded(gradients: np.ndarray) -> np.ndarray:
    """Gradients bounded so that their products are finite: deep in a neck they overflow."""
    most = np.finfo(gradients.dtype).max ** 0.25
    return np.clip(np.nan_to_num(gradients), -most, most)


def _stepped(ascent: _Ascent, rate: float, settings: FlowVISettings) -> tuple[np.ndarray, np.ndarray]:
    """Location and factor after a step of natural gradients."""
    loc, factor = ascent.loc, ascent.factor
    if factor.ndim == 1:
        precision = np.clip(1.0 - rate * ascent.moment, *settings.refine_precision_bounds)
        move, new_factor = ascent.mean / precision, factor / np.sqrt(precision)
    else:
        values, vectors = np.linalg.eigh(np.eye(loc.size) - rate * 0.5 * (ascent.moment + ascent.moment.T))
        values = np.clip(values, *settings.refine_precision_bounds)
        move = vectors @ ((vectors.T @ ascent.mean) / values)
        new_factor = factor @ ((vectors / np.sqrt(values)) @ vectors.T)
    move = rate * move
    move = move * min(1.0, settings.refine_max_move / (np.linalg.norm(move) + 1e-30))
    return (loc + outward(factor, move)).astype(loc.dtype), new_factor.astype(loc.dtype)


def draw_gaussian(
    density: Density, fit: GaussianFit, rng: np.random.Generator, settings: FlowVISettings
) -> Iterator[Draws]:
    """Fresh draws of the Gaussian in blocks, as many as a verdict needs."""
    left = settings.certificate_draws
    while left > 0:
        u = rng.standard_normal((min(_BLOCK, left), fit.loc.size))
        left -= len(u)
        x = fit.loc + outward(fit.scale, u)
        log_p = values(density, x)
        yield Draws(x, log_p, log_p - _log_prob(fit.scale, u))


def _log_prob(factor: np.ndarray, u: Float[np.ndarray, "draws dim"]) -> Float[np.ndarray, " draws"]:
    """Log density of `N(0, factor factor^T)` at `factor u`."""
    log_det = np.log(factor).sum() if factor.ndim == 1 else np.linalg.slogdet(factor)[1]
    return -0.5 * (u**2 + np.log(2 * np.pi)).sum(-1) - log_det


def gaussian_log_prob(
    loc: Float[np.ndarray, " dim"], scale: np.ndarray, x: Float[np.ndarray, "points dim"]
) -> Float[np.ndarray, " points"]:
    """Log density of `N(loc, scale scale^T)`, `scale` lower-triangular or a vector."""
    away = x - loc
    u = away / scale if scale.ndim == 1 else solve_triangular(scale, away.T, lower=True).T
    return _log_prob(scale, u)


def _finite_mean(log_weights: np.ndarray) -> float:
    """The ELBO of log weights, -inf if it is not finite; none counts as lower than `_DEEPEST` below the median.

    In a neck the density of a draw may be e^-1e100, which shows only that it is far too low.
    """
    mean = float(_clipped(log_weights).mean())
    return mean if np.isfinite(mean) else -np.inf


def _clipped(log_weights: np.ndarray) -> np.ndarray:
    if not np.isfinite(log_weights).all():
        return log_weights
    return np.maximum(log_weights, np.median(log_weights) - _DEEPEST)


def _antithetic(rng: np.random.Generator, num: int, dim: int, dtype: np.dtype) -> Float[np.ndarray, "draws dim"]:
    half = rng.standard_normal((num // 2, dim))
    return np.concatenate([half, -half]).astype(dtype)


def outward(factor: np.ndarray, u: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
    """`factor u`, the factor a matrix or a diagonal."""
    return u * factor if factor.ndim == 1 else u @ factor.T


def triangular(factor: np.ndarray) -> np.ndarray:
    """The lower-triangular `L` of positive diagonal with `L L^T = factor factor^T`."""
    if factor.ndim == 1:
        return factor
    upper = np.linalg.qr(factor.T, mode="r")
    return upper.T * np.sign(np.diagonal(upper))
