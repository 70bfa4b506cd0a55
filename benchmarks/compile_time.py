"""Seconds to trace and compile a training step of 4 and of 32 layers, and their ratio.

uv run --group benchmarks python -m benchmarks.compile_time [--repeats 5]
"""

import argparse
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp

from benchmarks.results import save
from numpyro_flows import flows
from numpyro_flows.objectives import path_loss
from numpyro_flows.training import TrainState, train_chunk


def compile_seconds(recipe, num_layers: int) -> float:
    make = eqx.filter_jit(lambda key: recipe(key, 10, num_layers=num_layers))
    params, static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)

    def loss(params, key):
        log_density = lambda x: -0.5 * jnp.sum(x**2)  # noqa: E731
        return path_loss(eqx.combine(params, static), log_density, jax.random.normal(key, (128, 10)))

    keys = jax.random.split(jax.random.key(0), 100)
    start = time.perf_counter()
    jax.jit(lambda s, k, r: train_chunk(loss, s, k, r)).lower(TrainState.init(params), keys, jnp.zeros(100)).compile()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    rows = []
    for recipe in (flows.realnvp, flows.nsf_coupling):
        compile_seconds(recipe, 2)  # what the first use of JAX costs belongs to neither
        seconds = {n: [] for n in (4, 32)}
        for _ in range(repeats):
            for n, values in seconds.items():
                values.append(compile_seconds(recipe, n))
        few, many = (statistics.median(seconds[n]) for n in (4, 32))
        rows.append(
            {
                "flow": recipe.__name__,
                "seconds_4_layers": f"{few:.2f}",
                "seconds_32_layers": f"{many:.2f}",
                "ratio": f"{many / few:.2f}",
            }
        )
    save("compile_time", rows)


if __name__ == "__main__":
    main()
