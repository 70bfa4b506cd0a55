"""Memory and seconds of a gradient through a continuous flow, by adjoint and number of solver steps.

    uv run --group benchmarks python -m benchmarks.continuous.adjoints [--repeats 3]

The gradient is that of the mean negative log density of 16 events of 8 coordinates in all parameters. The flow has
`Tsit5` in steps of one size, the exact divergence, and a field of three layers of 64 units. Megabytes are XLA's
temporary buffers of the compiled function (`memory_analysis`). Forward mode gives one directional derivative, not a
gradient.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from benchmarks.results import save
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.continuous import ContinuousFlow, MLPField

DIM, BATCH, STEPS = 8, 16, (8, 32, 128, 512)
ADJOINTS: dict[str, diffrax.AbstractAdjoint] = {
    "RecursiveCheckpointAdjoint": diffrax.RecursiveCheckpointAdjoint(),
    "BacksolveAdjoint": diffrax.BacksolveAdjoint(),
    "DirectAdjoint": diffrax.DirectAdjoint(),
    "ForwardMode": diffrax.ForwardMode(),
}


def loss(params: PyTree, static: AbstractBijection, y: Array) -> Scalar:
    x, log_det = jax.vmap(lambda y: eqx.combine(params, static).inverse_and_log_det(y))(y)
    return jnp.mean(0.5 * (x**2).sum(1) - log_det)


def compiled(adjoint: diffrax.AbstractAdjoint, num_steps: int) -> tuple[Callable[[], Any], float]:
    """The compiled gradient, and the megabytes of its temporary buffers."""
    key = jax.random.key(0)
    flow = ContinuousFlow(
        MLPField(key, DIM),
        adjoint=adjoint,
        stepsize_controller=diffrax.ConstantStepSize(),
        num_steps=num_steps,
        max_steps=num_steps,
    )
    params, static = eqx.partition(flow, eqx.is_inexact_array)
    params = jax.tree.map(lambda p: p + 0.01 * jax.random.normal(key, p.shape), params)
    y = jax.random.normal(key, (BATCH, DIM))

    def gradient(params: PyTree, y: Array) -> Any:
        if isinstance(adjoint, diffrax.ForwardMode):
            return jax.jvp(lambda params: loss(params, static, y), (params,), (params,))
        return jax.value_and_grad(loss)(params, static, y)

    function = jax.jit(gradient).lower(params, y).compile()
    memory = function.memory_analysis()
    assert memory is not None
    return lambda: function(params, y), memory.temp_size_in_bytes / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few steps, nothing written")
    options = parser.parse_args()
    rows = []
    for num_steps in STEPS[:2] if options.quick else STEPS:
        sides = {name: compiled(adjoint, num_steps) for name, adjoint in ADJOINTS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(options.repeats + 1):
            for name, (run, _) in sides.items():
                start = time.perf_counter()
                jax.block_until_ready(run())
                if repeat > 0:  # the first is not counted
                    seconds[name].append(time.perf_counter() - start)
        fastest = min(map(statistics.median, seconds.values()))
        for name, (_, megabytes) in sides.items():
            median = statistics.median(seconds[name])
            rows.append(
                {
                    "adjoint": name,
                    "num_steps": num_steps,
                    "megabytes": f"{megabytes:.2f}",
                    "milliseconds": f"{1000 * median:.1f}",
                    "over_the_fastest": f"{median / fastest:.2f}",
                }
            )
            print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    if not options.quick:
        save("continuous_adjoints", rows)


if __name__ == "__main__":
    main()
