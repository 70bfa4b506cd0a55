"""Modes that a fit lacks: Gaussians around them, whose draws measure the mass there."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from numpyro_flows.inference.exploration import Probe
from numpyro_flows.inference.gaussian import GaussianFit, gaussian_log_prob, triangular
from numpyro_flows.inference.groups import grouped
from numpyro_flows.inference.mixture import Bell, Component, Mixture
from numpyro_flows.inference.newton import Climb, Density, climb, values
from numpyro_flows.inference.settings import FlowVISettings

_MOST_OF_TAILS = 0.05  # share of points outside the modes' ellipsoids; for a normal distribution it is 2%


class Mode(NamedTuple):
    """`N(loc, factor factor^T)` at an optimum, or around points of another region."""

    loc: Float[np.ndarray, " dim"]
    factor: Float[np.ndarray, "dim dim"] | Float[np.ndarray, " dim"]
    optimum: bool = True

    def around(self, x: Float[np.ndarray, "points dim"]) -> Bool[np.ndarray, " points"]:
        """Whether points lie in the ellipsoid of nearly all its mass, three standard deviations beyond the mean."""
        dim = self.loc.size
        log_peak = gaussian_log_prob(self.loc, self.factor, self.loc[None])
        squares = 2.0 * (log_peak - gaussian_log_prob(self.loc, self.factor, x))
        return squares < dim + 3.0 * np.sqrt(2.0 * dim)


def modes_at(
    density: Density,
    fit: GaussianFit,
    points: Float[np.ndarray, "points dim"],
    rng: np.random.Generator,
    settings: FlowVISettings,
) -> list[Mode]:
    """Gaussians for points near modes: at the optima that climbs from these points reach, with the curvature there.

    Points around which no climb converges, at a kink or in a neck, are grouped by a mixture of Gaussians. If there are
    very many modes, not all are found.
    """
    modes: list[Mode] = []
    rest, climbed = points, points[:0]
    if fit.loc.size <= settings.max_full_dim:
        factor = np.diag(fit.scale) if fit.scale.ndim == 1 else fit.scale
        while len(rest) and len(modes) < settings.most_modes:
            chosen = rng.permutation(len(rest))[: settings.dispersed_starts]
            climbs = climb(density, rest[chosen].astype(fit.loc.dtype), factor, settings)
            more = _optima(climbs, modes)
            modes += more
            arrived = chosen[climbs.converged]
            climbed = _apart_from(modes, np.concatenate([climbed, rest[arrived]]))
            rest = _apart_from(modes, np.delete(rest, arrived, axis=0))
            if not (more or climbs.converged.all()):
                break
    if len(climbed) > _MOST_OF_TAILS * len(points):  # a slab around a spike, from which all climbs end in the spike
        rest = np.concatenate([rest, climbed])
    if len(rest) > 1 and len(modes) < settings.most_modes:
        bells = grouped(rest, fit, rng, settings).components
        modes += [Mode(bell.loc, bell.factor, False) for bell in bells if isinstance(bell, Bell)]
    return modes


def draws_around(density: Density, modes: list[Mode], rng: np.random.Generator, settings: FlowVISettings) -> Probe:
    """Draws of the mixture of the modes' Gaussians, all with the same weight."""
    each = max(settings.mode_draws // len(modes), settings.least_mode_draws)
    return draws_of(density, Mixture.even([Bell(mode.loc, mode.factor) for mode in modes]), rng, each * len(modes))


def draws_of(density: Density, distribution: Component, rng: np.random.Generator, num: int) -> Probe:
    """Draws of a distribution around other modes."""
    x = distribution.draw(rng, num)
    log_density = np.asarray(values(density, x), np.float64)
    log_density = np.where(np.isfinite(log_density), log_density, -np.inf)
    return Probe("draws around other modes", x, log_density, distribution.log_prob(x), cost=num)


def _optima(climbs: Climb, modes: list[Mode]) -> list[Mode]:
    """The optima that climbs reached and that are not around `modes`."""
    found: list[Mode] = []
    for x, factor in zip(climbs.x[climbs.converged], climbs.factor[climbs.converged]):
        if len(_apart_from([*modes, *found], x[None])):
            found.append(Mode(x, triangular(factor)))
    return found


def _apart_from(modes: list[Mode], points: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, "rest dim"]:
    """The points outside all modes' ellipsoids."""
    inside = np.zeros(len(points), bool)
    for mode in modes:
        inside |= mode.around(points)
    return points[~inside]
