"""Modes that training misses: narrow, small or distant ones, modes without a smooth optimum, or in many dimensions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from scipy.stats import multivariate_normal

from benchmarks.traps.case import Case, Mixture, Truth, Values, normals
from benchmarks.traps.truth import by_grid, by_importance, weighted_moments


def mixture_prior(mixture: Mixture) -> Callable:
    """The mixture as a prior, without data."""

    def model() -> None:
        numpyro.sample("x", mixture.distribution())

    return model


def bumps(mixture: Mixture, prior_sd: float = 10.0) -> Callable:
    """A wide prior and a likelihood with bumps, so that the posterior is the mixture."""

    def model() -> None:
        prior = dist.Normal(0.0, prior_sd).expand([mixture.means.shape[1]]).to_event(1)
        x = numpyro.sample("x", prior)
        numpyro.factor("likelihood", mixture.distribution().log_prob(x) - prior.log_prob(x))

    return model


def of_mixture(build: Callable[[Mixture], Callable], mixture: Mixture, kind: str, **settings: Any) -> Case:
    return Case(build(mixture), mixture.truth, kind, settings=settings)


def half_width_bump(dim: int) -> Mixture:
    return normals([0.6, 0.4], [0.0, 8.0 * np.eye(dim)[0]], [1.0, 0.5], dim)


def spike_and_slab(dim: int, spike: float) -> Mixture:
    return normals([0.5, 0.5], [0.0, 0.0], [spike, 1.0], dim)


def factor_regression(x: Array, y: Array) -> None:
    """Group spike-and-slab: one indicator for all coefficients of a factor."""
    b = jnp.asarray(numpyro.sample("b", spike_and_slab(x.shape[1], 0.03).distribution()))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)


def levels(seed: int, effects: Float[np.ndarray, " levels"], rows: int, noise: float = 1.0) -> tuple[Any, Any]:
    """Dummies for a factor's levels and a response."""
    rng = np.random.default_rng(seed)
    x = np.eye(effects.size)[rng.integers(0, effects.size, rows)]
    return x, x @ effects + rng.normal(0.0, noise, rows)


def regression_truth(x: np.ndarray, y: np.ndarray, noise: float, prior: Mixture) -> Truth:
    """Each component of the prior is conjugate: the posterior is a mixture, weighted by their evidences."""
    means, sds, evidences = [], [], []
    for weight, sd in zip(prior.probs, prior.sds):
        cov = noise**2 * np.eye(y.size) + (x * sd**2) @ x.T
        evidences.append(np.log(weight) + multivariate_normal(np.zeros(y.size), cov.tolist()).logpdf(y))
        posterior = np.linalg.inv(x.T @ x / noise**2 + np.diag(sd**-2))
        means.append(posterior @ x.T @ y / noise**2)
        sds.append(np.sqrt(np.diag(posterior)))
    total = float(np.logaddexp.reduce(evidences))
    return Truth(total, {"b": Mixture(np.exp(np.array(evidences) - total), np.stack(means), np.stack(sds)).moments()})


FACTOR = levels(5, np.array([0.55, -0.5, 0.15, 0.3, -0.5]), 60)


def kink(y: Array, location: float = 1.0, scale: float = 4.0) -> None:
    """The sign of theta is unknown, and no mode is smooth."""
    theta = numpyro.sample("theta", dist.Normal(location, scale))
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Laplace(jnp.abs(theta), s).expand([y.shape[0]]), obs=y)


def kink_case(y: list[float], *prior: float, kind: str = "kink") -> Case:
    grids = {"theta": np.linspace(-16.0, 16.0, 1601), "s": np.linspace(1e-4, 7.0, 700)}
    args = (np.array(y), *prior)
    return Case(kink, lambda: by_grid(kink, args, grids), kind, args)


def circle(radius: float, shift: float, num: int = 60) -> Float[np.ndarray, "num 2"]:
    angles = 2 * np.pi * np.arange(num) / num + shift
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def many_modes(small: Float[np.ndarray, "modes dim"], weight: float) -> Mixture:
    """A main mode of weight 1 at the origin and small ones; unit covariances."""
    means = np.concatenate([np.zeros((1, small.shape[1])), small])
    return Mixture(np.array([1.0, *[weight] * len(small)]), means, np.ones_like(means))


