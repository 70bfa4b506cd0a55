"""Mixtures of Gaussians by expectation maximisation, with covariances shrunk towards the covariance of all rows."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro.distributions import constraints
from scipy.cluster.vq import kmeans2

from numpyro_flows.training.logs import log_sum_exp

_MOST_ITERATIONS, _LEAST_RISE = 40, 5e-3  # nats a row: more steps gain less than 0.1 nat on held-out rows
_RIDGE = 1e-6  # added to variances of whitened coordinates


class GaussianMixture(NamedTuple):
    """The density `sum_k share_k N(x; loc_k, covariance_k)`, in NumPy and double precision."""

    shares: Float[np.ndarray, " k"]
    loc: Float[np.ndarray, "k dim"]
    covariance: Float[np.ndarray, "k dim dim"]

    @classmethod
    def single(cls, x: Float[np.ndarray, "num dim"], weights: Float[np.ndarray, " num"]) -> "GaussianMixture":
        """One Gaussian, by mean and covariance."""
        covariance = np.cov(x.T, bias=True, aweights=weights).reshape(x.shape[1], x.shape[1])
        ridge = _RIDGE * np.diag(np.diagonal(covariance))
        return cls(np.ones(1), np.average(x, axis=0, weights=weights)[None], (covariance + ridge)[None])

    @classmethod
    def of(
        cls,
        x: Float[np.ndarray, "num dim"],
        weights: Float[np.ndarray, " num"],
        labels: Int[np.ndarray, " num"],
        num_prior: float = 0.0,
        *,
        uncorrelated: bool = False,
    ) -> "GaussianMixture":
        """The posterior mode near a clustering, under a prior worth `num_prior` rows of each component.

        A covariance has an inverse Wishart prior. Its centre is the covariance of all rows, shrunk to the share of the
        volume that one of `k` components has. With few rows, many components are better than one only with this prior.

        Args:
            x: rows.
            weights: weight of each row, of mean 1.
            labels: the component, from 0, to which each row belongs at the start.
            num_prior: number of rows that the prior is worth.
            uncorrelated: whether the centre is nearer to the variances of all rows; for a single component it has only
                the variances. Use it if there are so few rows that their covariance is nearly singular.

        Source: Fraley, Raftery 2007, Journal of Classification 24 (Bayesian regularization for normal mixtures).
        """
        dim = x.shape[1]
        k = int(labels.max()) + 1
        all_rows = np.cov(x.T, bias=True, aweights=weights).reshape(dim, dim)
        of_variances = 0.0 if not uncorrelated else 1.0 if k == 1 else dim / (len(x) + dim)
        centre = (1.0 - of_variances) * all_rows + of_variances * np.diag(np.diagonal(all_rows))
        pooled = centre / k ** (2 / dim) + _RIDGE * np.eye(dim)
        responsible = (labels == np.arange(k)[:, None]) * weights
        mixture, before = None, -np.inf
        for _ in range(_MOST_ITERATIONS):
            counts = responsible.sum(1)
            loc = responsible @ x / np.maximum(counts, _RIDGE)[:, None]
            away = x - loc[:, None]
            scatter = (responsible[:, :, None] * away).transpose(0, 2, 1) @ away
            covariance = (scatter + num_prior * pooled) / np.maximum(counts + num_prior, _RIDGE)[:, None, None]
            mixture = cls((counts + 1.0) / (weights.sum() + k), loc, covariance + _RIDGE * np.eye(dim))
            parts = mixture._log_parts(x)
            log_prob = log_sum_exp(parts, 0)
            now = float(np.average(log_prob, weights=weights))
            if now - before < _LEAST_RISE:
                break
            before, responsible = now, np.exp(parts - log_prob) * weights
        assert mixture is not None
        return mixture

    @classmethod
    def joined(cls, mixtures: Sequence["GaussianMixture"], shares: Float[np.ndarray, " mixtures"]) -> "GaussianMixture":
        """The mixture of several mixtures."""
        return cls(
            np.concatenate([share * mixture.shares for share, mixture in zip(shares, mixtures)]),
            np.concatenate([mixture.loc for mixture in mixtures]),
            np.concatenate([mixture.covariance for mixture in mixtures]),
        )

    @classmethod
    def blank(cls, k: int, dim: int) -> "GaussianMixture":
        """Of `k` alike components."""
        return cls(np.full(k, 1.0 / k), np.zeros((k, dim)), np.broadcast_to(np.eye(dim), (k, dim, dim)))

    def filled(self, k: int) -> "GaussianMixture":
        """The same density with `k` components: the existing ones, and others with a share of 0."""
        if k == len(self.shares):
            return self
        more = GaussianMixture.blank(k - len(self.shares), self.loc.shape[1])
        return GaussianMixture.joined([self, more], np.array([1.0, 0.0]))

    def wider(self, factor: float) -> "GaussianMixture":
        """The mixture with standard deviations `factor` times as large."""
        return self._replace(covariance=factor**2 * self.covariance)

    def log_prob(self, x: Float[np.ndarray, "num dim"]) -> Float[np.ndarray, " num"]:
        return log_sum_exp(self._log_parts(x), 0)

    def _log_parts(self, x: Float[np.ndarray, "num dim"]) -> Float[np.ndarray, "k num"]:
        roots = np.linalg.cholesky(self.covariance)
        z = (x - self.loc[:, None]) @ np.linalg.inv(roots).transpose(0, 2, 1)
        log_det = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(1)
        constant = self._log_shares - log_det - 0.5 * x.shape[1] * np.log(2 * np.pi)
        return constant[:, None] - 0.5 * np.einsum("knd,knd->kn", z, z)

    @property
    def _log_shares(self) -> Float[np.ndarray, " k"]:
        return np.log(np.maximum(self.shares, np.finfo(np.float32).tiny))  # also of components without one

    @property
    def distribution(self) -> dist.Distribution:
        """As NumPyro has it, at JAX's precision."""
        return _distribution(self._log_shares, self.loc, np.linalg.cholesky(self.covariance))

    @property
    def to_train_on(self) -> "MixtureByRoots":
        """The same density, at JAX's precision."""
        roots = np.linalg.inv(np.linalg.cholesky(self.covariance))
        log_shares = self._log_shares + np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(1)
        dtype = jnp.result_type(float)
        return MixtureByRoots(*(jnp.asarray(array, dtype) for array in (log_shares, self.loc, roots)))


