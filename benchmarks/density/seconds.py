"""Seconds to fit a density by maximum likelihood, compilation included, compared with FlowJAX's `fit_to_data`.

    uv run --group benchmarks python -m benchmarks.density.seconds [--repeats 3]

Both sides have the same number of layers, widths, bins, activation (SiLU), rows, batch size, epochs and share of
validation rows, and a normal base (no mixtures). They score after every epoch and do not stop early. JAX's caches are
cleared before each fit, and the sides take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flowjax import bijections as flowjax_bijections
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from flowjax.train import fit_to_data

from benchmarks.results import save
from numpyro_flows import fit_density, flows

LAYERS, HIDDEN, BINS, VALIDATION = 6, (64, 64), 8, 0.1
SIZES = {(3_000, 2): 50, (10_000, 10): 20, (100_000, 30): 3}  # rows and columns: epochs
FLOWS = ("realnvp", "nsf_coupling")


class Case(NamedTuple):
    flow: str
    num: int
    dim: int
    epochs: int
    batch: int


def data_of(case: Case) -> np.ndarray:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, case.num, case.dim // 2))
    return np.concatenate([first, second + 0.5 * first**2], axis=1).astype(np.float32)


def ours(case: Case, data: np.ndarray) -> float:
    recipe: Callable[..., Any] = partial(flows.realnvp, num_layers=LAYERS, hidden=HIDDEN)
    if case.flow == "nsf_coupling":
        recipe = partial(flows.nsf_coupling, num_layers=LAYERS, hidden=HIDDEN, num_bins=BINS)
    num_train = case.num - round(VALIDATION * case.num)
    num_steps = case.epochs * (num_train // case.batch)
    fitted = fit_density(
        jax.random.key(0),
        data,
        flow=recipe,
        base=dist.Normal(0.0, 1.0),
        num_steps=num_steps,
        batch_size=case.batch,
        patience=num_steps,
        validation=VALIDATION,
        progress_bar=False,
    )
    return fitted.fit.held_out.nll


def theirs(case: Case, data: np.ndarray) -> float:
    transformer = (
        flowjax_bijections.Affine()
        if case.flow == "realnvp"
        else flowjax_bijections.RationalQuadraticSpline(knots=BINS - 1, interval=5)
    )
    flow = coupling_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(case.dim)),
        transformer=transformer,
        flow_layers=LAYERS,
        nn_width=HIDDEN[0],
        nn_depth=len(HIDDEN),
        nn_activation=jax.nn.silu,
    )
    standardized = (data - data.mean(0)) / data.std(0)
    _, losses = fit_to_data(
        jax.random.key(1),
        flow,
        jnp.asarray(standardized),
        max_epochs=case.epochs,
        max_patience=case.epochs,
        batch_size=case.batch,
        val_prop=VALIDATION,
        show_progress=False,
    )
    return min(losses["val"]) + float(np.log(data.std(0)).sum())


def compare(case: Case, repeats: int) -> dict[str, Any]:
    data = data_of(case)
    seconds: dict[str, list[float]] = {"ours": [], "flowjax": []}
    nll = {}
    for _ in range(repeats):
        for name, fit in (("ours", ours), ("flowjax", theirs)):
            jax.clear_caches()
            start = time.perf_counter()
            nll[name] = fit(case, data)
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    row = {
        **case._asdict(),
        "ours_seconds": f"{median['ours']:.2f}",
        "flowjax_seconds": f"{median['flowjax']:.2f}",
        "ratio": f"{median['ours'] / median['flowjax']:.3f}",
        "ours_nll": f"{nll['ours']:.3f}",
        "flowjax_nll": f"{nll['flowjax']:.3f}",
    }
    print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the smallest data, once, nothing written")
    options = parser.parse_args()
    sizes = dict(list(SIZES.items())[: 1 if options.quick else None])
    rows = [
        compare(Case(flow, num, dim, epochs, batch), 1 if options.quick else options.repeats)
        for (num, dim), epochs in sizes.items()
        for flow in FLOWS
        for batch in (128, 512)
    ]
    ratios = [float(row["ratio"]) for row in rows]
    mean = float(np.exp(np.mean(np.log(ratios))))
    print(f"geometric mean {mean:.3f}, largest {max(ratios):.3f}")
    if not options.quick:
        summary = {"flow": "geometric mean", "ratio": f"{mean:.3f}"}
        save("density_seconds", [*rows, {key: summary.get(key, "") for key in rows[0]}])


if __name__ == "__main__":
    main()
