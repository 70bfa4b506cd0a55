"""Many short Markov chains side by side, on the host: a mixture moves them between modes, the density within a mode."""

import numpy as np
from jaxtyping import Bool, Float

from numpyro_flows.inference.certificate import Draws, resample
from numpyro_flows.inference.draws import Chains
from numpyro_flows.inference.gaussian import GaussianFit
from numpyro_flows.inference.mixture import Mixture, weighted_draws
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.tempering import Particles, Whitened, move

_AT_ONCE = 16  # sweeps for which proposals are drawn together


class Sampler:
    """Chains of sweeps, each of which leaves the density invariant.

    A sweep is an independence Metropolis step with a mixture as the proposal, Hamiltonian moves of random lengths, and
    jumps by the difference of two other chains in some of the coordinates. Chains start from weighted draws of the
    mixture.

    Source: Tierney 1994; ter Braak, Vrugt 2008 (differences).
    """

    def __init__(
        self,
        density: Density,
        gaussian: GaussianFit,
        mixture: Mixture,
        rng: np.random.Generator,
        settings: FlowVISettings,
    ):
        self._density, self._mixture, self._rng, self._settings = density, mixture, rng, settings
        self._gaussian, self._whitened = gaussian, Whitened(density, gaussian)
        num = settings.chains
        draws = weighted_draws(mixture, density, rng, settings.mixture_draws)
        index = resample(draws.log_weight, num, rng)
        self._particles = self._whitened(Whitened.points(gaussian, draws.x[index]))

    @np.errstate(over="ignore", invalid="ignore")
    def sweeps(self, num: int, every: int) -> Chains:
        """Run so many sweeps, and keep a draw after every `every` of them."""
        settings, rng = self._settings, self._rng
        xs, heights, proposals = [], [], iter(())
        for i in range(num):
            if i % _AT_ONCE == 0:
                drawn = weighted_draws(self._mixture, self._density, rng, settings.chains * _AT_ONCE)
                proposals = zip(*(np.split(leaf, _AT_ONCE) for leaf in drawn))
            self._independent(Draws(*next(proposals)))
            for _ in range(settings.chain_moves):
                self._particles = move(self._whitened, self._particles, rng, settings)
            for _ in range(settings.chain_jumps):
                self._by_differences()
            if i % every == every - 1:
                xs.append(self._whitened.x(self._particles.u))
                heights.append(self._particles.log_density)
        return Chains(np.stack(xs, 1), np.stack(heights, 1))

    def _independent(self, proposals: Draws) -> None:
        particles = self._particles
        log_weight = particles.log_density - self._mixture.log_prob(self._whitened.x(particles.u))
        accepted = self._accepted(proposals.log_weight - log_weight)
        if accepted.any():  # with the gradients there, for the next move
            new = self._whitened(Whitened.points(self._gaussian, proposals.x[accepted]))
            self._replace(np.flatnonzero(accepted), new)

    def _by_differences(self) -> None:
        """Each half of the chains jumps by differences of two chains of the other half, in random coordinates."""
        rng, num, dim = self._rng, *self._particles.u.shape
        halves = np.array_split(rng.permutation(num), 2)
        for own, other in (halves, halves[::-1]):
            x = self._whitened.x(self._particles.u)
            first = rng.integers(len(other), size=len(own))
            second = (first + rng.integers(1, len(other), size=len(own))) % len(other)
            share = np.exp(rng.uniform(-2.0 * np.log(dim), 0.0, (len(own), 1)))  # often one coordinate alone
            chosen = rng.uniform(size=(len(own), dim)) < share
            chosen[np.arange(len(own)), rng.integers(dim, size=len(own))] = True
            new_x = x[own] + chosen * (x[other[first]] - x[other[second]])
            new = self._whitened(Whitened.points(self._gaussian, new_x))
            accepted = self._accepted(new.log_density - self._particles.log_density[own])
            self._replace(own[accepted], new.chosen(accepted))

    def _accepted(self, log_ratio: Float[np.ndarray, " chains"]) -> Bool[np.ndarray, " chains"]:
        return np.log(self._rng.uniform(size=len(log_ratio))) < log_ratio

    def _replace(self, index: np.ndarray, new: Particles) -> None:
        leaves = [np.array(leaf) for leaf in self._particles]
        for leaf, values in zip(leaves, new):
            leaf[index] = values
        self._particles = Particles(*leaves)
