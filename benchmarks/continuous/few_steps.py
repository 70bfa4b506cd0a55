"""A continuous flow and its distillation by `few_steps`: scores, errors and seconds.

    uv run --group benchmarks python -m benchmarks.continuous.few_steps [--data moons]

Each flow is matched to 3,000 points for 6,000 steps and distilled with the defaults of `few_steps`. Scores use 10,000
fresh points, in nats a point. Seconds are those of `log_prob` and of `sample` for 10,000 points, the median of three
calls after compilation. `mass` is the integral of the distilled density over a grid of the square from -6 to 6, which
contains all but a negligible part of the data's distribution. `evaluations` counts evaluations of a field for the
density of a point.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import make_moons

from benchmarks.density.toys import Data
from benchmarks.results import read, save
from numpyro_flows import FlowDistribution, few_steps, fit_density, flows

NUM, NUM_TEST, STEPS = 3_000, 10_000, 6_000


def moons(num: int, seed: int) -> Data:
    return np.asarray(make_moons(num, noise=0.06, random_state=seed)[0])


def gaussians(num: int, seed: int) -> Data:
    """Eight on a circle of radius 2, of standard deviation 0.2."""
    rng = np.random.default_rng(seed)
    angle = rng.integers(8, size=num) * np.pi / 4
    return 2 * np.stack([np.cos(angle), np.sin(angle)], axis=-1) + 0.2 * rng.normal(size=(num, 2))


DATA = {"moons": moons, "gaussians": gaussians}


def seconds(function: Callable[..., Any], *args: Any) -> float:
    """Median of three calls, after compilation."""
    compiled, taken = jax.jit(function), []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[1:]))


def mass(flow: FlowDistribution) -> float:
    """By a Riemann sum over a grid of 600 times 600 cells."""
    line = np.linspace(-6, 6, 600)
    points = jnp.asarray(np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2))
    log_prob = jax.lax.map(flow.log_prob, points, batch_size=10_000)
    return float(np.exp(np.asarray(log_prob, np.float64)).sum() * (line[1] - line[0]) ** 2)


def measure(name: str) -> dict[str, Any]:
    train, test = DATA[name](NUM, 0), jnp.asarray(DATA[name](NUM_TEST, 1))
    options = {"flow": flows.ffjord, "objective": "flow_matching", "num_steps": STEPS, "progress_bar": False}
    flow = fit_density(jax.random.key(0), train, **options)
    began = time.perf_counter()
    fast = few_steps(jax.random.key(1), flow, progress_bar=False)
    distillation = time.perf_counter() - began
    row: dict[str, Any] = {"data": name}
    for label, density in {"flow": flow, "distilled": fast}.items():
        log_prob = jax.jit(density.log_prob)(test)
        row[f"{label}_nll"] = f"{-float(log_prob.mean()):.4f}"
        row[f"{label}_log_prob_seconds"] = f"{seconds(density.log_prob, test):.4f}"
        draw = seconds(lambda key: density.sample(key, (NUM_TEST,)), jax.random.key(2))  # noqa: B023
        row[f"{label}_sample_seconds"] = f"{draw:.4f}"
    return row | {
        "flow_evaluations": f"{flow.fit.solver.num_evaluations:.0f}",
        "distilled_evaluations": 4,
        "log_prob_error": f"{fast.fit.log_prob_error:.4f}",
        "round_trip_error": f"{fast.fit.round_trip_error:.4f}",
        "kl": f"{fast.fit.kl.nll:.4f}",
        "kl_standard_error": f"{fast.fit.kl.se:.4f}",
        "mass": f"{mass(fast):.4f}",
        "distillation_seconds": f"{distillation:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="others stay in the file")
    names = parser.parse_args().data
    others = [row for row in read("continuous_few_steps") if row["data"] not in names]
    save("continuous_few_steps", others + [measure(name) for name in names])


if __name__ == "__main__":
    main()
