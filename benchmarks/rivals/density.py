"""The density that every rival gets: of the NumPyro model, unconstrained, in double precision, as a JAX function."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.posteriordb.models import Posterior, flatten
from numpyro_flows.inference.target import Target

RADIUS = 2.0  # NumPyro, Stan and PyMC's samplers start uniformly within this distance of zero
_BLOCK = 1_000  # draws that are constrained at a time


class Density:
    """The log density of a posterior with its sites, and points to start from.

    Attributes:
        dim: dimension of the unconstrained space.
        sites: names of the latent sites, in the order of `x`.
        log_density: `x -> log p(x, data)`, with the Jacobian of the constraints.
    """

    def __init__(self, posterior: Posterior):
        self._target = Target(posterior.model, jax.random.key(0), posterior.args)
        self.dim, self.sites = self._target.dim, list(self._target.shapes)
        self.log_density = self._target.log_density
        self._constrain = jax.jit(jax.vmap(self._target.constrain))

    def starts(self, key: Any, num: int) -> np.ndarray:
        """`(num, dim)` points of finite log density and gradient, uniform in `(-RADIUS, RADIUS)`."""
        x = jax.random.uniform(key, (20 * num, self.dim), minval=-RADIUS, maxval=RADIUS)
        log_density, gradient = jax.jit(jax.vmap(jax.value_and_grad(self.log_density)))(x)
        finite = np.isfinite(log_density) & np.isfinite(gradient).all(axis=1)
        if finite.sum() < num:
            raise ValueError(f"expected {num} starts of finite density in {20 * num} points, got {finite.sum()}")
        return np.asarray(x)[finite][:num]

    def scalars(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The constrained scalars of unconstrained draws `(..., dim)` by the names of Stan, all in one axis."""
        x = x.reshape(-1, self.dim)
        padded = np.pad(x, ((0, -len(x) % _BLOCK), (0, 0)), mode="edge")
        blocks = [jax.device_get(self._constrain(block)) for block in padded.reshape(-1, _BLOCK, self.dim)]
        return flatten(jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(x)], *blocks))


def compiled(function: Any, *args: Any) -> tuple[Any, float]:
    """A jitted function compiled for such arguments, and the seconds of that."""
    start = time.perf_counter()
    executable = jax.jit(function).lower(*args).compile()
    return executable, time.perf_counter() - start


def in_double(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.float64)
