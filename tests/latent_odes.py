"""Series and small latent ODEs that tests of latent ODEs share."""

from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_flows import LatentODE, fit_latent_ode, flows
from tests.bijections.common import made

realnvp = partial(flows.realnvp, num_layers=2)
small = partial(LatentODE, latent_dim=2, width=8, flow=realnvp, dropout=0.0, window=(1.0, 3.0))
fit_small = partial(fit_latent_ode, latent_dim=2, width=8, flow=None, progress_bar=False)


def waves(num: int = 6, length: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Waves of any phase, and twice their slope."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(1.0, 3.0, (num, length)), axis=1)
    angle = 2 * times + rng.uniform(0, 2 * np.pi, (num, 1))
    return times, np.stack([np.sin(angle), 2 * np.cos(angle)], -1) + 0.1 * rng.normal(size=(num, length, 2))


def perturbed(module, seed: int = 1, scale: float = 0.3):
    """With every array moved, so that nothing is zero as it is before training; in the precision of the test."""
    arrays, static = eqx.partition(module, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(arrays)
    rng = np.random.default_rng(seed)
    moved = [jnp.asarray(np.asarray(leaf) + scale * rng.normal(size=leaf.shape), float) for leaf in leaves]
    return eqx.combine(jax.tree.unflatten(tree, moved), static)


DOSES = np.array([[0.5], [1.0], [-1.0], [2.0], [0.0], [-0.5]])  # of the six waves


@cache
def untrained() -> LatentODE:
    """Compiled once, in single precision."""
    with jax.enable_x64(False):
        return made(lambda: small(jax.random.key(0), 2, flow=None))


@cache
def untrained_with_doses() -> LatentODE:
    with jax.enable_x64(False):
        return made(lambda: small(jax.random.key(0), 2, flow=None, cov_dim=1))


def params_of(latent_ode):
    return eqx.filter(latent_ode, eqx.is_inexact_array)


def eps(dtype) -> float:
    return float(np.finfo(dtype).eps)