class MixtureByRoots(dist.Distribution):
    """The density of a mixture of Gaussians by matrix products alone, for training.

    NumPyro's solves a triangular system for each component and row, which takes most of a training step.

    Args:
        log_shares: of the components, with `log |det|` of their roots in them.
        loc: their centres.
        roots: inverses of the roots of their covariances.
    """

    pytree_data_fields = ("log_shares", "loc", "roots")

    def __init__(self, log_shares: Float[Array, " k"], loc: Float[Array, "k dim"], roots: Float[Array, "k dim dim"]):
        self.log_shares, self.loc, self.roots = log_shares, loc, roots
        super().__init__((), loc.shape[-1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "*batch"]:
        """Log density of vectors `(*batch, dim)`."""
        z = jnp.einsum("kij,...kj->...ki", self.roots, value[..., None, :] - self.loc)
        parts = self.log_shares - 0.5 * (z**2).sum(-1)
        return jax.nn.logsumexp(parts, axis=-1) - 0.5 * value.shape[-1] * math.log(2.0 * math.pi)


@jax.jit  # without jit, its constructors compile for a second
def _distribution(logits: Array, loc: Array, roots: Array) -> dist.Distribution:
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.MultivariateNormal(loc, scale_tril=roots))


def clusters(x: Float[np.ndarray, "num dim"], k: int, rng: np.random.Generator) -> Int[np.ndarray, " num"]:
    """Labels from 0 by k-means; fewer than `k` where a cluster stays empty."""
    if k == 1:
        return np.zeros(len(x), int)
    with np.errstate(all="ignore"):
        labels = kmeans2(x, k, minit="++", rng=rng, missing="warn")[1]
    return np.unique(labels, return_inverse=True)[1]
