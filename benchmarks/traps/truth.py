"""Exact answers by quadrature on a grid or by importance sampling, from the density of the NumPyro model itself."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats
from jax.flatten_util import ravel_pytree
from jaxtyping import Float
from numpyro.infer import init_to_value
from numpyro.infer.util import initialize_model, log_density

from benchmarks.traps.case import Truth, Values

PROBABILITIES = np.array([0.25, 0.5, 0.75])
CHUNK = 50_000  # points that are evaluated at once


def in_chunks(function: Callable, points: Any) -> Any:
    """`function` vectorised over the first axis of all leaves, some points at a time."""
    run = jax.jit(jax.vmap(function))
    num = jax.tree.leaves(points)[0].shape[0]
    chunks = [slice(first, first + CHUNK) for first in range(0, num, CHUNK)]
    parts = [run(jax.tree.map(operator.itemgetter(chunk), points)) for chunk in chunks]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def weighted_moments(values: Values, weights: Float[np.ndarray, " num"]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of weighted values; `weights` sum to one."""
    means = {name: np.tensordot(weights, x, 1) for name, x in values.items()}
    return {
        name: (means[name], np.sqrt(np.tensordot(weights, (x - means[name]) ** 2, 1))) for name, x in values.items()
    }


def weighted_quantiles(x: Float[np.ndarray, " num"], weights: Float[np.ndarray, " num"]) -> Float[np.ndarray, "3"]:
    """Quartiles of a sorted grid with its weights."""
    return np.interp(PROBABILITIES, np.cumsum(weights) - weights / 2, x)


def by_grid(
    model: Callable, args: tuple, grids: Values, derived: Callable[[Values], Values] = lambda draws: {}
) -> Truth:
    """Trapezoidal rule on the product of the grids, one for each (scalar) latent site.

    With `derived` the moments are those of the derived values, otherwise those of the sites.
    """
    names = list(grids)
    mesh = np.meshgrid(*grids.values(), indexing="ij")
    points = {name: values.ravel() for name, values in zip(names, mesh)}
    widths = np.meshgrid(*[np.gradient(grid) * _ends(grid.size) for grid in grids.values()], indexing="ij")
    logs = in_chunks(lambda sites: log_density(model, args, {}, sites)[0], points)
    weights = np.exp(logs - logs.max()) * np.prod(widths, axis=0).ravel()
    total = weights.sum()
    moments = weighted_moments(derived(points) or points, weights / total)
    return Truth(float(np.log(total) + logs.max()), moments)


def _ends(num: int) -> Float[np.ndarray, " num"]:
    factors = np.ones(num)
    factors[[0, -1]] = 0.5
    return factors


def by_importance(
    model: Callable, args: tuple, start: dict[str, Any], num: int = 40_000
) -> tuple[Values, Float[np.ndarray, " num"], float]:
    """Weighted draws of one mode: sites, weights that sum to one, and the log evidence of the mode.

    The proposal is a Student-t with 7 degrees of freedom around the mode near `start`, on the unconstrained scale.
    """
    info = initialize_model(
        jax.random.key(0), model, model_args=args, init_strategy=init_to_value(values=jax.tree.map(jnp.asarray, start))
    )
    first, unravel = ravel_pytree(info.param_info.z)
    potential = jax.jit(lambda x: info.potential_fn(unravel(x)))
    gradient = jax.jit(jax.grad(potential))
    mode = scipy.optimize.minimize(potential, np.asarray(first), jac=gradient, method="BFGS").x
    covariance = np.linalg.inv(np.asarray(jax.hessian(potential)(mode)))
    proposal = scipy.stats.multivariate_t(mode, covariance.tolist(), df=7, seed=0)
    x = np.asarray(proposal.rvs(num))
    logs = -in_chunks(potential, x) - proposal.logpdf(x)
    weights = np.exp(logs - logs.max())
    draws = in_chunks(lambda x: info.postprocess_fn(unravel(x)), x)
    return draws, weights / weights.sum(), float(np.log(weights.mean()) + logs.max())
