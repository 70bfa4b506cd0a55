"""Markov chains: NumPyro's NUTS, nutpie and BlackJAX's MCLMC, each with four chains.

NumPyro's NUTS runs vectorised and waits for its longest trajectory. nutpie calls the compiled density from Python, its
chains one after another, and its warm-up has the seconds of its share of gradients.
"""

import time
from typing import Any

import blackjax  # pyright: ignore[reportMissingImports]
import jax
import numpy as np
import nutpie  # pyright: ignore[reportMissingImports]
from nutpie.compiled_pyfunc import from_pyfunc  # pyright: ignore[reportMissingImports]

from benchmarks.posteriordb.methods import NUTS_SETTINGS
from benchmarks.posteriordb.models import Posterior
from benchmarks.posteriordb.scoring import Row
from benchmarks.rivals.density import Density, compiled, in_double
from benchmarks.rivals.rows import Work, of_chains
from numpyro_flows.diagnostics.timed_nuts import run_nuts

NUM_CHAINS = NUTS_SETTINGS["num_chains"]
MCLMC_STEPS = 10_000  # of a chain, each a draw; the tuning takes more than three tenths of that
_GRADIENTS_A_STEP = 2  # of McLachlan's integrator


def nuts(posterior: Posterior, seed: int) -> Row:
    """NumPyro's NUTS with its defaults."""
    run = run_nuts(posterior.model, posterior.args, {}, jax.random.key(seed), **NUTS_SETTINGS, progress_bar=False)
    density = Density(posterior)
    x = np.concatenate([run.latents[name].reshape(run.stats["lp"].size, -1) for name in density.sites], axis=1)
    sampling = int(run.stats["n_steps"].sum())
    work = Work(
        warmup_gradients=run.gradient_evaluations - sampling,
        gradients=sampling,
        warmup_seconds=run.warmup_seconds,
        seconds=run.seconds - run.warmup_seconds,
        compile_seconds=run.compile_seconds,
    )
    row = of_chains(density.scalars(x), NUM_CHAINS, posterior.reference, work)
    return {**row, "divergences": int(run.stats["diverging"].sum())}


def nutpie_nuts(posterior: Posterior, seed: int, adaptation: str) -> Row:
    """NUTS of nutpie with its defaults for this adaptation, but four chains."""
    density = Density(posterior)
    starts = density.starts(jax.random.key(seed), 100)
    function, compile_seconds = compiled(jax.value_and_grad(density.log_density), in_double(starts[0]))

    def log_density(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = function(x)
        return float(value), np.asarray(gradient)

    model = from_pyfunc(
        density.dim,
        make_logp_fn=lambda: log_density,
        make_expand_fn=lambda seed1, seed2, chain: lambda x: {"x": np.array(x)},
        expanded_dtypes=[np.dtype("float64")],
        expanded_shapes=[(density.dim,)],
        expanded_names=["x"],
        make_initial_point_fn=lambda seed: starts[seed % len(starts)],
    )
    start = time.perf_counter()
    trace = nutpie.sample(model, chains=NUM_CHAINS, cores=1, seed=seed, adaptation=adaptation, progress_bar=False)
    seconds = time.perf_counter() - start
    warmup, sampling = (int(trace[group]["n_steps"].sum()) for group in ("warmup_sample_stats", "sample_stats"))
    share = warmup / (warmup + sampling)
    work = Work(warmup, sampling, share * seconds, (1 - share) * seconds, compile_seconds)
    row = of_chains(density.scalars(trace["posterior"]["x"].to_numpy()), NUM_CHAINS, posterior.reference, work)
    return {**row, "divergences": int(trace["sample_stats"]["diverging"].sum())}


def mclmc(posterior: Posterior, seed: int) -> Row:
    """BlackJAX's MCLMC, unadjusted as its authors recommend, so with a bias; every chain is tuned separately.

    With adjusted MCLMC, the same starts led to very long trajectories on badly scaled regressions.
    """
    density = Density(posterior)
    kernel = blackjax.mclmc.build_kernel()

    def tune(x: jax.Array, key: Any) -> tuple:
        key_init, key = jax.random.split(key)
        state = blackjax.mclmc.init(x, density.log_density, key_init)
        return blackjax.mclmc_find_L_and_step_size(kernel, MCLMC_STEPS, state, key, density.log_density)

    def sample(state: Any, params: Any, key: Any) -> jax.Array:
        def step(state: Any, key: Any) -> tuple:
            state, _ = kernel(key, state, density.log_density, params.inverse_mass_matrix, params.L, params.step_size)
            return state, state.position

        return jax.lax.scan(step, state, jax.random.split(key, MCLMC_STEPS))[1]

    keys = jax.random.split(jax.random.key(seed), (3, NUM_CHAINS))
    starts = in_double(density.starts(keys[0, 0], NUM_CHAINS))
    tune, tune_compile = compiled(jax.vmap(tune), starts, keys[1])
    start = time.perf_counter()
    state, params, tuning_steps = jax.block_until_ready(tune(starts, keys[1]))
    warmup_seconds = time.perf_counter() - start
    sample, sample_compile = compiled(jax.vmap(sample), state, params, keys[2])
    start = time.perf_counter()
    x = jax.device_get(sample(state, params, keys[2]))
    work = Work(
        warmup_gradients=_GRADIENTS_A_STEP * float(np.sum(tuning_steps)),
        gradients=_GRADIENTS_A_STEP * NUM_CHAINS * MCLMC_STEPS,
        warmup_seconds=warmup_seconds,
        seconds=time.perf_counter() - start,
        compile_seconds=tune_compile + sample_compile,
    )
    return of_chains(density.scalars(x), NUM_CHAINS, posterior.reference, work)
