"""Fits with importance weights: FlowVI, BlackJAX's multi-path Pathfinder and PyMC's ADVI."""

import time
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pymc  # pyright: ignore[reportMissingImports]
from blackjax.optimizers.lbfgs import minimize_lbfgs  # pyright: ignore[reportMissingImports]
from blackjax.vi import multipathfinder, pathfinder  # pyright: ignore[reportMissingImports]
from pytensor import wrap_jax  # pyright: ignore[reportMissingImports]

from benchmarks.posteriordb.methods import timed_fit
from benchmarks.posteriordb.models import Posterior, flatten
from benchmarks.posteriordb.scoring import Row
from benchmarks.rivals.density import Density, compiled, in_double
from benchmarks.rivals.rows import Scalars, Work, of_chains, of_weights
from numpyro_flows import FlowPosterior

NUM_PATHS = 4  # of Stan and PyMC; BlackJAX has no default
_ELBO_DRAWS = 200  # BlackJAX's default, for each iterate of a path and of the result
_ADVI_STEPS = 10_000  # PyMC's default, of one draw each


def flow(posterior: Posterior, seed: int) -> Row:
    """FlowVI with its defaults, and its own verdict."""
    fit, seconds = timed_fit(posterior, seed)
    compile_seconds = sum(fit.seconds.get(stage, 0.0) for stage in ("tracing", "compilation"))
    gradients = sum(fit.gradient_evaluations.values()) + sum(fit.value_evaluations.values())
    work = Work(gradients, 0, seconds - compile_seconds, 0.0, compile_seconds)

    def sample(key: Any, num: int) -> tuple[Scalars, np.ndarray]:
        sites, log_weights = fit.sample_weighted(key, num)
        return flatten(sites), log_weights

    if fit.chains is None:
        row = of_weights(sample, _keys(seed), posterior.reference, work, fit.certified)
    else:
        row = _of_mixture_or_chains(fit, posterior, work) | {"trusted": fit.certified}
    return {
        **row,
        "by": fit.certificate.by if fit.chains is None else f"mixture or chains, {fit.certificate.by}",
        "why": fit.why,
    }


def _of_mixture_or_chains(fit: FlowPosterior, posterior: Posterior, work: Work) -> Row:
    """The row of draws that FlowVI keeps: more draws cost the same each, fewer do not save anything."""
    assert fit.chains is not None
    counts = (fit.gradient_evaluations, fit.value_evaluations)
    gradients = sum(count[stage] for count in counts for stage in ("mixture", "fallback"))
    seconds = fit.seconds.get("mixture", 0.0) + fit.seconds.get("mcmc", 0.0)
    parts = work._replace(
        warmup_gradients=work.warmup_gradients - gradients,
        gradients=gradients,
        warmup_seconds=work.warmup_seconds - seconds,
        seconds=seconds,
    )
    certificate = fit.certificate  # resampled draws have no larger ESS than the draws before resampling
    most = certificate.ess * certificate.num_draws if certificate.by == "weights" else float("inf")
    scalars = Density(posterior).scalars(fit.chains.x)
    row = of_chains(scalars, len(fit.chains.x), posterior.reference, parts, most)
    least = {"gradients_to_1000": "gradients", "gradients_to_10000": "gradients", "seconds_to_10000": "seconds"}
    return row | {name: max(row[name], row[whole]) for name, whole in least.items()}


def multi_path_pathfinder(posterior: Posterior, seed: int) -> Row:
    """BlackJAX's multi-path Pathfinder with its defaults; as there, a draw's weight is by its own path's density.

    By default a path ends after 30 iterations, which do not reach the mode of regressions that are badly scaled.
    Further draws come from the same paths, as many from each. Gradients are counted by L-BFGS alone, run once more.
    """
    density = Density(posterior)
    key_fit, *keys = jax.random.split(jax.random.key(seed), 3)
    starts = in_double(density.starts(keys[0], NUM_PATHS))

    def fit(key: Any, starts: jax.Array) -> Any:
        return multipathfinder.multi_approximate(key, density.log_density, starts, _ELBO_DRAWS)[0].path_states

    fit, compile_seconds = compiled(fit, key_fit, starts)
    start = time.perf_counter()
    paths = jax.block_until_ready(fit(key_fit, starts))
    seconds = time.perf_counter() - start

    @partial(jax.jit, static_argnums=1)
    def draw(key: Any, num: int) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, NUM_PATHS)
        x, log_q = jax.vmap(lambda key, path: pathfinder.sample(key, path, num))(keys, paths)
        return x, jax.vmap(jax.vmap(density.log_density))(x) - log_q

    def sample(key: Any, num: int) -> tuple[Scalars, np.ndarray]:
        x, log_weights = jax.device_get(draw(key, num // NUM_PATHS))
        return density.scalars(x), _nothing_where_nan(log_weights)

    gradients, iterations = _lbfgs_work(density, starts)
    work = Work(gradients + _ELBO_DRAWS * (iterations + NUM_PATHS), 0, seconds, 0.0, compile_seconds)
    return of_weights(sample, _keys(seed), posterior.reference, work)


def advi(posterior: Posterior, seed: int, method: str) -> Row:
    """PyMC's ADVI with its defaults on the same density; weights use the density of its Gaussian."""
    density = Density(posterior)
    first = []

    def note_first(approximation: Any, losses: Any, step: int) -> None:
        if step == 1:
            first.append(time.perf_counter())

    start = time.perf_counter()
    with warnings.catch_warnings(), pymc.Model():
        warnings.filterwarnings("ignore", message="Numba will use object mode")
        x = pymc.Flat("x", shape=density.dim)
        pymc.Potential("log_density", wrap_jax(density.log_density)(x))
        fit = pymc.fit(_ADVI_STEPS, method=method, random_seed=seed, progressbar=False, callbacks=[note_first])
    seconds, compile_seconds = time.perf_counter() - start, first[0] - start
    loc, covariance = fit.mean.eval(), fit.cov.eval()
    factor = in_double(np.linalg.cholesky(covariance))

    @partial(jax.jit, static_argnums=1)
    def draw(key: Any, num: int) -> tuple[jax.Array, jax.Array]:
        u = jax.random.normal(key, (num, density.dim))
        x = loc + u @ factor.T
        log_q = -0.5 * (u**2 + jnp.log(2 * jnp.pi)).sum(1) - jnp.log(jnp.diag(factor)).sum()
        return x, jax.vmap(density.log_density)(x) - log_q

    def sample(key: Any, num: int) -> tuple[Scalars, np.ndarray]:
        x, log_weights = jax.device_get(draw(key, num))
        return density.scalars(x), _nothing_where_nan(log_weights)

    work = Work(_ADVI_STEPS, 0, seconds - compile_seconds, 0.0, compile_seconds)
    return of_weights(sample, _keys(seed), posterior.reference, work)


def _lbfgs_work(density: Density, starts: jax.Array) -> tuple[int, int]:
    """Gradients and iterations that Pathfinder's optimisations take from these starts."""
    count = 0

    def note() -> None:
        nonlocal count
        count += 1

    def objective(x: jax.Array) -> jax.Array:
        jax.debug.callback(note)
        return -density.log_density(x)

    optimise = jax.jit(lambda x: minimize_lbfgs(objective, x)[0].state.iter_num)
    iterations = sum(int(optimise(x)) for x in starts)
    jax.effects_barrier()
    return count, iterations


def _nothing_where_nan(log_weights: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(log_weights), -np.inf, log_weights).ravel()


def _keys(seed: int) -> tuple[Any, Any]:
    first, second = jax.random.split(jax.random.key(seed + 1000))
    return first, second
