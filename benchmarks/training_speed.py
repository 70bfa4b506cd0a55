"""Seconds of 3,000 training steps of 6 affine couplings, compilation included, against FlowJAX in the same run.

    uv run --group benchmarks python -m benchmarks.training_speed [--repeats 3]

Both sides have 10 dimensions, 128 draws a step, conditioners of two hidden layers of width 64 with SiLU, Adam,
path-derivative gradients, and the same density. Each timing runs in its own process, so that nothing is compiled
before. It starts after the imports, when the flow is made.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

DIM, LAYERS, WIDTH, DRAWS, STEPS, RATE = 10, 6, 64, 128, 3000, 3e-3


def log_density(x):
    """A correlated Gaussian with a bend."""
    import jax.numpy as jnp

    return -0.5 * jnp.sum((x[1:] - 0.5 * x[:-1] ** 2) ** 2) - 0.5 * x[0] ** 2


def ours() -> float:
    import equinox as eqx
    import jax

    from numpyro_flows import flows
    from numpyro_flows.inference.losses import path_loss
    from numpyro_flows.training.steps import TrainState, cosine_schedule, train_chunk

    start = time.perf_counter()
    make = lambda key: flows.realnvp(key, DIM, num_layers=LAYERS, hidden=(WIDTH, WIDTH))  # noqa: E731
    params, static = eqx.partition(eqx.filter_jit(make)(jax.random.key(0)), eqx.is_inexact_array)

    def loss(params, key):
        return path_loss(eqx.combine(params, static), log_density, jax.random.normal(key, (DRAWS, DIM)))

    train = jax.jit(lambda state, keys, rates: train_chunk(loss, state, keys, rates))
    keys = jax.random.split(jax.random.key(1), STEPS)
    jax.block_until_ready(train(TrainState.init(params), keys, cosine_schedule(STEPS, RATE)))
    return time.perf_counter() - start


def flowjax() -> float:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from flowjax.bijections import Affine
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow
    from flowjax.train import fit_to_key_based_loss
    from flowjax.train.losses import ElboLoss

    start = time.perf_counter()
    flow = coupling_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(DIM)),
        transformer=Affine(),
        flow_layers=LAYERS,
        nn_width=WIDTH,
        nn_depth=2,
        nn_activation=jax.nn.silu,
        invert=False,
    )
    loss = ElboLoss(log_density, num_samples=DRAWS, stick_the_landing=True)
    flow, _ = fit_to_key_based_loss(
        jax.random.key(1), flow, loss_fn=loss, steps=STEPS, learning_rate=RATE, show_progress=False
    )
    jax.block_until_ready(eqx.filter(flow, eqx.is_array))
    return time.perf_counter() - start


def main() -> None:
    from benchmarks.results import save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=["ours", "flowjax"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps({"ours": ours, "flowjax": flowjax}[options.worker]()))
        return
    seconds = {"ours": [], "flowjax": []}
    for _ in range(options.repeats):
        for name, values in seconds.items():
            command = [sys.executable, "-m", "benchmarks.training_speed", "--worker", name]
            values.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {"method": name, "median_seconds": f"{medians[name]:.2f}", "all_seconds": " ".join(f"{v:.2f}" for v in values)}
        for name, values in seconds.items()
    ]
    ratio = medians["ours"] / medians["flowjax"]
    save("training_speed", [*rows, {"method": "ratio", "median_seconds": f"{ratio:.2f}", "all_seconds": ""}])


if __name__ == "__main__":
    main()
