"""A search for modes that a fit lacks, which its own weights cannot show: they see only where the fit has draws."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp

from numpyro_flows.inference.certificate import Draws
from numpyro_flows.inference.gaussian import GaussianFit
from numpyro_flows.inference.newton import Density, climb
from numpyro_flows.inference.settings import FlowVISettings


class Mode(NamedTuple):
    """A local optimum, and the mass of `p(x, data)` in the ellipsoid around it.

    The ellipsoid is that of the Gaussian `N(loc, factor factor^T)` of the curvature, draws from which measure the mass:
    `log_mass` and its relative standard error.
    """

    loc: Float[np.ndarray, " dim"]
    factor: Float[np.ndarray, "dim dim"]
    log_mass: float
    relative_se: float


def find_modes(density: Density, fit: GaussianFit, rng: np.random.Generator, settings: FlowVISettings) -> list[Mode]:
    """The modes that climbs find from the first starts of a fit and from dispersed ones around its Gaussian.

    None above `FlowVISettings.max_full_dim` dimensions.
    """
    dim = fit.loc.size
    if dim > settings.max_full_dim:
        return []
    low, high = np.log(settings.dispersion)
    radii = np.exp(np.linspace(low, high, settings.dispersed_starts))[:, None]
    starts = fit.loc + radii * rng.standard_normal((settings.dispersed_starts, dim)) @ fit.scale.T
    climbs = climb(density, starts.astype(fit.loc.dtype), fit.scale, settings)
    modes: list[Mode] = []
    for found in (fit.climbs, climbs):
        for x, factor in zip(found.x[found.converged], found.factor[found.converged]):
            if not any(_inside(mode, x[None])[0] for mode in modes):
                modes.append(_measure(density, x, factor, rng, settings.mode_draws))
    return modes


class Weighed(NamedTuple):
    """What a verdict needs of draws; the draws themselves would take gigabytes.

    inside: for each mode, which draws lie in the ellipsoid around it.
    """

    log_density: Float[np.ndarray, " draws"]
    log_weight: Float[np.ndarray, " draws"]
    inside: Bool[np.ndarray, "modes draws"]


def weigh(blocks: Iterable[Draws], modes: list[Mode]) -> Weighed:
    """What is kept of blocks of draws, one after the other."""
    kept = [
        (np.asarray(block.log_density), np.asarray(block.log_weight), _inside_each(modes, np.asarray(block.x)))
        for block in blocks
    ]
    return Weighed(*(np.concatenate(parts, axis=-1) for parts in zip(*kept)))


def missed_share(modes: list[Mode], draws: Weighed) -> float:
    """Largest share of the posterior that draws of a fit lack around one of `modes`, where it is beyond doubt.

    The mass around a mode is known from draws there; the weights of the fit's draws that lie there must add up to it.
    The share is of all mass known, and 0 where the difference is within three standard errors.
    """
    # broken draws count as none
    log_weights = np.where(np.isnan(draws.log_weight), -np.inf, np.asarray(draws.log_weight, np.float64))
    num = len(log_weights)
    log_total = logsumexp(log_weights) - np.log(num)
    worst = 0.0
    for mode, there in zip(modes, draws.inside):
        inside = np.exp(np.where(there, log_weights, -np.inf) - log_total)
        mass = np.exp(np.minimum(mode.log_mass - log_total, 50.0))
        lacking = mass - inside.mean()
        se = np.hypot(mass * mode.relative_se, inside.std() / np.sqrt(num))
        if lacking > 3 * se:
            worst = max(worst, float(lacking / (1.0 + lacking)))
    return worst


def _measure(density: Density, loc: np.ndarray, factor: np.ndarray, rng: np.random.Generator, num: int) -> Mode:
    dim = loc.size
    u = rng.standard_normal((num, dim)).astype(loc.dtype)
    log_p, _ = density(loc + u @ factor.T)
    log_q = -0.5 * (u**2 + np.log(2 * np.pi)).sum(1) - np.linalg.slogdet(factor)[1]
    within = ((u**2).sum(1) < _radius_squared(dim)) & np.isfinite(log_p)
    log_weights = np.where(within, log_p - log_q, -np.inf)
    if not within.any():
        return Mode(loc, factor, -np.inf, 0.0)
    log_mass = logsumexp(log_weights) - np.log(len(u))
    return Mode(loc, factor, log_mass, np.exp(log_weights - log_mass).std() / np.sqrt(len(u)))


def _inside_each(modes: list[Mode], x: Float[np.ndarray, "draws dim"]) -> Bool[np.ndarray, "modes draws"]:
    return np.array([_inside(mode, x) for mode in modes]).reshape(len(modes), len(x)).astype(bool)


def _inside(mode: Mode, x: Float[np.ndarray, "points dim"]) -> np.ndarray:
    u = np.linalg.solve(mode.factor, (x - mode.loc).T)
    return (u**2).sum(0) < _radius_squared(mode.loc.size)


def _radius_squared(dim: int) -> float:
    """Three standard deviations above the mean of a chi-squared variable: nearly all of a Gaussian."""
    return dim + 3.0 * np.sqrt(2.0 * dim)
