"""Two moons by flow matching, then likelihood: held-out negative log likelihood against seconds on one core.

    uv run --group benchmarks python -m benchmarks.continuous.moons [--seeds 3] [--budgets wide]

The data are 1,500 points with noise 0.06, standardised by their own mean and standard deviation. Scores use 20,000
fresh points, the exact divergence and a tolerance of 1e-6. Seconds are those of `fit_density` from the call to its
return, compilation included, in a process that is kept to one core.

The entropy is that of the exact density (arcs convolved with the noise, by quadrature) after the same standardisation.
It is the lowest possible score, up to the noise of the 20,000 points (0.006).

Each budget is a number of matching steps and a number of likelihood steps after them (batches of 256, a learning rate
of 2e-3, no early stopping), the same for all seeds. The wide one has a field of three layers of 128 and paths that end
0.02 wide. Other settings are the defaults of `fit_density` and of `flows.ffjord`. `gap` is the error of training's
solver in the score of the validation rows at the end.
"""

import os

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX makes its threads

import argparse
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from sklearn.datasets import make_moons

from benchmarks.density.toys import Data, standardized
from benchmarks.results import read, save
from numpyro_flows import FlowDistribution, fit_density, flows
from numpyro_flows.continuous import ConditionalOT, FlowMatching, MLPField, adaptive
from numpyro_flows.flows import Recipe

NUM, NOISE = 1500, 0.06
SCORED = partial(flows.ffjord, stepsize_controller=adaptive(1e-6))


class Budget(NamedTuple):
    matching_steps: int
    likelihood_steps: int = 0
    flow: Recipe = SCORED
    matching: FlowMatching = FlowMatching()


WIDE = partial(SCORED, field=partial(MLPField, hidden=(128, 128, 128)))
BUDGETS = {
    "quick": Budget(10_000),
    "long": Budget(60_000),
    "wide": Budget(20_000, flow=WIDE, matching=FlowMatching(ConditionalOT(0.02))),
    "with likelihood": Budget(20_000, likelihood_steps=400),
}


def moons(seed: int) -> tuple[Data, Data, float]:
    """Training and fresh points, and the entropy of the exact density, all standardised by the training points."""
    train, _ = make_moons(NUM, noise=NOISE, random_state=seed)
    test, _ = make_moons(20_000, noise=NOISE, random_state=1000 + seed)
    train = np.asarray(train)
    return *standardized(train, np.asarray(test)), raw_entropy() - float(np.log(train.std(0)).sum())


def raw_entropy() -> float:
    """Entropy of the arcs convolved with the noise, in nats, by quadrature over the plane."""
    angle, cell = np.linspace(0, np.pi, 2001), 0.02
    arcs = np.stack([np.cos(angle), np.sin(angle)]), np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)])
    weight = np.full(angle.size, 0.5 / (angle.size - 1))
    weight[[0, -1]] /= 2
    entropy = 0.0
    y = np.arange(-0.9, 1.4, cell)
    for x in np.arange(-1.4, 2.4, cell):
        density = np.zeros(y.size)
        for arc in arcs:
            squared = (x - arc[0]) ** 2 + (y[:, None] - arc[1]) ** 2
            density += np.exp(-squared / (2 * NOISE**2)) @ weight / (2 * np.pi * NOISE**2)
        entropy -= np.sum(density * np.log(np.maximum(density, 1e-300))) * cell**2
    return float(entropy)


def score(flow: FlowDistribution, points: Data) -> Float[np.ndarray, " num"]:
    return np.asarray(jax.jit(flow.log_prob)(points), np.float64)


def measure(budget: str, seed: int) -> dict[str, Any]:
    train, test, entropy = moons(seed)
    jax.clear_caches()
    matching_steps, likelihood_steps, recipe, matching = BUDGETS[budget]
    fit = partial(fit_density, jax.random.key(seed), train, progress_bar=False)
    start = time.perf_counter()
    flow = fit(flow=recipe, objective=matching, num_steps=matching_steps)
    if likelihood_steps:
        flow = fit(flow=flow, num_steps=likelihood_steps, patience=likelihood_steps, batch_size=256, learning_rate=2e-3)
    seconds = time.perf_counter() - start
    log_prob = score(flow, test)
    assert flow.fit.solver is not None
    row = {
        "budget": budget,
        "seed": seed,
        "held_out_nll": f"{-log_prob.mean():.4f}",
        "standard_error": f"{log_prob.std() / np.sqrt(len(test)):.4f}",
        "entropy": f"{entropy:.4f}",
        "above_entropy": f"{-log_prob.mean() - entropy:.4f}",
        "training_nll": f"{-score(flow, train).mean():.4f}",
        "seconds": f"{seconds:.1f}",
        "matching_steps": matching_steps,
        "likelihood_steps": likelihood_steps,
        "gap": f"{flow.fit.solver.gap:.4f}" if likelihood_steps else "",
        "evaluations": f"{flow.fit.solver.num_evaluations:.0f}",
    }
    print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS), help="others stay in the file")
    parser.add_argument("--quick", action="store_true", help="one seed, nothing written")
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    rows = [measure(budget, seed) for budget in options.budgets for seed in seeds]
    if not options.quick:
        others = [row for row in read("continuous_moons") if row["budget"] not in options.budgets]
        save("continuous_moons", others + rows)


if __name__ == "__main__":
    main()