def one_bimodal_site(mixture: Mixture, others: int) -> Callable:
    """A site with modes beside many standard normal ones."""

    def model() -> None:
        components = dist.Normal(mixture.means[:, 0], mixture.sds[:, 0])
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(mixture.probs), components))
        numpyro.sample("other", dist.Normal(0.0, 1.0).expand([others]).to_event(1))

    return model


def bimodal_case(mixture: Mixture, others: int, kind: str) -> Case:
    mean, sd = mixture.moments()
    moments = {"x": (mean[0], sd[0]), "other": (np.zeros(others), np.ones(others))}
    return Case(one_bimodal_site(mixture, others), lambda: Truth(0.0, moments), kind)


CROSSED = normals([0.5, 0.5], [0.0, 0.0], [[1.0, 0.01], [0.01, 1.0]], 2)


def unordered(y: Array) -> None:
    """A mixture of two normals whose labels can be switched."""
    weight = jnp.asarray(numpyro.sample("weight", dist.Beta(2.0, 2.0)))
    with numpyro.plate("component", 2):
        mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
        sd = numpyro.sample("sd", dist.HalfNormal(2.0))
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.stack([weight, 1.0 - weight])), dist.Normal(mean, sd))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", mixture, obs=y)


def swapped(draws: Values) -> Values:
    """The labels the other way round; a site `weight` is that of the first."""
    return {name: 1.0 - x if name == "weight" else x[:, ::-1] for name, x in draws.items()}


def unordered_truth(model: Callable, args: tuple, start: dict[str, Any]) -> Truth:
    """One labelling by importance sampling, the other by symmetry."""
    draws, weights, log_evidence = by_importance(model, args, start)
    both = {name: np.concatenate([draws[name], x]) for name, x in swapped(draws).items()}
    return Truth(log_evidence + np.log(2.0), weighted_moments(both, np.concatenate([weights, weights]) / 2))


def two_normals(seed: int, num: int, location: float, dim: int | None = None) -> Float[np.ndarray, "num *dim"]:
    rng = np.random.default_rng(seed)
    shape = (num,) if dim is None else (num, dim)
    sign = rng.choice([-1.0, 1.0], num).reshape(num, *[1] * (len(shape) - 1))
    return location * sign + rng.normal(size=shape)


_PAIR = (two_normals(0, 300, 2.0),)
_PAIR_START = {"mean": np.array([-2.0, 2.0]), "sd": np.ones(2), "weight": np.array(0.5)}

CASES = {
    "spike-and-slab regression": Case(
        factor_regression, lambda: regression_truth(*FACTOR, 1.0, spike_and_slab(5, 0.03)), "spike and slab", FACTOR
    ),
    **{
        f"spike-and-slab prior, {dim} dimensions, spike {spike}": of_mixture(
            mixture_prior, spike_and_slab(dim, spike), "spike and slab"
        )
        for dim, spike in ((2, 0.001), (5, 0.05), (10, 0.1), (20, 0.2))
    },
    **{f"half-width bump, {dim} dimensions": of_mixture(bumps, half_width_bump(dim), "bump") for dim in (3, 5, 20)},
    "kink": kink_case([2.1, 2.9, 3.05, 3.3, 4.2]),
    "120 small modes": of_mixture(
        mixture_prior, many_modes(np.concatenate([circle(90.0, 0.0), circle(105.0, 0.05)]), 0.008), "small modes"
    ),
    "two modes, 300 dimensions": bimodal_case(normals([0.3, 0.7], [-4.0, 4.0], [1.0, 1.0], 1), 299, "dimensions"),
    "crossed bars, Gaussian stage only": of_mixture(mixture_prior, CROSSED, "bars", num_steps=0),
    "crossed bars": of_mixture(mixture_prior, CROSSED, "bars"),
    "label switching, 5 dimensions": Case(
        unordered, partial(unordered_truth, unordered, _PAIR, _PAIR_START), "labels", _PAIR
    ),
}
