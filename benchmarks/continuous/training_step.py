"""A likelihood step of a continuous flow in this library's training, compared with a naive one (adaptive, tight).

    uv run --group benchmarks python -m benchmarks.continuous.training_step [--steps 200]

The data are two moons as in `benchmarks.continuous.moons`. Both sides start from the same flow, matched for 5,000
steps. They take the same number of Adam steps on the same batches, with the exact divergence. One side trains as
`fit_density` does: few steps of one size, doubled if the score differs from the tight one. The other side uses `Tsit5`
at a tolerance of 1e-5. Scores are at 1e-6 on 20,000 fresh points. Seconds a step are the median over rounds of 20,
compiled.
"""

import argparse
import time
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.continuous.moons import SCORED, moons
from benchmarks.results import save
from numpyro_flows import FlowDistribution, fit_density
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.continuous import adaptive, in_training
from numpyro_flows.continuous.training_form import with_more_steps, with_training_solver, without_errors
from numpyro_flows.density.losses import Rows, mean_nll
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.training.steps import TrainState, cosine_schedule, train_chunk

SETTINGS = FlowVISettings()

BATCH, ROUND, RATE = 256, 20, 1e-3


def train(
    flow: AbstractBijection, data: np.ndarray, num_steps: int, *, coarse: bool
) -> tuple[AbstractBijection, float, Any]:
    """The flow after `num_steps` steps, the median seconds of one, and the solver steps of training at the end."""
    params, fixed = eqx.partition(flow, eqx.is_inexact_array)
    arrays, static = eqx.partition(fixed, eqx.is_array)
    rows = Rows(jnp.asarray(data, jnp.float32), None, jnp.ones(len(data), jnp.float32))
    key = jax.random.key(0)

    def loss(params: Any, batch: tuple[Any, Any]) -> Any:
        arrays, index = batch
        whole = eqx.combine(params, arrays, static)
        whole = in_training(whole, key) if coarse else without_errors(whole)
        return mean_nll(whole, jax.tree.map(lambda leaf: leaf[index], rows))[0]

    @jax.jit
    def take(state: TrainState, arrays: Any, index: Any, rates: Any) -> Any:
        return train_chunk(lambda params, index: loss(params, (arrays, index)), state, index, rates)

    @jax.jit
    def gap(params: Any, arrays: Any) -> Any:
        whole = eqx.combine(params, arrays, static)
        some = jax.tree.map(lambda leaf: leaf[:200], rows)
        return mean_nll(with_training_solver(whole), some)[0] - mean_nll(whole, some)[0]

    rng = np.random.default_rng(0)
    rates = np.float32(cosine_schedule(num_steps, RATE)).reshape(-1, ROUND)
    index = np.stack([rng.permutation(len(data))[:BATCH] for _ in range(num_steps)]).reshape(-1, ROUND, BATCH)
    state = TrainState.init(params, averaged=True)
    jax.block_until_ready(take(state, arrays, index[0], 0 * rates[0]))
    seconds = []
    for some, rates_of_round in zip(index, rates):
        start = time.perf_counter()
        state, _, _ = jax.block_until_ready(take(state, arrays, some, rates_of_round))
        seconds.append((time.perf_counter() - start) / ROUND)
        if coarse and abs(gap(state.average, arrays)) > SETTINGS.solver_gap:
            arrays = with_more_steps(arrays)
    whole = eqx.combine(state.average, arrays, static)
    return whole, float(np.median(seconds)), whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="40 steps, nothing written")
    options = parser.parse_args()
    num_steps = 40 if options.quick else options.steps
    data, test, entropy = moons(0)
    start = fit_density(
        jax.random.key(0), data, flow=SCORED, objective="flow_matching", num_steps=5_000, progress_bar=False
    ).bijection
    at_1e5 = eqx.tree_at(lambda b: b.bijections[0].ode.stepsize_controller, start, adaptive(1e-5))
    sides = {"ours": partial(train, start, coarse=True), "naive": partial(train, at_1e5, coarse=False)}
    rows = []
    for side, run in sides.items():
        trained, seconds, whole = run(data, num_steps)
        tight = eqx.tree_at(lambda b: b.bijections[0].ode.stepsize_controller, trained, adaptive(1e-6))
        log_prob = np.asarray(jax.jit(FlowDistribution(tight).log_prob)(test), np.float64)
        rows.append(
            {
                "side": side,
                "steps": num_steps,
                "milliseconds_a_step": f"{1e3 * seconds:.1f}",
                "held_out_nll": f"{-log_prob.mean():.4f}",
                "entropy": f"{entropy:.4f}",
                "solver_steps": int(whole.bijections[0].training.num_steps) if side == "ours" else "adaptive",
            }
        )
        print(rows[-1], flush=True)
    for row in rows:
        row["naive_over_this"] = f"{float(rows[1]['milliseconds_a_step']) / float(row['milliseconds_a_step']):.2f}"
    if not options.quick:
        save("continuous_training_step", rows)


if __name__ == "__main__":
    main()
