"""The cases: four posteriors of posteriordb, and a centred model whose scale has a gamma prior with a peak at zero."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from benchmarks.necks import models
from benchmarks.necks.case import Case, Truth, midpoints
from benchmarks.necks.effects import Effects, binomial, by_scale, poisson
from benchmarks.necks.normal import gamma_truth, pilots_truth
from benchmarks.posteriordb.data import Data, fields
from benchmarks.traps.cases import CASES as TRAPS

GAMMA = "gamma neck, 22 dimensions"
CELL = 0.05  # of log sigma

type LogPrior = Callable[[Float[Array, ""]], Float[Array, ""]]


def cases(database: Path) -> dict[str, Case]:
    """All cases by name; `database` is a clone of posteriordb."""
    makers = {
        "pilots-pilots": pilots,
        "GLMM_Poisson_data-GLMM_Poisson_model": glmm_poisson,
        "surgical_data-surgical_model": surgical,
        "seeds_data-seeds_model": seeds,
    }
    return {name: make(fields(database, name)) for name, make in makers.items()} | {GAMMA: gamma()}


def pilots(data: Data) -> Case:
    group, scenario = (data[name].astype(int) - 1 for name in ("group_id", "scenario_id"))
    table = np.full((5, 8), np.nan)
    table[group, scenario] = data["y"]
    names = ("sigma_a", "sigma_b", "sigma_y")
    return Case(
        models.pilots,
        (group, scenario, data["y"]),
        partial(pilots_truth, table),
        lambda draws: {f"log {name}": np.log(draws[name]) for name in names},
    )


def glmm_poisson(data: Data) -> Case:
    year, count = data["year"], data["C"]
    return Case(
        models.glmm_poisson,
        (year, count.astype(int)),
        lambda: _integrated(glmm_poisson_effects(year, count), -16.0, np.log(models.LARGEST_SIGMA)),
        lambda draws: {"log sigma": np.log(draws["sigma"])},
    )


def glmm_poisson_effects(year: Float[np.ndarray, " rows"], count: Float[np.ndarray, " rows"]) -> Effects:
    design = year[:, None] ** np.arange(4)
    half_widths = np.array([20.0, 10.0, 10.0, 10.0])
    return Effects(
        design,
        poisson(count),
        dist.Uniform(-half_widths, half_widths).to_event(1).log_prob,
        lambda log_sigma: log_sigma - np.log(models.LARGEST_SIGMA),
        np.linalg.lstsq(design, np.log(count + 0.5), rcond=None)[0],
    )


def surgical(data: Data) -> Case:
    n, r = data["n"], data["r"]
    return Case(
        models.surgical,
        (n.astype(int), r.astype(int)),
        lambda: _integrated(surgical_effects(n, r), -6.0, 2.0),
        lambda draws: {"log sigma": 0.5 * np.log(draws["sigmasq"])},
    )


def surgical_effects(n: Float[np.ndarray, " rows"], r: Float[np.ndarray, " rows"]) -> Effects:
    def log_scale_prior(log_sigma: Float[Array, ""]) -> Float[Array, ""]:
        variance = jnp.exp(2.0 * log_sigma)
        return dist.InverseGamma(0.001, 0.001).log_prob(variance) + jnp.log(2.0) + 2.0 * log_sigma

    return _with_logits(np.ones((n.size, 1)), n, r, log_scale_prior)


def seeds(data: Data) -> Case:
    x1, x2, total, n = (data[name] for name in ("x1", "x2", "N", "n"))
    return Case(
        models.seeds,
        (x1, x2, total.astype(int), n.astype(int)),
        lambda: _integrated(seeds_effects(x1, x2, total, n), -7.0, 2.0),
        lambda draws: {"log sigma": -0.5 * np.log(draws["tau"])},
    )


def seeds_effects(x1: np.ndarray, x2: np.ndarray, total: np.ndarray, n: np.ndarray) -> Effects:
    def log_scale_prior(log_sigma: Float[Array, ""]) -> Float[Array, ""]:
        precision = jnp.exp(-2.0 * log_sigma)
        return dist.Gamma(0.001, 0.001).log_prob(precision) + jnp.log(2.0) - 2.0 * log_sigma

    return _with_logits(np.stack([np.ones_like(x1), x1, x2, x1 * x2], 1), total, n, log_scale_prior)


def gamma() -> Case:
    trap = TRAPS[GAMMA]
    return Case(
        trap.model, trap.args, partial(gamma_truth, *trap.args), lambda draws: {"log tau": np.log(draws["tau"])}
    )


def _with_logits(design: np.ndarray, total: np.ndarray, count: np.ndarray, log_scale_prior: LogPrior) -> Effects:
    logits = np.log((count + 0.5) / (total - count + 0.5))
    return Effects(
        design,
        binomial(total, count),
        dist.Normal(0.0, 1000.0).expand([design.shape[1]]).to_event(1).log_prob,
        log_scale_prior,
        np.linalg.lstsq(design, logits, rcond=None)[0],
    )


def _integrated(effects: Effects, low: float, high: float) -> Truth:
    return by_scale(effects, midpoints(low, high, round((high - low) / CELL)), "log sigma")
