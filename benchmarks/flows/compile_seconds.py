"""Seconds to trace and compile a training step of 8 and of 32 layers, for every recipe, in 10 dimensions.

    uv run --group benchmarks python -m benchmarks.flows.compile_seconds [--repeats 3]

Each recipe is used in its fast direction: with the path gradient of the reverse KL if drawing is fast, and with the
    forward KL if only the density is. FlowJAX's coupling flows, with its path gradient, are listed for orientation: its
    step is not a loop of steps.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import paramax
from flowjax import bijections as flowjax_bijections
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from flowjax.train.losses import ElboLoss
from flowjax.train.train_utils import step

from benchmarks.flows.common import BATCH, RATE, Gradient, log_density, target_draws, train_function
from benchmarks.results import save
from numpyro_flows import flows
from numpyro_flows.bijections import AbstractBijection

DIM, CHUNK, FEW, MANY = 10, 100, 8, 32


def multiscale(key: jax.Array, dim: int, num_layers: int) -> AbstractBijection:
    return flows.multiscale(key, dim, flow=partial(flows.realnvp, num_layers=num_layers))


RECIPES: dict[str, tuple[Callable[..., AbstractBijection], Gradient]] = {
    "nice": (flows.nice, "path"),
    "realnvp": (flows.realnvp, "path"),
    "nsf_coupling": (flows.nsf_coupling, "path"),
    "glow": (flows.glow, "path"),
    "multiscale": (multiscale, "path"),
    "maf": (flows.maf, "likelihood"),
    "iaf": (flows.iaf, "path"),
    "nsf_autoregressive": (flows.nsf_autoregressive, "likelihood"),
    "naf": (flows.naf, "path"),
    "bernstein": (flows.bernstein, "likelihood"),
    "bnaf": (flows.bnaf, "path"),
    "tarflow": (flows.tarflow, "likelihood"),
    "planar": (flows.planar, "path"),
    "radial": (flows.radial, "path"),
    "sylvester": (flows.sylvester, "path"),
    "residual": (flows.residual, "path"),
    "with_tails": (flows.with_tails(flows.realnvp), "path"),
}
PEERS: dict[str, Callable[[], flowjax_bijections.AbstractBijection]] = {
    "FlowJAX affine coupling": flowjax_bijections.Affine,
    "FlowJAX spline coupling": lambda: flowjax_bijections.RationalQuadraticSpline(knots=7, interval=5),
}


def ours(name: str, num_layers: int) -> float:
    recipe, gradient = RECIPES[name]
    train, start = train_function(gradient, recipe(jax.random.key(0), DIM, num_layers=num_layers), CHUNK)
    keys, data = jax.random.split(jax.random.key(1), CHUNK), target_draws(jax.random.key(2), 10 * BATCH, DIM)
    begin = time.perf_counter()
    jax.jit(train).lower(start, keys, data).compile()
    return time.perf_counter() - begin


def flowjax(name: str, num_layers: int) -> float:
    flow = coupling_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(DIM)),
        transformer=PEERS[name](),
        flow_layers=num_layers,
        nn_width=32,
        nn_depth=2,
        nn_activation=jax.nn.silu,
        invert=False,
    )
    params, static = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )
    optimizer, loss = optax.adam(RATE), ElboLoss(log_density, BATCH, stick_the_landing=True)
    state, key = optimizer.init(params), jax.random.key(1)
    begin = time.perf_counter()
    lower = step.lower  # pyright: ignore[reportFunctionMemberAccess]
    lower(params, static, key=key, optimizer=optimizer, opt_state=state, loss_fn=loss).compile()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flows", nargs="+", choices=[*RECIPES, *PEERS], default=[*RECIPES, *PEERS])
    parser.add_argument("--quick", action="store_true", help="one timing, nothing written")
    options = parser.parse_args()
    rows = []
    for name in options.flows:
        measure = ours if name in RECIPES else flowjax
        measure(name, 2)  # the cost of JAX's first use belongs to neither
        seconds = {n: [] for n in (FEW, MANY)}
        for _ in range(1 if options.quick else options.repeats):
            for n, values in seconds.items():
                values.append(measure(name, n))
        few, many = (statistics.median(seconds[n]) for n in (FEW, MANY))
        rows.append(
            {
                "flow": name,
                "gradient": RECIPES[name][1] if name in RECIPES else "path",
                f"seconds_{FEW}_layers": f"{few:.2f}",
                f"seconds_{MANY}_layers": f"{many:.2f}",
                "ratio": f"{many / few:.2f}",
            }
        )
        print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    if not options.quick:
        save("flows_compile_seconds", rows)


if __name__ == "__main__":
    main()
