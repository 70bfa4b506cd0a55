"""A trained guide as a distribution of the unconstrained latent vector."""

from concurrent.futures import Executor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.infer.autoguide import AutoContinuous, AutoDelta, AutoGuide, AutoNormal

from numpyro_flows.arguments import described
from numpyro_flows.inference.blocks import in_blocks
from numpyro_flows.inference.target import Target
from numpyro_flows.modeling._numpyro import current_posterior
from numpyro_flows.modeling.model_run import model_run
from numpyro_flows.training.ahead import Ahead
from numpyro_flows.training.seeds import Seed, seed_key


class GuideDensity:
    """Draws of a guide with `log p` and `log q`, and its log density at given points, in blocks.

    `has_log_prob` says whether that log density exists: NumPyro's block neural flows have no inverse.
    """

    def __init__(self, pool: Executor, target: Target, posterior: dist.Distribution, block: int):
        self._block = block

        def draw(seed: Seed) -> tuple[Array, Array, Array]:
            x, log_q = _scored_draws(posterior, seed, block)
            log_p = jax.vmap(target.log_density)(x)
            return x, log_p, log_p - log_q

        points = np.zeros((block, target.dim), np.dtype(jnp.result_type(float)))
        with model_run():
            self.draw = Ahead(pool, draw, np.zeros(4, np.uint32))
            try:
                self._log_prob = Ahead(pool, posterior.log_prob, points)
            except NotImplementedError:
                self._log_prob = None

    @property
    def has_log_prob(self) -> bool:
        return self._log_prob is not None

    def log_prob(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        assert self._log_prob is not None
        return in_blocks(self._log_prob, x.astype(jnp.result_type(float)), self._block)


def posterior_of(guide: AutoGuide, params: dict[str, Any], target: Target) -> dist.Distribution:
    """The distribution of a guide with trained parameters on the target's vectors.

    Raises:
        TypeError: if the guide is not continuous.
        ValueError: if it has no density, or belongs to a model with other latent sites.
    """
    if isinstance(guide, AutoDelta):
        raise ValueError("guide expected a density, got an AutoDelta, which is a point: fit AutoLaplaceApproximation")
    if isinstance(guide, AutoNormal):
        return _independent_normals(guide, params, target)
    if not isinstance(guide, AutoContinuous):
        raise TypeError(
            f"guide expected a density of all latent sites, as AutoContinuous and AutoNormal have, got {guide!r}"
        )
    with model_run():
        if guide.prototype_trace is None:  # it was made here and trained elsewhere
            with numpyro.handlers.seed(rng_seed=0):
                guide(*target.args, **target.kwargs)
        sites = guide.prototype_trace or {}
        names = [name for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]]
        if names != list(target.shapes):
            raise ValueError(f"guide expected to be of this model, with sites {list(target.shapes)}, got {names}")
        posterior = _vector_posterior(guide, params)
        if posterior.batch_shape == (target.dim,):  # of AutoDiagonalNormal
            posterior = posterior.to_event(1)
    if (posterior.batch_shape, posterior.event_shape) != ((), (target.dim,)):
        raise ValueError(f"guide expected a density of vectors of length {target.dim}, got {described(posterior)}")
    return posterior


def _vector_posterior(guide: AutoContinuous, params: dict[str, Any]) -> dist.Distribution:
    try:
        return guide.get_posterior(params)
    except NotImplementedError:  # the batched guides have no base distribution
        pass
    try:
        with numpyro.handlers.substitute(data=params):
            return current_posterior(guide)
    except NotImplementedError as error:
        raise ValueError(f"guide expected a density, got {type(guide).__name__}, which has none") from error


def _independent_normals(guide: AutoNormal, params: dict[str, Any], target: Target) -> dist.Distribution:
    """`AutoNormal` as a distribution: a normal for each unconstrained site, with parameters of these names."""

    def joined(kind: str) -> Array:
        names = {site: f"{site}_{guide.prefix}_{kind}" for site in target.shapes}
        if missing := sorted(set(names.values()) - params.keys()):
            raise ValueError(f"params expected those of the guide and this model, missing {missing}")
        leaves = [jnp.broadcast_to(params[name], target.shapes[site]) for site, name in names.items()]
        return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])

    return dist.Normal(joined("loc"), joined("scale")).to_event(1)


def _scored_draws(posterior: dist.Distribution, seed: Seed, num: int) -> tuple[Array, Array]:
    """Draws with their log densities, computed without the inverse of a transform."""
    key = seed_key(seed)
    if isinstance(posterior, dist.TransformedDistribution):
        x, intermediates = posterior.sample_with_intermediates(key, (num,))
        return jnp.asarray(x), jnp.asarray(posterior.log_prob(x, intermediates))
    x = posterior.sample(key, (num,))
    return jnp.asarray(x), jnp.asarray(posterior.log_prob(x))
