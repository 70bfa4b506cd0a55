"""Tempered particles: from a Gaussian much wider than a fit, step by step, to the posterior."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from numpyro_flows.inference.gaussian import GaussianFit, outward
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.settings import FlowVISettings


class Particles(NamedTuple):
    """Points with their log densities `log p` and gradients, in coordinates `u` of a Gaussian: `x = loc + scale u`."""

    u: Float[np.ndarray, "particles dim"]
    log_density: Float[np.ndarray, " particles"]
    gradient: Float[np.ndarray, "particles dim"]

    def chosen(self, index: np.ndarray) -> "Particles":
        return Particles(*(leaf[index] for leaf in self))

    def where(self, taken: Bool[np.ndarray, " particles"], other: "Particles") -> "Particles":
        """Those of `other` where `taken`, else these."""
        return Particles(*(np.where(taken.reshape(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip(self, other)))


class Whitened:
    """A density in coordinates in which a Gaussian fit is standard. It is zero where it or its gradient is not finite.

    The density is that of `x`, without the constant Jacobian.
    """

    def __init__(self, density: Density, fit: GaussianFit):
        self._density, self._fit = density, fit

    @np.errstate(over="ignore", invalid="ignore")
    def __call__(self, u: Float[np.ndarray, "points dim"]) -> Particles:
        log_p, gradient = self._density(self.x(u))
        gradient = gradient * self._fit.scale if self._fit.scale.ndim == 1 else gradient @ self._fit.scale
        usable = np.isfinite(log_p) & np.isfinite(gradient).all(1)
        return Particles(u, np.where(usable, log_p, -np.inf), np.where(usable[:, None], gradient, 0.0))

    @staticmethod
    def points(fit: GaussianFit, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, "points dim"]:
        """The coordinates `u` of points `x`."""
        away = x - fit.loc
        return away / fit.scale if fit.scale.ndim == 1 else solve_triangular(fit.scale, away.T, lower=True).T

    def x(self, u: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, "points dim"]:
        return self._fit.loc + outward(self._fit.scale, u)


@np.errstate(over="ignore", invalid="ignore")  # a density that is not finite counts as zero
def temper(density: Whitened, dim: int, rng: np.random.Generator, settings: FlowVISettings) -> Particles:
    """Particles that roughly follow the posterior, by sequential Monte Carlo from `r = N(0, s^2 I)` around the fit.

    The particles follow `p^b r^(1-b)`, in the fit's coordinates. Each step raises the exponent `b` as far as the
    effective sample size of the particles' weights allows, resamples them, and moves them by Hamiltonian Monte Carlo.
    The step lengths are random over two orders of magnitude, because modes may be much narrower than the fit. If two
    modes are found, the proportion of their particles is only roughly right.

    Source: Del Moral, Doucet, Jasra 2006; adaptive exponents: Jasra, Stephens, Doucet, Tsagaris 2011.
    """
    num, width = settings.particles, settings.inflation
    particles = density(width * rng.standard_normal((num, dim)))
    exponent = 0.0
    for _ in range(settings.temperatures):
        log_ratio = particles.log_density + 0.5 * (particles.u**2).sum(1) / width**2
        if not np.isfinite(log_ratio).any():
            break
        exponent, weights = _next(log_ratio, exponent, settings)
        positions = (np.arange(num) + rng.uniform()) / num
        index = np.minimum(np.searchsorted(np.cumsum(weights), positions), num - 1)
        particles = particles.chosen(index)
        for _ in range(settings.moves):
            particles = move(density, particles, rng, settings, exponent, width)
        if exponent == 1.0:
            break
    return particles


@np.errstate(over="ignore", invalid="ignore")
def move(
    density: Whitened,
    particles: Particles,
    rng: np.random.Generator,
    settings: FlowVISettings,
    exponent: float = 1.0,
    width: float = 1.0,
) -> Particles:
    """One Hamiltonian Monte Carlo transition of every particle, which leaves `p^b N(0, width^2 I)^(1-b)` invariant."""
    num, dim = particles.u.shape
    shortest, longest = np.log(settings.leapfrog_lengths)
    length = np.exp(rng.uniform(shortest, longest, (num, 1))) * dim**-0.25
    rest = (1.0 - exponent) / width**2

    def force(at: Particles) -> np.ndarray:
        return exponent * at.gradient - rest * at.u

    def energy(at: Particles, momentum: np.ndarray) -> np.ndarray:
        return 0.5 * (rest * at.u**2 + momentum**2).sum(1) - exponent * at.log_density

    momentum = rng.standard_normal((num, dim))
    before, end = energy(particles, momentum), particles
    for _ in range(settings.leapfrog_steps):
        momentum = momentum + 0.5 * length * force(end)
        end = density(end.u + length * momentum)
        momentum = momentum + 0.5 * length * force(end)
    accepted = np.log(rng.uniform(size=num)) < before - energy(end, momentum)
    return particles.where(accepted, end)


def _next(log_ratio: np.ndarray, exponent: float, settings: FlowVISettings) -> tuple[float, np.ndarray]:
    """The next exponent, and the particles' normalised weights for it.

    Particles of zero density have no weight and do not count as particles. Otherwise no exponent would be good enough
    if they are the majority.
    """
    alive = np.isfinite(log_ratio)

    def weights(to: float) -> np.ndarray:
        log_weights = np.where(alive, (to - exponent) * np.where(alive, log_ratio, 0.0), -np.inf)
        return np.exp(log_weights - np.asarray(logsumexp(log_weights)))

    def good(to: float) -> bool:
        return 1.0 / (weights(to) ** 2).sum() >= settings.tempering_ess * alive.sum()

    low, high = exponent, 1.0
    if good(high):
        return high, weights(high)
    while high - low > 1e-3 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if good(middle) else (low, middle)
    return high, weights(high)
