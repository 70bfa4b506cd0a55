"""Seconds of 100 draws from masked autoregressive flows made for data, whose drawing is the slow direction.

    uv run --group benchmarks python -m benchmarks.flows.slow_direction [--repeats 3]

Three methods are compared. Ours uses sweeps over all coordinates until nothing moves. Ours coordinate by coordinate
uses one pass of the conditioner for each coordinate. FlowJAX's does the same. All have the same layers, widths and
activation, and the same random weights: normal, with variance 1 / fan-in, and in the last layer times `SCALES`, because
zero there gives the identity. The distance of a flow from the identity is the mean of `|y - x|`, where `x` is the image
of the same draw with zeros in the last layers.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import paramax
from flowjax.bijections import Affine
from flowjax.distributions import Normal
from flowjax.flows import masked_autoregressive_flow
from jaxtyping import Array, Float

from benchmarks.results import save
from numpyro_flows import flows
from numpyro_flows.bijections import AbstractBijection

DIMS, SCALES = (64, 256, 784), (1.0, 3.0)
LAYERS, DRAWS, TOLERANCE = 4, 100, 1e-3
SECONDS = 0.2  # that one timing takes at least, in as many runs as that needs


def our_flow(dim: int, scale: float) -> AbstractBijection:
    flow = flows.maf(jax.random.key(0), dim, num_layers=LAYERS, hidden=(dim, dim))
    weights = lambda flow: flow.bijection.layers.bijections[0].conditioner.mlp.weights  # noqa: E731
    return eqx.tree_at(weights, flow, tuple(random_weights(weights(flow), scale, fan_in=-2)))


def flowjax_flow(dim: int, scale: float) -> Any:
    flow = masked_autoregressive_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(dim)),
        transformer=Affine(),
        flow_layers=LAYERS,
        nn_width=dim,
        nn_depth=2,
        nn_activation=jax.nn.silu,
        invert=True,
    ).bijection

    def linears(flow: Any) -> list[Any]:
        return list(flow.bijection.bijection.bijections[0].masked_autoregressive_mlp.layers)

    # the weights are the arguments of their masks
    weights = lambda flow: [linear.weight.args[1] for linear in linears(flow)]  # noqa: E731
    biases = lambda flow: [linear.bias for linear in linears(flow)]  # noqa: E731
    flow = eqx.tree_at(weights, flow, random_weights(weights(flow), scale, fan_in=-1))
    return paramax.unwrap(eqx.tree_at(biases, flow, [jnp.zeros_like(bias) for bias in biases(flow)]))


def random_weights(weights: Any, scale: float, fan_in: int) -> list[Array]:
    *hidden, last = [
        jax.random.normal(key, weight.shape) / np.sqrt(weight.shape[fan_in])
        for key, weight in zip(jax.random.split(jax.random.key(1), len(weights)), weights)
    ]
    return [*hidden, scale * last]


def one_by_one(flow: Any, base: Float[Array, " dim"]) -> tuple[Array, Array]:
    """Our flow's draw with as many passes of the conditioner in every layer as there are coordinates."""

    def one_pass(update: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
        return jax.lax.fori_loop(0, x.size, lambda _, x: update(x), x), jnp.asarray(x.size)

    return draw(flow, base, one_pass)


def by_sweeps(flow: Any, base: Float[Array, " dim"]) -> tuple[Array, Array]:
    """The same until nothing moves, to count the sweeps."""

    def sweeps(update: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
        def moving(state: tuple[Array, Array, Array]) -> Array:
            x, last, num = state
            return jnp.any(jnp.abs(x - last) > 4 * jnp.finfo(x.dtype).eps * (0.01 + jnp.abs(x))) & (num < x.size)

        start = x, jnp.full_like(x, jnp.inf), jnp.zeros((), int)
        x, _, num = jax.lax.while_loop(moving, lambda state: (update(state[0]), state[0], state[2] + 1), start)
        return x, num

    return draw(flow, base, sweeps)


def draw(flow: Any, base: Float[Array, " dim"], solve: Callable) -> tuple[Array, Array]:
    arrays, static = eqx.partition(flow.bijection.layers, eqx.is_array)

    def layer(y: Array, layer_arrays: Any) -> tuple[Array, Array]:
        masked, permutation = eqx.combine(layer_arrays, static).bijections
        y, _ = permutation.inverse_and_log_det(y)

        def update(x: Array) -> Array:
            params = masked.conditioner(x).reshape(y.size, masked.univariate.num_params)
            return masked.univariate.inverse_and_log_derivative(y, params)[0]

        return solve(update, y)

    return jax.lax.scan(layer, base, arrays, reverse=True)


def compiled(function: Callable, flow: Any, base: Float[Array, "draws dim"]) -> Callable[[], Array]:
    """`function(flow, x)` of all draws, the flow an argument: as a constant it would be folded away in part."""
    arrays, static = eqx.partition(flow, eqx.is_array)
    run = jax.jit(lambda arrays, base: jax.vmap(lambda x: function(eqx.combine(arrays, static), x)[0])(base))
    run = run.lower(arrays, base).compile()
    return lambda: jax.block_until_ready(run(arrays, base))


def forth(flow: Any, x: Array) -> tuple[Array, Array]:
    return flow.transform_and_log_det(x)


def back(flow: Any, y: Array) -> tuple[Array, Array]:
    return flow.inverse_and_log_det(y)


def timed(run: Callable[[], Array], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def compare(dim: int, scale: float, repeats: int, naive: bool) -> list[dict[str, Any]]:
    base = jax.random.normal(jax.random.key(2), (DRAWS, dim))
    make = {"ours": our_flow, "ours, one by one": our_flow, "FlowJAX": flowjax_flow}
    if not naive:
        del make["ours, one by one"]
    made = {name: make[name](dim, scale) for name in make}
    runs = {
        name: compiled(one_by_one if name == "ours, one by one" else forth, flow, base) for name, flow in made.items()
    }
    seconds, rows = {name: [] for name in runs}, []
    draws = {name: run() for name, run in runs.items()}
    times = {name: max(1, round(SECONDS / timed(run, 1))) for name, run in runs.items()}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(timed(run, times[name]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, flow in made.items():
        error = float(jnp.abs(compiled(back, flow, draws[name])() - base).max())
        assert error < TOLERANCE, f"{name}, dim {dim}, scale {scale}: inverted to {error:.1e} only"
        identity = compiled(forth, make[name](dim, 0.0), base)()
        passes = dim
        if name == "ours":
            sweeps = eqx.filter_jit(eqx.filter_vmap(by_sweeps, in_axes=(None, 0)))(flow, base)[1]
            passes = float(sweeps.max(0).mean())  # of a batch, all sweep as often as the one that needs most
        rows.append(
            {
                "dim": dim,
                "scale": scale,
                "method": name,
                "seconds": f"{medians[name]:.3g}",
                "seconds_over_ours": f"{medians[name] / medians['ours']:.2f}",
                "passes_per_layer": f"{passes:.0f}",
                "distance_from_identity": f"{float(jnp.abs(draws[name] - identity).mean()):.2f}",
                "inversion_error": f"{error:.1e}",
            }
        )
        print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dims", nargs="+", type=int, default=list(DIMS))
    parser.add_argument("--no-naive", action="store_true", help="without ours coordinate by coordinate")
    parser.add_argument("--quick", action="store_true", help="one timing in 64 dimensions, nothing written")
    options = parser.parse_args()
    if options.quick:
        options.dims, options.repeats = [64], 1
    rows = []
    for dim in options.dims:
        for scale in SCALES:
            rows += compare(dim, scale, options.repeats, not options.no_naive)
    if not options.quick:
        save("flows_slow_direction", rows)


if __name__ == "__main__":
    main()
