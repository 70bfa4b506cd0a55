"""Draws of a fitted posterior from its flow, a mixture or chains, with their importance weights."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.inference.blocks import in_blocks
from numpyro_flows.inference.certificate import Certificate, Draws, resample
from numpyro_flows.inference.compiled import Block, drawing, join
from numpyro_flows.inference.draws import Chains
from numpyro_flows.inference.mixture import Mixture
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.stored import StoredSites
from numpyro_flows.inference.target import Target
from numpyro_flows.training.ahead import Later
from numpyro_flows.training.seeds import Seed, Seeds

_LEAST_ESS = 0.25  # the pool grows like 1 / ESS, down to this ESS


class PosteriorDraws:
    """The source of a posterior's draws.

    block: arrays of the flow, seed -> `Block`; compiled on first use if the fit has not done so.
    mixture: if there is one, the verdict is about it. Otherwise it is about `chains`, if there are any.
    """

    def __init__(
        self,
        target: Target | StoredSites,
        bijection: AbstractBijection,
        block: Callable[[PyTree, Seed], Block] | None,
        mixture: Mixture | None,
        chains: Chains | None,
        certificate: Certificate,
        settings: FlowVISettings,
    ):
        self._arrays, static = eqx.partition(bijection, eqx.is_array)
        self._block = block or Later(drawing(target, static, settings.block))  # pyright: ignore[reportArgumentType]
        self._values = Later(jax.vmap(target.log_density))
        self.mixture = mixture if isinstance(target, Target) else None  # whose draws need weights
        self._chains = None if self.mixture else chains
        self._log_evidence = float(np.nan_to_num(certificate.log_evidence))
        self._pool = max(settings.pool, round(1.0 / float(np.clip(np.nan_to_num(certificate.ess), _LEAST_ESS, 1.0))))
        self._settings = settings

    def of_flow(self, seeds: Seeds, num: int) -> Draws:
        """The flow's own draws, with their weights."""
        num_blocks = -(-num // self._settings.block)
        draws = join(self._block(self._arrays, seed) for seed in seeds.many(num_blocks, "draws"))
        return Draws(*(leaf[:num] for leaf in draws))

    def weighted(self, seeds: Seeds, num: int) -> Draws:
        """Draws of the flow, mixture or chains of the verdict, with their weights, which are equal for chains."""
        if self.mixture is not None:
            x = self.mixture.draw(seeds.rng("mixture"), num).astype(jnp.result_type(float))
            log_density = np.asarray(in_blocks(self._values, x, self._settings.block), np.float64)
            return Draws(x, log_density, log_density - self.mixture.log_prob(x))
        if self._chains is None:
            return self.of_flow(seeds, num)
        x, log_density = self._chains.flat
        index = np.resize(seeds.rng("chains").permutation(len(x)), num)  # draws repeat only if there are not enough
        return Draws(x[index], log_density[index], np.full(num, self._log_evidence))

    def resampled(self, seeds: Seeds, num: int) -> Draws:
        """Draws kept by importance resampling, with their weights before it; for chains, random draws of these."""
        if self._chains is not None:
            return self.weighted(seeds, num)
        draws = self.weighted(seeds, self._pool * num)
        index = resample(np.asarray(draws.log_weight), num, seeds.rng("resampling"))
        return Draws(*(leaf[index] for leaf in draws))

    def first_of_flow(self, num: int) -> np.ndarray:
        """The same few points of the flow at every call."""
        return np.asarray(self._block(self._arrays, np.zeros(4, np.uint32))[0][:num])
