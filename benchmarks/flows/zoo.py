"""Every recipe of `numpyro_flows.flows` on two densities, by maximum likelihood, and as a guide of two posteriors.

    uv run --group benchmarks python -m benchmarks.flows.zoo [--only nice realnvp ...]

All recipes have their defaults and the same budget. If a recipe can be fast in either direction, the direction that
training needs is fast: density for maximum likelihood, sampling as a guide.

Maximum likelihood uses 3,000 points, standardised, and 1,500 steps of 256. The score is the negative log likelihood of
10,000 fresh points. The row "exact" has that of the density itself, which is the lowest possible. As a guide, a recipe
is trained by `FlowVI` with its own rounds and stopping. Each recipe runs in its own process, so that none uses
functions that another one has compiled.
"""

import argparse
import json
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Float

from benchmarks.results import read, save
from numpyro_flows import AutoFlow, FlowDistribution, FlowVI, flows
from numpyro_flows.bijections import initialize_from_data
from numpyro_flows.continuous import in_training
from numpyro_flows.training.steps import TrainState, cosine_schedule, train_chunk
from tests.example_models import eight_schools

NUM_TRAIN, NUM_TEST, STEPS, BATCH, RATE = 3_000, 10_000, 1_500, 256, 5e-3

FAST = {  # the direction that is one pass; "either" by the recipe's argument `fast`
    "nice": "both",
    "realnvp": "both",
    "glow": "both",
    "multiscale": "both",
    "nsf_coupling": "both",
    "maf": "density",
    "iaf": "sampling",
    "nsf_autoregressive": "either",
    "naf": "either",
    "bnaf": "either",
    "bernstein": "either",
    "tarflow": "either",
    "gaussianization": "density",
    "coupling_gaussianization": "density",
    "planar": "sampling",
    "radial": "both",
    "sylvester": "sampling",
    "residual": "sampling",
    "matrix_exponential": "both",
    "ffjord": "both",
}

Points = Float[np.ndarray, "points 2"]


def two_moons(rng: np.random.Generator, num: int, noise: float = 0.08) -> Points:
    """Two half circles of radius 1 that hold on to each other."""
    angle, lower = rng.uniform(0.0, np.pi, num), rng.uniform(size=num) < 0.5
    return _moons(angle, lower) + noise * rng.normal(size=(num, 2))


def two_moons_log_density(x: Points, noise: float = 0.08) -> Float[np.ndarray, " points"]:
    """By the midpoint rule over the angle."""
    num = 1_000
    angle = np.tile((np.arange(num) + 0.5) * np.pi / num, 2)
    return _mixture_log_density(x, _moons(angle, np.arange(2 * num) < num), noise)


def eight_gaussians(rng: np.random.Generator, num: int, sd: float = 0.2) -> Points:
    """Eight Gaussians on a circle of radius 2."""
    return _on_circle()[rng.integers(8, size=num)] + sd * rng.normal(size=(num, 2))


def eight_gaussians_log_density(x: Points, sd: float = 0.2) -> Float[np.ndarray, " points"]:
    return _mixture_log_density(x, _on_circle(), sd)


def _moons(angle: np.ndarray, lower: np.ndarray) -> Points:
    x, y = np.cos(angle), np.sin(angle)
    return np.stack([np.where(lower, 1.0 - x, x), np.where(lower, 0.5 - y, y)], axis=1)


def _on_circle() -> Points:
    angle = np.arange(8) * np.pi / 4
    return 2.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _mixture_log_density(x: Points, means: Points, sd: float) -> Float[np.ndarray, " points"]:
    square = ((x[:, None] - means) ** 2).sum(-1) / sd**2
    return np.asarray(logsumexp(-0.5 * square, axis=1)) - math.log(len(means) * 2 * math.pi * sd**2)


DENSITIES: dict[str, tuple[Callable, Callable]] = {
    "moons": (two_moons, two_moons_log_density),
    "gaussians": (eight_gaussians, eight_gaussians_log_density),
}


def standardised(name: str) -> tuple[Points, Points]:
    """Training and test points of a density, both standardised by the former's mean and standard deviation."""
    train, test = _drawn(name)
    mean, sd = train.mean(0), train.std(0)
    return (train - mean) / sd, (test - mean) / sd


def lowest_nll(name: str) -> float:
    """The negative log likelihood of the standardised test points by the exact density."""
    train, test = _drawn(name)
    _, log_density = DENSITIES[name]
    return float(-log_density(test).mean() - np.log(train.std(0)).sum())


