"""Mixtures of multivariate t distributions, fitted to draws: heavy-tailed proposals of coordinates given others."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from numpyro_flows.modeling.gaussian_blocks import ordered_root, solve_lower
from numpyro_flows.precision import full_precision

_MOST_COMPONENTS, _DRAWS_FOR_EACH = 24, 20  # draws for each component and coordinate
_DOF, _DOF_OF_WIDE = 5, 2
_WIDE_SHARE, _WIDER = 0.1, 1.5
_STEPS = 40
_NEAR, _FAR = 8.0, 50.0  # robust standard deviations, at which draws are cut for a covariance and for the fit
_NORMAL_QUARTILES = 1.349  # distance of the quartiles of a standard normal distribution
_RIDGE = 1e-6


class StudentMixture(NamedTuple):
    """`sum_k exp(log_shares_k) t(x; dof_k, loc_k, root_k root_k^T)`.

    The last component is wide and has 2 degrees of freedom. It keeps importance weights bounded if the tails of the
    others are too light.
    """

    log_shares: Float[Array, "*batch k"]
    loc: Float[Array, "*batch k dim"]
    root: Float[Array, "*batch k dim dim"]

    @classmethod
    def fitted(cls, draws: Float[Array, "num *batch dim"]) -> "StudentMixture":
        """The mixture fitted by expectation maximisation to independent draws; scales shrink towards those of all.

        Source: Peel, McLachlan 2000, Statistics and Computing 10(4).
        """
        batch = draws.shape[1:-1]
        flat = jnp.moveaxis(draws.reshape(len(draws), math.prod(batch), draws.shape[-1]), 0, 1)
        found = jax.vmap(_fitted)(flat)
        return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), cls(*found))

    @full_precision()
    def given(self, rest: tuple[int, ...], given: tuple[int, ...], values: Float[Array, "*batch given"]) -> "Proposal":
        """The conditional distribution of the coordinates `rest`, which is a mixture of t distributions, too."""
        num, dof = len(given), _dofs(self.log_shares)
        root = ordered_root(self.root, (*given, *rest))
        z = solve_lower(root[..., :num, :num], values[..., None, :] - self.loc[..., np.asarray(given)])
        log_det = jnp.log(jnp.diagonal(root[..., :num, :num], axis1=-2, axis2=-1)).sum(-1)
        seen = self.log_shares + _log_t(dof, (z**2).sum(-1), log_det, num)
        shift = (root[..., num:, :num] @ z[..., None])[..., 0]
        root = root[..., num:, num:]
        return Proposal(
            log_shares=jax.nn.log_softmax(seen),
            loc=self.loc[..., np.asarray(rest)] + shift,
            scale=jnp.sqrt((dof + (z**2).sum(-1)) / (dof + num)),
            root=root,
            inverse_root=solve_lower(root[..., None, :, :], jnp.eye(len(rest), dtype=root.dtype)).swapaxes(-1, -2),
            dof=dof + num,
            num_given=num,
        )


class Noise(NamedTuple):
    """The random numbers of draws: one in [0, 1], standard normal ones, and a chi-squared one for each component."""

    pick: Float[Array, "*num"]
    normal: Float[Array, "*num dim"]
    chi_squared: Float[Array, "*num k"]


class Proposal(NamedTuple):
    """`sum_k exp(log_shares_k) t(x; dof_k, loc_k, (scale_k root_k) (scale_k root_k)^T)`, for each of a batch."""

    log_shares: Float[Array, "*batch k"]
    loc: Float[Array, "*batch k dim"]
    scale: Float[Array, "*batch k"]
    root: Float[Array, "*some k dim dim"]
    inverse_root: Float[Array, "*some k dim dim"]
    dof: Float[Array, " k"]
    num_given: int

    def noise(self, key: PRNGKeyArray, num: int) -> Noise:
        of_pick, of_normal = jax.random.split(key)
        dim, least, most = self.loc.shape[-1], self.num_given + _DOF_OF_WIDE, self.num_given + _DOF
        normal = jax.random.normal(of_normal, (num, dim + most), self.loc.dtype)
        squares = normal[:, dim:] ** 2  # a chi-squared number is a sum of squares; JAX's sampler takes long to compile
        chi_squared = jnp.repeat(squares.sum(-1, keepdims=True), len(self.dof), axis=-1)
        chi_squared = chi_squared.at[:, -1].set(squares[:, :least].sum(-1))
        return Noise(jax.random.uniform(of_pick, (num,), self.loc.dtype), normal[:, :dim], chi_squared)

    @full_precision()
    def draw(self, noise: Noise) -> Float[Array, "*batch dim"]:
        """One draw for each of the batch, all from the same noise, so that draws change little with the conditions."""
        above = noise.pick > jnp.cumsum(jnp.exp(self.log_shares), axis=-1)
        component = jnp.minimum(above.sum(-1), len(self.dof) - 1)
        away = jnp.sqrt(self.dof / noise.chi_squared)[:, None] * (self.root @ noise.normal)
        each = self.loc + self.scale[..., None] * away
        return jnp.take_along_axis(each, component[..., None, None], axis=-2)[..., 0, :]

    @full_precision()
    def log_prob(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        z = (self.inverse_root @ (x[..., None, :] - self.loc)[..., None])[..., 0] / self.scale[..., None]
        dim = self.loc.shape[-1]
        log_det = jnp.log(jnp.diagonal(self.root, axis1=-2, axis2=-1)).sum(-1) + dim * jnp.log(self.scale)
        return logsumexp(self.log_shares + _log_t(self.dof, (z**2).sum(-1), log_det, dim), axis=-1)


def _log_t(dof: Array, square: Array, log_det: Array, dim: int) -> Array:
    """The log density of a t distribution, by the squared Mahalanobis distance."""
    constant = gammaln((dof + dim) / 2.0) - gammaln(dof / 2.0) - 0.5 * dim * jnp.log(jnp.pi * dof)
    return constant - log_det - 0.5 * (dof + dim) * jnp.log1p(square / dof)


def _dofs(log_shares: Array) -> Float[Array, " k"]:
    return jnp.full(log_shares.shape[-1], _DOF, log_shares.dtype).at[-1].set(_DOF_OF_WIDE)


@full_precision()
def _fitted(draws: Float[Array, "num dim"]) -> tuple[Array, Array, Array]:
    """Logarithms of the shares, locations and roots, the wide component last."""
    num, dim = draws.shape
    k = max(1, min(_MOST_COMPONENTS, num // (_DRAWS_FOR_EACH * dim)))
    lower, middle, upper = jnp.sort(draws, axis=0)[np.array([num // 4, num // 2, num - num // 4])]
    scale = jnp.maximum((upper - lower) / _NORMAL_QUARTILES, jnp.finfo(draws.dtype).tiny)
    z = jnp.clip(jnp.nan_to_num((draws - middle) / scale), -_FAR, _FAR)
    ridge = _RIDGE * jnp.eye(dim, dtype=z.dtype)
    pooled = jnp.cov(jnp.clip(z, -_NEAR, _NEAR).T).reshape(dim, dim)
    centre, num_prior = pooled / k ** (2 / dim) + ridge, dim + 2.0

    def log_parts(log_shares: Array, loc: Array, root: Array) -> tuple[Array, Array]:
        inverse = solve_lower(root[:, None], jnp.eye(dim, dtype=z.dtype)).swapaxes(-1, -2)
        square = ((inverse[:, None] @ (z - loc[:, None])[..., None]) ** 2).sum((-1, -2))
        log_det = jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
        return log_shares[:, None] + _log_t(jnp.asarray(_DOF, z.dtype), square, log_det[:, None], dim), square

    def step(_: Scalar, mixture: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        parts, square = log_parts(*mixture)
        responsible = jax.nn.softmax(parts, axis=0)
        weights = responsible * (_DOF + dim) / (_DOF + square)
        counts = responsible.sum(1)
        loc = weights @ z / weights.sum(1)[:, None]
        away = z - loc[:, None]
        scatter = jnp.einsum("kn,kni,knj->kij", weights, away, away) + num_prior * centre
        covariance = scatter / (counts + num_prior)[:, None, None] + ridge
        return jnp.log((counts + 1.0) / (num + k)), loc, jnp.linalg.cholesky(covariance)

    first = jnp.full(k, -jnp.log(k), z.dtype), z[:k], jnp.broadcast_to(jnp.linalg.cholesky(centre), (k, dim, dim))
    log_shares, loc, root = jax.lax.fori_loop(0, _STEPS, step, first)
    log_shares = jnp.append(jnp.log1p(-_WIDE_SHARE) + log_shares, jnp.log(_WIDE_SHARE))
    loc = jnp.concatenate([loc, jnp.zeros((1, dim), z.dtype)])
    wide = _WIDER * jnp.diag(jnp.sqrt(jnp.diagonal(pooled)))
    root = jnp.concatenate([root, wide[None]])
    return log_shares, middle + scale * loc, scale[:, None] * root
