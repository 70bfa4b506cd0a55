"""The base of a flow, moved to one data set: what importance weights say about location and scale."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_INFLATION = 1.1  # of standard deviations: tails that are too wide cost little, too thin ones much
_PRIOR_DRAWS = 10.0  # weight of the identity, in effective draws for each dimension


class Base(NamedTuple):
    """A normal distribution `loc + tril e` in the base of a flow, in place of the standard one."""

    loc: Float[Array | np.ndarray, "*sets dim"]
    tril: Float[Array | np.ndarray, "*sets dim dim"]

    @classmethod
    def standard(cls, num: int, dim: int) -> "Base":
        """One for each of `num` data sets."""
        return cls(np.zeros((num, dim)), np.tile(np.eye(dim), (num, 1, 1)))

    def moved(self, e: Float[Array, "draws dim"], log_weights: Float[Array, " draws"]) -> "Base":
        """The base with the moments of weighted draws `loc + tril e`.

        Weights are cut at `sqrt(draws)` times their mean (Ionides 2008, Truncated importance sampling). The fewer
        effective draws, the nearer is the covariance to the present one.
        """
        num, dim = e.shape
        usable = jnp.isfinite(log_weights)
        weights = jnp.where(usable, jnp.exp(log_weights - jnp.max(log_weights, where=usable, initial=-jnp.inf)), 0.0)
        weights = jnp.minimum(weights, weights.mean() * jnp.sqrt(num))
        weights = weights / jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)
        effective = 1.0 / jnp.maximum(jnp.sum(weights**2), 1.0 / num)
        mean = weights @ e
        centred = e - mean
        prior = _PRIOR_DRAWS * dim
        covariance = (effective * (weights * centred.T) @ centred + prior * jnp.eye(dim)) / (effective + prior)
        return Base(self.loc + self.tril @ mean, self.tril @ jnp.linalg.cholesky(_INFLATION**2 * covariance))
