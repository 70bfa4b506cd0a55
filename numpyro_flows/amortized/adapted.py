"""The base of a flow, moved to one data set: what importance weights say about location and scale."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_flows.modeling.scoring import standard_normal_log_prob

_STANDARD = 0.2  # share of draws of the standard normal base: what the flow covers stays covered
_DOF = 7  # of the Student-t distribution: tails that are too heavy cost little, too thin ones much
_FAR = 10.0  # times the evidence: a weight from which on a draw is where a base hardly reaches
_PRIOR_DRAWS = 10.0  # weight of the present covariance, in effective draws for each dimension


class Weighted(NamedTuple):
    """Draws in the flow's base with their log weights, each with a leading axis of data sets outside of functions."""

    z: Float[Array | np.ndarray, "*sets num dim"]
    log_weights: Float[Array | np.ndarray, "*sets num"]


class Base(NamedTuple):
    """A mixture in the base of a flow: `N(0, I)` with a share, and a Student-t distribution around `loc`.

    At first the share is 1. Later the first part is a defence: a mode of the posterior that the flow has cannot leave
    the draws without a trace in the weights (Hesterberg 1995, Technometrics 37(2)).
    """

    share: Float[Array | np.ndarray, "*sets"]
    loc: Float[Array | np.ndarray, "*sets dim"]
    tril: Float[Array | np.ndarray, "*sets dim dim"]

    @classmethod
    def standard(cls, num: int, dim: int) -> "Base":
        """The standard normal base, for each of `num` data sets."""
        return cls(np.ones(num), np.zeros((num, dim)), np.tile(np.eye(dim), (num, 1, 1)))

    def draw(self, rng_key: PRNGKeyArray, num: int) -> Float[Array, "num dim"]:
        """Stratified draws: so many of each part."""
        normal_key, scale_key = jax.random.split(rng_key)
        e = jax.random.normal(normal_key, (num, len(self.loc)))
        # the sum of squares is many times faster than `jax.random.gamma`
        scale = jnp.sqrt(_DOF / (jax.random.normal(scale_key, (num, _DOF)) ** 2).sum(1, keepdims=True))
        of_standard = jnp.arange(num)[:, None] < self.share * num
        return jnp.where(of_standard, e, self.loc + (e * scale) @ self.tril.T)

    def log_prob(self, z: Float[Array, "num dim"]) -> Float[Array, " num"]:
        """The mixture's log density."""
        dim = len(self.loc)
        own = -0.5 * (_DOF + dim) * jnp.log1p((self._whitened(z) ** 2).sum(-1) / _DOF)
        own += gammaln(0.5 * (_DOF + dim)) - gammaln(0.5 * _DOF) - 0.5 * dim * jnp.log(jnp.pi * _DOF)
        own -= jnp.log(jnp.diagonal(self.tril)).sum()
        return jnp.logaddexp(jnp.log1p(-self.share) + own, jnp.log(self.share) + standard_normal_log_prob(z))

    def moved(self, z: Float[Array, "num dim"], log_weights: Float[Array, " num"]) -> "Base":
        """The base with the moments of weighted draws of this one.

        Weights are cut at `sqrt(num)` times their mean (Ionides 2008, truncated importance sampling). The fewer
        effective draws, the nearer is the covariance to the present one.
        """
        num, dim = z.shape
        usable = jnp.isfinite(log_weights)
        weights = jnp.where(usable, jnp.exp(log_weights - jnp.max(log_weights, where=usable, initial=-jnp.inf)), 0.0)
        weights = jnp.minimum(weights, weights.mean() * jnp.sqrt(num))
        total, of_squares = weights.sum(), jnp.sum(weights**2)
        effective = jnp.where(total > 0, total**2 / jnp.where(total > 0, of_squares, 1.0), 0.0)
        weights = weights / jnp.where(total > 0, total, 1.0)
        e = self._whitened(z)
        mean = weights @ e
        centred = e - mean
        prior = _PRIOR_DRAWS * dim
        covariance = (effective * (weights * centred.T) @ centred + prior * jnp.eye(dim)) / (effective + prior)
        tril = self.tril @ jnp.linalg.cholesky(covariance)
        return Base(jnp.full_like(self.share, _STANDARD), self.loc + self.tril @ mean, tril)

    def lacks(self, first: "Weighted", log_evidence: Float[Array, ""]) -> Float[Array, ""]:
        """Share of the posterior, by the flow's own draws, where this base has less than a tenth of its density."""
        z = jnp.asarray(first.z)
        log_weights = first.log_weights + standard_normal_log_prob(z) - self.log_prob(z)
        mass = jax.nn.softmax(usable(jnp.asarray(first.log_weights)))
        return jnp.where(log_weights > log_evidence + jnp.log(_FAR), mass, 0.0).sum()

    def _whitened(self, z: Float[Array, "num dim"]) -> Float[Array, "num dim"]:
        # one small inverse: XLA's solver of a thousand right-hand sides is slower than a matrix product
        return (z - self.loc) @ solve_triangular(self.tril, jnp.eye(len(self.loc)), lower=True).T


def usable(log_weights: Float[Array, " num"]) -> Float[Array, " num"]:
    """Log weights without NaN, which count as none: a single broken draw must not switch a check off."""
    return jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
