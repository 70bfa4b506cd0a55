"""The Gaussian stage: from several starts to one Gaussian that fits an unnormalized density.

Newton's method climbs from every start, the Gaussians compete by their ELBO on the same draws, and natural-gradient
variational inference refines the best. No learning rate to choose. All of it runs on the host around one compiled
function, the density with its gradient: algebra of this size is faster in NumPy than XLA is to compile it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_flows.newton import Climb, Density, climb
from numpyro_flows.recipe import RECIPE
from numpyro_flows.sampling import Draws, relative_ess


class GaussianFit(NamedTuple):
    """`N(loc, scale scale^T)`: `scale` lower-triangular, or a vector where the covariance is diagonal.

    `elbo` is its ELBO on a few draws, -inf where every start and everything found from it is not finite. `climbs` are
    what Newton's method found from the starts.
    """

    loc: Float[np.ndarray, " dim"]
    scale: Float[np.ndarray, "dim dim"] | Float[np.ndarray, " dim"]
    elbo: float
    climbs: Climb


@np.errstate(over="ignore", invalid="ignore")  # what is not finite far out is dealt with where it matters
def fit_gaussian(density: Density, rng: np.random.Generator, starts: Float[np.ndarray, "starts dim"]) -> GaussianFit:
    """The Gaussian of largest ELBO that Newton's method and natural gradients find from `starts`.

    The best of those at the modes is refined; where few of its draws would count, the best of those of unit scale at
    the starts is too, and the better one wins.
    """
    dim = starts.shape[1]
    full = dim <= RECIPE.max_full_dim
    unit = np.eye(dim, dtype=starts.dtype) if full else np.ones(dim, starts.dtype)
    groups = [[(start, unit) for start in starts]]
    if full:
        climbs = climb(density, starts, unit)
        groups.insert(0, _candidates(climbs))
    else:
        climbs = Climb(starts[:0], np.zeros(0), np.zeros((0, dim, dim)), np.zeros(0, bool))
    u = _antithetic(rng, dim, starts.dtype)
    best: tuple[np.ndarray, np.ndarray, float] | None = None
    for group in groups:
        elbos = [_finite_mean(_log_weights(density, loc, factor, u)) for loc, factor in group]
        loc, factor, log_weights = _refine(density, rng, *group[int(np.argmax(elbos))])
        elbo = _finite_mean(log_weights)
        if best is None or elbo > best[2]:
            best = loc, factor, elbo
        if relative_ess(log_weights) >= RECIPE.unit_start_ess:
            break
    assert best is not None
    return GaussianFit(best[0], _triangular(best[1]), best[2], climbs)


def _candidates(climbs: Climb) -> list[tuple[np.ndarray, np.ndarray]]:
    """Locations and factors of the Gaussians at the best few different ends of climbs."""
    evidence = climbs.log_density + np.linalg.slogdet(climbs.factor)[1]
    _, different = np.unique(np.round(evidence, 2), return_index=True)  # one mode found twice has one evidence
    best = sorted(different, key=lambda i: -np.nan_to_num(evidence[i], nan=-np.inf))[: RECIPE.num_candidates]
    return [(climbs.x[i], climbs.factor[i]) for i in best]


def _refine(
    density: Density, rng: np.random.Generator, loc: np.ndarray, factor: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Natural-gradient ascent of the ELBO over Gaussians; returns the log weights of the last steps' draws too.

    In coordinates `u` where the Gaussian is standard, with `r = grad log p(u) + u` (zero everywhere once p is that
    Gaussian, so the noise vanishes at a fit), the precision becomes `P = I - rate E[r u^T]` (Stein's identity for the
    expected Hessian) and the mean moves by `rate P^-1 E[r]`, both within bounds.

    Source: Khan and Rue 2023, arXiv 2107.04562.
    """
    window = RECIPE.refine_window
    log_weights: list[np.ndarray] = []
    for step in range(RECIPE.refine_steps):
        if step >= 2 * window and step % window == 0:
            before, after = np.stack(log_weights[-2 * window :]).reshape(2, -1)
            if not _finite_mean(after) > _finite_mean(before) + RECIPE.refine_gain:
                break
        rate = 1.0 / (1.0 + step / 10.0)
        u = _antithetic(rng, loc.size, loc.dtype)
        log_p, gradients = density(loc + outward(factor, u))
        log_weights.append(log_p - _log_prob(factor, u))
        gradients = np.where(np.isfinite(gradients).all(1, keepdims=True), gradients, 0.0)
        residual = (gradients * factor if factor.ndim == 1 else gradients @ factor) + u
        mean = residual.mean(0)
        if factor.ndim == 1:
            precision = np.clip(1.0 - rate * (residual * u).mean(0), *RECIPE.refine_precision_bounds)
            move, change = mean / precision, 1.0 / np.sqrt(precision)
        else:
            moment = residual.T @ u / len(u)
            values, vectors = np.linalg.eigh(np.eye(loc.size) - rate * 0.5 * (moment + moment.T))
            values = np.clip(values, *RECIPE.refine_precision_bounds)
            move = vectors @ ((vectors.T @ mean) / values)
            change = (vectors / np.sqrt(values)) @ vectors.T
        move = rate * move
        move = move * min(1.0, RECIPE.refine_max_move / (np.linalg.norm(move) + 1e-30))
        loc = (loc + outward(factor, move)).astype(loc.dtype)
        factor = (factor * change if factor.ndim == 1 else factor @ change).astype(loc.dtype)
    return loc, factor, np.concatenate(log_weights[-window:])


def draw_gaussian(density: Density, fit: GaussianFit, rng: np.random.Generator, num: int) -> Draws:
    """Fresh draws of the Gaussian."""
    u = rng.standard_normal((num, fit.loc.size))
    x = fit.loc + outward(fit.scale, u)
    log_p, _ = density(x)
    return Draws(x, log_p, log_p - _log_prob(fit.scale, u))


def _log_weights(density: Density, loc: np.ndarray, factor: np.ndarray, u: np.ndarray) -> np.ndarray:
    return density(loc + outward(factor, u))[0] - _log_prob(factor, u)


def _log_prob(factor: np.ndarray, u: Float[np.ndarray, "draws dim"]) -> Float[np.ndarray, " draws"]:
    """Log density of `N(0, factor factor^T)` at `factor u`."""
    log_det = np.log(factor).sum() if factor.ndim == 1 else np.linalg.slogdet(factor)[1]
    return -0.5 * (u**2 + np.log(2 * np.pi)).sum(-1) - log_det


def _finite_mean(log_weights: np.ndarray) -> float:
    """The ELBO of log weights, -inf where it is not finite."""
    mean = float(log_weights.mean())
    return mean if np.isfinite(mean) else -np.inf


def _antithetic(rng: np.random.Generator, dim: int, dtype: np.dtype) -> Float[np.ndarray, "draws dim"]:
    half = rng.standard_normal((RECIPE.refine_draws // 2, dim))
    return np.concatenate([half, -half]).astype(dtype)


def outward(factor: np.ndarray, u: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
    """`factor u`, the factor a matrix or a diagonal."""
    return u * factor if factor.ndim == 1 else u @ factor.T


def _triangular(factor: np.ndarray) -> np.ndarray:
    """The lower-triangular `L` of positive diagonal with `L L^T = factor factor^T`."""
    if factor.ndim == 1:
        return factor
    upper = np.linalg.qr(factor.T, mode="r")
    return upper.T * np.sign(np.diagonal(upper))
