"""Our own densities of the same kinds: other widths, places, weights, data and ways to write them."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from benchmarks.traps import improper, shapes, tails
from benchmarks.traps.case import Case, normals
from benchmarks.traps.modes import (
    bimodal_case,
    bumps,
    kink_case,
    levels,
    many_modes,
    mixture_prior,
    of_mixture,
    regression_truth,
    two_normals,
    unordered_truth,
)
from benchmarks.traps.truth import by_grid


def factor_prior_regression(x: Array, y: Array) -> None:
    """Spike-and-slab as a factor on top of the slab: spike sd 0.02 with probability 0.4."""
    slab, spike = (dist.Normal(0.0, sd).expand([x.shape[1]]).to_event(1) for sd in (1.0, 0.02))
    b = jnp.asarray(numpyro.sample("b", slab))
    ratio = spike.log_prob(b) - slab.log_prob(b)
    numpyro.factor("spike", jnp.logaddexp(jnp.log(0.4) + ratio, jnp.log(0.6)))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.Normal(x @ b, 0.8), obs=y)


def general_mixture() -> None:
    """Spike-and-slab by `MixtureGeneral`, with unequal weights."""
    components = [dist.Normal(0.0, sd).expand([7]).to_event(1) for sd in (0.02, 1.0)]
    numpyro.sample("x", dist.MixtureGeneral(dist.Categorical(jnp.array([0.3, 0.7])), components))


def distance(y: Array) -> None:
    """Only the distance of two sites is observed: two ridges, each with a kink."""
    a = jnp.asarray(numpyro.sample("a", dist.Normal(0.5, 2.0)))
    b = jnp.asarray(numpyro.sample("b", dist.Normal(-1.0, 2.0)))
    numpyro.sample("y", dist.Laplace(jnp.abs(a - b), 0.5).expand([y.shape[0]]), obs=y)


def product(y: Array) -> None:
    """Only the product of two sites is observed: one bent mode for each sign."""
    a = jnp.asarray(numpyro.sample("a", dist.Normal(0.3, 1.0)))
    b = jnp.asarray(numpyro.sample("b", dist.Normal(0.0, 1.0)))
    numpyro.sample("y", dist.Normal(a * b, 0.5).expand([y.shape[0]]), obs=y)


def unordered_means(y: Array) -> None:
    """A mixture with equal weights and unit scales: only the means are unknown, and not ordered."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0).expand([2, *y.shape[1:]]).to_event(y.ndim))
    components = dist.Normal(mean, 1.0).to_event(y.ndim - 1)
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), components), obs=y)


def unordered_case(y: np.ndarray, start: np.ndarray) -> Case:
    return Case(unordered_means, partial(unordered_truth, unordered_means, (y,), {"mean": start}), "variation", (y,))


def on_sphere(num: int, radius: float) -> Float[np.ndarray, "num 3"]:
    """Points that are spread evenly: Fibonacci's spiral."""
    height = 1 - 2 * (np.arange(num) + 0.5) / num
    angle = np.pi * (1 + 5**0.5) * np.arange(num)
    ring = np.sqrt(1 - height**2)
    return radius * np.stack([ring * np.cos(angle), ring * np.sin(angle), height], 1)


FACTOR = levels(6, np.array([0.15, -0.2, 0.1, 0.175, -0.15, 0.125, 0.05, -0.1]), 80, 0.8)
FACTOR_PRIOR = normals([0.4, 0.6], [0.0, 0.0], [0.02, 1.0], 8)
DISTANCE = (np.array([1.7, 2.2, 1.9, 2.6]),)
PRODUCT = (np.array([1.1, 0.6, 1.4, 0.9]),)
SITES = np.linspace(-10.0, 10.0, 1001)
BARS = normals([0.4, 0.3, 0.3], [0.0, 0.0, 0.0], [[1, 0.02, 0.02], [0.02, 1, 0.02], [0.02, 0.02, 1]], 3)
THREE = normals([0.2, 0.5, 0.3], [0.0, 7.0 * np.eye(6)[0], -6.0 * (np.eye(6)[1] + np.eye(6)[2])], [1.0, 0.6, 0.4], 6)

CASES = {
    "spike-and-slab regression by a factor": Case(
        factor_prior_regression, lambda: regression_truth(*FACTOR, 0.8, FACTOR_PRIOR), "variation", FACTOR
    ),
    "spike-and-slab prior by MixtureGeneral, 7 dimensions": Case(
        general_mixture, normals([0.3, 0.7], [0.0, 0.0], [0.02, 1.0], 7).truth, "variation"
    ),
    "third-width bump, 4 dimensions": of_mixture(
        bumps, normals([0.7, 0.3], [0.0, [-6.0, 6.0, 0.0, 0.0]], [1.0, 1 / 3], 4), "variation"
    ),
    "three modes, 6 dimensions": of_mixture(bumps, THREE, "variation"),
    "kink, other data": kink_case([0.9, 1.2, 1.3, 1.9, 2.4, 1.1], -1.0, 2.0, kind="variation"),
    "distance of two sites": Case(
        distance, lambda: by_grid(distance, DISTANCE, {"a": SITES, "b": SITES}), "variation", DISTANCE
    ),
    "product of two sites": Case(
        product, lambda: by_grid(product, PRODUCT, {"a": SITES, "b": SITES}), "variation", PRODUCT
    ),
    "40 small modes on a sphere": of_mixture(mixture_prior, many_modes(on_sphere(40, 60.0), 0.012), "variation"),
    "two modes, 400 dimensions": bimodal_case(normals([0.6, 0.4], [-6.0, 5.0], [0.5, 1.0], 1), 399, "variation"),
    "three crossed bars": of_mixture(mixture_prior, BARS, "variation"),
    "label switching, 2 dimensions": unordered_case(two_normals(1, 60, 1.5), np.array([-1.5, 1.5])),
    "label switching, 10 dimensions": unordered_case(
        two_normals(2, 100, 1.0, 5), np.array([[-1.0], [1.0]]) * np.ones(5)
    ),
    **tails.VARIATIONS,
    **improper.VARIATIONS,
    **shapes.VARIATIONS,
}
