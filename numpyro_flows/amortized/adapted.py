"""The base of a flow, moved to one data set: what importance weights say about location and scale."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_flows.modeling.scoring import standard_normal_log_prob

_STANDARD = 0.2  # share of draws of the standard normal base: what the flow covers stays covered
_INFLATION = 1.1  # of standard deviations: tails that are too wide cost little, too thin ones much
_PRIOR_DRAWS = 10.0  # weight of the present covariance, in effective draws for each dimension


class Base(NamedTuple):
    """A mixture of `N(loc, tril tril')` and, with a share of 20%, `N(0, I)` in the base of a flow.

    The second part is a defence: a mode of the posterior that the flow has cannot leave the draws without a trace in
    the weights (Hesterberg 1995, Technometrics 37(2)).
    """

    loc: Float[Array | np.ndarray, "*sets dim"]
    tril: Float[Array | np.ndarray, "*sets dim dim"]

    @classmethod
    def standard(cls, num: int, dim: int) -> "Base":
        """The standard normal base, for each of `num` data sets."""
        return cls(np.zeros((num, dim)), np.tile(np.eye(dim), (num, 1, 1)))

    def draw(self, rng_key: PRNGKeyArray, num: int) -> Float[Array, "num dim"]:
        """Stratified draws: so many of each part."""
        e = jax.random.normal(rng_key, (num, len(self.loc)))
        of_standard = int(_STANDARD * num)
        return jnp.concatenate([e[:of_standard], self.loc + e[of_standard:] @ self.tril.T])

    def log_prob(self, z: Float[Array, "num dim"]) -> Float[Array, " num"]:
        """The mixture's log density."""
        own = standard_normal_log_prob(self._whitened(z)) - jnp.log(jnp.diagonal(self.tril)).sum()
        return jnp.logaddexp(jnp.log(1 - _STANDARD) + own, jnp.log(_STANDARD) + standard_normal_log_prob(z))

    def moved(self, z: Float[Array, "num dim"], log_weights: Float[Array, " num"]) -> "Base":
        """The base with the moments of weighted draws of this one.

        Weights are cut at `sqrt(num)` times their mean (Ionides 2008, truncated importance sampling). The fewer
        effective draws, the nearer is the covariance to the present one.
        """
        num, dim = z.shape
        usable = jnp.isfinite(log_weights)
        weights = jnp.where(usable, jnp.exp(log_weights - jnp.max(log_weights, where=usable, initial=-jnp.inf)), 0.0)
        weights = jnp.minimum(weights, weights.mean() * jnp.sqrt(num))
        weights = weights / jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)
        effective = 1.0 / jnp.maximum(jnp.sum(weights**2), 1.0 / num)
        e = self._whitened(z)
        mean = weights @ e
        centred = e - mean
        prior = _PRIOR_DRAWS * dim
        covariance = (effective * (weights * centred.T) @ centred + prior * jnp.eye(dim)) / (effective + prior)
        return Base(self.loc + self.tril @ mean, self.tril @ jnp.linalg.cholesky(_INFLATION**2 * covariance))

    def _whitened(self, z: Float[Array, "num dim"]) -> Float[Array, "num dim"]:
        return solve_triangular(jnp.asarray(self.tril), (z - self.loc).T, lower=True).T
