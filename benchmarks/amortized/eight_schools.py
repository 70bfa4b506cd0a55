"""An amortised flow for eight schools: verdicts on 1,000 data sets that the model drew, beside vmapped NUTS.

    uv run --group benchmarks python -m benchmarks.amortized.eight_schools [--seeds 3] [--nuts 200]

The model is eight schools without centring. `certified` is the share of the data sets whose verdict is good by weights
alone, `certified_with_refit` that after `FlowVI` has fitted the others, of which at most 20 are tried and counted up.
An effective draw is one of `1 / sum(w^2)` with weights `w` that sum to 1; for NUTS the median over data sets of ArviZ's
least bulk ESS of a scalar. NUTS is NumPyro's, all data sets side by side by `vmap`, one chain each of 500 draws after a
warm-up of 500, on some of the data sets. Rates are effective draws a second, without compilation and without training;
`data_sets_to_repay` says from how many data sets on training is repaid. Writes docs/benchmarks/amortized_schools.csv.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from arviz_stats.base.array import array_stats
from numpyro.infer.hmc import hmc
from numpyro.infer.util import initialize_model, potential_energy

from benchmarks.amortized.refits import certified_with_refit
from benchmarks.results import save
from numpyro_flows import AmortizedFlow
from numpyro_flows.modeling.simulation import Simulator

SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
NUM_DATA_SETS, NUM_DRAWS, WARMUP, DRAWS, MOST_REFITS = 1_000, 4_000, 500, 500, 20


def model(y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(10.0))
    with numpyro.plate("schools", len(SIGMA)):
        eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * eta, SIGMA), obs=y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nuts", type=int, default=200, help="data sets for NUTS")
    options = parser.parse_args()
    save("amortized_schools", [row(seed, options.nuts) for seed in range(options.seeds)])


def row(seed: int, num_nuts: int) -> dict[str, Any]:
    key = jax.random.key(seed)
    start = time.perf_counter()
    amortized = AmortizedFlow(model, observed=["y"], progress_bar=False).fit(key)
    training = time.perf_counter() - start
    y = Simulator(model, ["y"])(jax.random.fold_in(key, 1), NUM_DATA_SETS).data["y"]
    amortized.posteriors(key, {"y": y}, num_draws=NUM_DRAWS)  # compiles
    start = time.perf_counter()
    many = amortized.posteriors(jax.random.fold_in(key, 2), {"y": y}, num_draws=NUM_DRAWS)
    seconds = time.perf_counter() - start
    rate = NUM_DRAWS * many.table["ess"].sum() / seconds
    nuts_seconds, ess = nuts(y[:num_nuts], key)
    nuts_rate = num_nuts * ess / nuts_seconds
    of_nuts = NUM_DATA_SETS * nuts_seconds / num_nuts
    result = {
        "seed": seed,
        "certified": many.certified.mean(),
        "certified_with_refit": certified_with_refit(amortized, many, y, most=MOST_REFITS),
        "median_ess": many.table["ess"].median(),
        "training_seconds": training,
        "seconds": seconds,
        "rate": rate,
        "nuts_seconds_per_1000": of_nuts,
        "nuts_rate": nuts_rate,
        "times_nuts": rate / nuts_rate,
        "data_sets_to_repay": training / (of_nuts - seconds) * NUM_DATA_SETS,
    }
    result = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in result.items()}
    print(result, flush=True)
    return result


def nuts(y: np.ndarray, key: Any) -> tuple[float, float]:
    """Seconds without compilation, and the median over data sets of the least ESS of a scalar."""
    start = initialize_model(jax.random.key(0), model, model_args=(y[0],), dynamic_args=True)
    initial = start.param_info.z

    def run(y: Any, key: Any) -> Any:
        init_kernel, sample_kernel = hmc(potential_fn_gen=lambda y: lambda z: potential_energy(model, (y,), {}, z))
        state = init_kernel(initial, WARMUP, model_args=(y,), rng_key=key)

        def step(state: Any, _: None) -> tuple[Any, Any]:
            state = sample_kernel(state, model_args=(y,))
            return state, state.z

        state, _ = jax.lax.scan(step, state, None, length=WARMUP)
        return jax.lax.scan(step, state, None, length=DRAWS)[1]

    compiled = jax.jit(jax.vmap(run)).lower(jnp.asarray(y), jax.random.split(key, len(y))).compile()
    began = time.perf_counter()
    draws = jax.device_get(compiled(jnp.asarray(y), jax.random.split(key, len(y))))
    seconds = time.perf_counter() - began
    flat = np.concatenate([leaf.reshape(len(y), DRAWS, -1) for leaf in draws.values()], axis=2)
    ess: Any = array_stats.ess(flat[None], chain_axis=0, draw_axis=2, method="bulk")
    return seconds, float(np.median(ess.min(-1)))


if __name__ == "__main__":
    main()
