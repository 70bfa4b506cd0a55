"""The Gaussian stage: from several starts to one Gaussian that fits an unnormalized density.

Newton's method climbs from every start, the Gaussians compete by their ELBO on the same draws, and natural-gradient
variational inference refines the best. No learning rate to choose, and one compiled function for all of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

LogDensity = Callable[[Float[Array, " dim"]], Scalar]

MAX_FULL_DIM = 256  # above it Hessians and full covariances cost more than they give: diagonal, without Newton
NEWTON_STEPS = 40
REFINE_STEPS = 100
REFINE_DRAWS = 128  # in pairs u, -u
_STEP_LENGTHS = (1.0, 0.25, 0.0625, 0.015625, 0.00390625, 0.0)  # the last keeps a point that no step improves
_MAX_MOVE = 3.0  # most that one step of the refinement moves the mean, in standard deviations
_PRECISION_BOUNDS = (0.25, 4.0)  # most that one step changes a precision


class GaussianFit(NamedTuple):
    """`N(loc, scale scale^T)`: `scale` lower-triangular, or a vector where the covariance is diagonal.

    `elbo` is its ELBO on a few draws, -inf where every start and everything found from it is not finite.
    """

    loc: Float[Array, " dim"]
    scale: Float[Array, "dim dim"] | Float[Array, " dim"]
    elbo: Scalar


def fit_gaussian(log_density: LogDensity, rng_key: PRNGKeyArray, starts: Float[Array, "starts dim"]) -> GaussianFit:
    """The Gaussian of largest ELBO that Newton's method and natural gradients find from `starts`.

    Two are refined side by side, and the better one wins: the best of those at the modes, and the best of those of
    unit scale at the starts. A density without a mode, such as a centred hierarchical model's, needs the second.
    """
    dim = starts.shape[1]
    draws = jax.random.normal(rng_key, (REFINE_STEPS + 1, REFINE_DRAWS // 2, dim))
    draws = jnp.concatenate([draws, -draws], axis=1)
    elbo = jax.vmap(lambda loc, scale: _elbo(log_density, loc, scale, draws[0]))
    if dim > MAX_FULL_DIM:
        locs, factors = starts[None], jnp.ones_like(starts)[None]
    else:
        modes, curvature_factors = jax.vmap(lambda x: _newton(log_density, x))(starts)
        unit = jnp.broadcast_to(jnp.eye(dim, dtype=starts.dtype), curvature_factors.shape)
        locs, factors = jnp.stack([starts, modes]), jnp.stack([unit, jax.vmap(_triangular)(curvature_factors)])
    best = jnp.argmax(jax.vmap(elbo)(locs, factors), axis=1)
    rows = jnp.arange(best.size)
    locs, factors = jax.vmap(lambda loc, factor: _refine(log_density, loc, factor, draws[1:]))(
        locs[rows, best], factors[rows, best]
    )
    scales = jax.vmap(_triangular)(factors)
    elbos = elbo(locs, scales)
    winner = jnp.argmax(elbos)
    return GaussianFit(locs[winner], scales[winner], elbos[winner])


def gradient_evaluations(num_starts: int, dim: int) -> int:
    """Gradients that `fit_gaussian` takes, a Hessian counted as `dim` of them."""
    if dim > MAX_FULL_DIM:
        return REFINE_STEPS * REFINE_DRAWS
    return num_starts * NEWTON_STEPS * dim + 2 * REFINE_STEPS * REFINE_DRAWS


def _newton(log_density: LogDensity, x: Float[Array, " dim"]) -> tuple[Array, Array]:
    """A local optimum and a factor `C` of the inverse curvature `C C^T` there.

    The steps use the absolute values of the eigenvalues, which climbs away from saddles (Dauphin et al. 2014, arXiv
    1406.2572), and the best of several lengths, tried side by side.
    """
    lengths = jnp.asarray(_STEP_LENGTHS, x.dtype)

    def gradient_twice(x: Array) -> tuple[Array, Array]:
        gradient = jax.grad(log_density)(x)
        return gradient, gradient

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        x = carry[0]
        hessian, gradient = jax.jacfwd(gradient_twice, has_aux=True)(x)
        usable = jnp.all(jnp.isfinite(hessian))
        values, vectors = jnp.linalg.eigh(jnp.where(usable, -hessian, jnp.eye(x.size, dtype=x.dtype)))
        values = jnp.abs(values)
        values = jnp.maximum(values, values.max() * jnp.finfo(x.dtype).eps)
        direction = vectors @ ((vectors.T @ gradient) / values)
        candidates = x + lengths[:, None] * direction
        heights = jax.vmap(log_density)(candidates)
        heights = jnp.where(jnp.isnan(heights), -jnp.inf, heights)
        x = jnp.where(jnp.any(jnp.isfinite(heights)), candidates[jnp.argmax(heights)], x)
        return (x, vectors / jnp.sqrt(values)), None

    identity = jnp.eye(x.size, dtype=x.dtype)
    return jax.lax.scan(step, (x, identity), None, length=NEWTON_STEPS)[0]


def _elbo(log_density: LogDensity, loc: Array, scale: Array, draws: Array) -> Scalar:
    """ELBO of `N(loc, scale scale^T)`, up to a constant; -inf where it is not finite."""
    diagonal = scale if scale.ndim == 1 else jnp.diagonal(scale)
    elbo = jax.vmap(log_density)(loc + _apply(scale, draws)).mean() + jnp.log(diagonal).sum()
    return jnp.where(jnp.isfinite(elbo), elbo, -jnp.inf)


def _refine(
    log_density: LogDensity, loc: Array, factor: Array, draws: Float[Array, "steps draws dim"]
) -> tuple[Array, Array]:
    """Natural-gradient ascent of the ELBO over Gaussians.

    In coordinates `u` where the Gaussian is standard, with `r = grad log p(u) + u` (zero everywhere once p is that
    Gaussian, so the noise vanishes at a fit), the precision becomes `P = I - rate E[r u^T]` (Stein's identity for the
    expected Hessian) and the mean moves by `rate P^-1 E[r]`, both within bounds.

    Source: Khan and Rue 2023, arXiv 2107.04562.
    """

    def step(carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        loc, factor = carry
        u, rate = inputs
        gradients = jax.vmap(jax.grad(log_density))(loc + _apply(factor, u))
        gradients = jnp.where(jnp.isfinite(gradients).all(-1, keepdims=True), gradients, 0.0)
        residual = (gradients * factor if factor.ndim == 1 else gradients @ factor) + u
        mean = residual.mean(0)
        if factor.ndim == 1:
            precision = jnp.clip(1.0 - rate * (residual * u).mean(0), *_PRECISION_BOUNDS)
            move, change = mean / precision, 1.0 / jnp.sqrt(precision)
        else:
            moment = residual.T @ u / u.shape[0]
            identity = jnp.eye(loc.size, dtype=loc.dtype)
            values, vectors = jnp.linalg.eigh(identity - rate * 0.5 * (moment + moment.T))
            values = jnp.clip(values, *_PRECISION_BOUNDS)
            move = vectors @ ((vectors.T @ mean) / values)
            change = (vectors / jnp.sqrt(values)) @ vectors.T
        move = rate * move
        move = move * jnp.minimum(1.0, _MAX_MOVE / jnp.linalg.norm(move))
        new_loc = loc + _apply(factor, move)
        new_factor = factor * change if factor.ndim == 1 else factor @ change
        finite = jnp.all(jnp.isfinite(new_loc)) & jnp.all(jnp.isfinite(new_factor))
        return (jnp.where(finite, new_loc, loc), jnp.where(finite, new_factor, factor)), None

    rates = 1.0 / (1.0 + jnp.arange(REFINE_STEPS, dtype=loc.dtype) / 10.0)
    return jax.lax.scan(step, (loc, factor), (draws, rates))[0]


def _apply(factor: Array, u: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    return u * factor if factor.ndim == 1 else u @ factor.T


def _triangular(factor: Array) -> Array:
    """The lower-triangular `L` of positive diagonal with `L L^T = factor factor^T`."""
    if factor.ndim == 1:
        return factor
    upper = jnp.linalg.qr(factor.T, mode="r")
    return upper.T * jnp.sign(jnp.diagonal(upper))
