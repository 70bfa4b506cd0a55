"""NumPyro's NUTS with separate times for compilation and run."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from numpyro.infer import NUTS
from numpyro.infer.hmc import HMCState
from tqdm.auto import tqdm

from numpyro_flows.modeling.model_run import model_run

_CHUNK = 50  # steps between two updates of the progress bar


class NutsRun(NamedTuple):
    """The draws and the cost of NUTS.

    latents: unconstrained draws of the latent sites, each `(chains, draws, *site)`, without warm-up.
    stats: `diverging`, `n_steps`, `lp` (`log p(x, data)` on the unconstrained scale) and `energy` of these draws.
    seconds: seconds of warm-up and sampling.
    warmup_seconds: seconds of the warm-up alone.
    compile_seconds: seconds of tracing and compilation, including the search for the initial states.
    gradient_evaluations: leapfrog steps of all chains, warm-up included.
    """

    latents: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    seconds: float
    warmup_seconds: float
    compile_seconds: float
    gradient_evaluations: int


def run_nuts(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    rng_key: PRNGKeyArray,
    *,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    progress_bar: bool,
) -> NutsRun:
    """The draws of `MCMC(NUTS(model), chain_method="vectorized", ...).run(rng_key, *args, **kwargs)`.

    `MCMC` compiles while it runs, so this function calls its kernel by a step compiled ahead. As in `MCMC`, all chains
    wait for the one with the longest trajectory. If a runtime check of the model fires, the step counts as divergent,
    in place of an error.
    """
    kernel = NUTS(model)
    start = time.perf_counter()
    keys = jax.random.split(rng_key, num_chains)
    with model_run():
        state = jax.block_until_ready(kernel.init(keys, num_warmup, None, args, kwargs))  # None: its own first values

    def advance(state: HMCState, num_steps: Array) -> tuple[HMCState, dict[str, Any]]:
        def step(i: Array, carry: tuple) -> tuple:
            state = kernel.sample(carry[0], args, kwargs)
            return state, jax.tree.map(lambda buffer, value: buffer.at[i].set(value), carry[1], _record(state))

        buffers = jax.tree.map(lambda leaf: jnp.zeros((_CHUNK, *leaf.shape), leaf.dtype), _record(state))
        return jax.lax.fori_loop(0, num_steps, step, (state, buffers))

    with model_run():
        lowered = jax.jit(advance).lower(state, jnp.int32(0))
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start

    records, gradient_evaluations, warmup_seconds = [], 0, 0.0
    start = time.perf_counter()
    with tqdm(total=num_warmup + num_samples, desc="NUTS", unit="step", disable=not progress_bar) as progress:
        for phase, num_steps in (("warm-up", num_warmup), ("sampling", num_samples)):
            progress.set_postfix_str(phase)
            for done in range(0, num_steps, _CHUNK):
                taken = min(_CHUNK, num_steps - done)
                state, record = compiled(state, jnp.int32(taken))
                record = jax.tree.map(lambda leaf, taken=taken: np.asarray(leaf)[:taken], record)
                gradient_evaluations += int(record["stats"]["n_steps"].sum())
                if phase == "sampling":
                    records.append(record)
                progress.update(taken)
            if phase == "warm-up":
                warmup_seconds = time.perf_counter() - start
    seconds = time.perf_counter() - start
    record = jax.tree.map(lambda *leaves: np.concatenate(leaves).swapaxes(0, 1), *records)
    return NutsRun(record["latents"], record["stats"], seconds, warmup_seconds, compile_seconds, gradient_evaluations)


def _record(state: HMCState) -> dict[str, Any]:
    stats = {
        "diverging": state.diverging,
        "n_steps": state.num_steps,
        "lp": -state.potential_energy,
        "energy": state.energy,
    }
    return {"latents": state.z, "stats": stats}