def _drawn(name: str) -> tuple[Points, Points]:
    draw, _ = DENSITIES[name]
    rng = np.random.default_rng(0)
    return draw(rng, NUM_TRAIN), draw(rng, NUM_TEST)


def banana() -> None:
    """A Gaussian has an ESS of 2%."""
    x = jnp.asarray(numpyro.sample("x", dist.Normal(0.0, 1.0)))
    numpyro.sample("y", dist.Normal(x**2 - 1.0, 0.3))


POSTERIORS = {"schools": eight_schools, "banana": banana}


def recipe_of(name: str, fast: str) -> flows.Recipe:
    """The recipe of that name, fast in that direction where it has the choice."""
    recipe = getattr(flows, name)
    return partial(recipe, fast=fast) if FAST[name] == "either" else recipe


def by_maximum_likelihood(recipe: flows.Recipe, name: str) -> dict[str, Any]:
    train, test = standardised(name)
    data = jnp.asarray(train, jnp.result_type(float))
    flow = recipe(jax.random.key(0), 2)
    if recipe is flows.glow:
        flow = initialize_from_data(flow, data[:BATCH])
    params, static = eqx.partition(flow, eqx.is_inexact_array)

    def loss(params, key):
        batch = data[jax.random.randint(key, (BATCH,), 0, NUM_TRAIN)]
        flow = in_training(eqx.combine(params, static), key)  # with the solver that continuous flows are trained with
        return -FlowDistribution(flow).log_prob(batch).mean()

    keys = jax.random.split(jax.random.key(1), STEPS)
    rates = jnp.asarray(cosine_schedule(STEPS, RATE))
    start = time.perf_counter()
    chunk = jax.jit(lambda *args: train_chunk(loss, *args)).lower(TrainState.init(params), keys, rates).compile()
    compiled = time.perf_counter()
    state, _, skipped = jax.block_until_ready(chunk(TrainState.init(params), keys, rates))
    trained = time.perf_counter()
    log_prob = jax.jit(FlowDistribution(eqx.combine(state.params, static)).log_prob)(jnp.asarray(test, data.dtype))
    return {
        f"{name}_nll": f"{-np.asarray(log_prob, np.float64).mean():.3f}",
        f"{name}_skipped": int(skipped),
        f"{name}_seconds_compile": f"{compiled - start:.1f}",
        f"{name}_ms_per_step": f"{1000 * (trained - compiled) / STEPS:.2f}",
    }


def as_guide(recipe: flows.Recipe, name: str) -> dict[str, Any]:
    model = POSTERIORS[name]
    start = time.perf_counter()
    fit = FlowVI(model, guide=AutoFlow(model, recipe), fallback=None, progress_bar=False).run(jax.random.key(0))
    return {
        f"{name}_ess": f"{fit.ess:.3f}",
        f"{name}_khat": f"{fit.khat:.2f}",
        f"{name}_certified": fit.certified,
        f"{name}_steps": fit.losses.size,
        f"{name}_seconds": f"{time.perf_counter() - start:.1f}",
    }


def measured(name: str) -> dict[str, Any]:
    """The row of one recipe."""
    warnings.simplefilter("ignore", UserWarning)
    params = eqx.filter(getattr(flows, name)(jax.random.key(0), 2), eqx.is_inexact_array)
    row: dict[str, Any] = {
        "recipe": name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "fast": FAST[name],
    }
    for density in DENSITIES:
        row |= by_maximum_likelihood(recipe_of(name, "density"), density)
    for posterior in POSTERIORS:
        row |= as_guide(recipe_of(name, "sampling"), posterior)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(FAST), default=list(FAST), help="these recipes")
    parser.add_argument("--worker", choices=list(FAST), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measured(options.worker)))
        return
    # rows that are not measured again stay as they are
    rows = {} if options.only == list(FAST) else {row["recipe"]: row for row in read("flows")}
    for name in options.only:
        start = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.flows.zoo", "--worker", name]
        rows[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    exact = {f"{name}_nll": f"{lowest_nll(name):.3f}" for name in DENSITIES}
    found = [rows[name] for name in FAST if name in rows]
    save("flows", [*found, dict.fromkeys(found[0], "") | {"recipe": "exact"} | exact])


if __name__ == "__main__":
    main()
