"""One simulated data set: FlowVI's fit, the ranks of the true values, and the error of the log evidence."""

import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.infer import Predictive
from numpyro.infer.util import constrain_fn, log_density, unconstrain_fn

from benchmarks.calibration.conjugate import Conjugate
from benchmarks.calibration.models import Simulated
from numpyro_flows import FlowPosterior, FlowVI
from numpyro_flows.diagnostics.ranks import normalised_ranks

DRAWS, THINNING = 200, 10  # importance resampling repeats draws: of 2,000 in random order one in ten is kept
SHRINKAGE = 0.8

type Sites = dict[str, Array]


class Fit(NamedTuple):
    """The fit of data set `number`.

    certified: the verdict, and `by` what: "weights" or "mcmc".
    ess: relative effective sample size; NaN by Markov chains.
    seconds: of the fit.
    """

    number: int
    certified: bool
    by: str
    ess: float
    seconds: float


class Ranks(NamedTuple):
    """Normalised ranks of the true values, one for each of the `names`.

    fit: among the draws of the fit.
    shrunk: among the same draws, with standard deviations that are 20% too small.
    """

    names: list[str]
    fit: Float[np.ndarray, " quantities"]
    shrunk: Float[np.ndarray, " quantities"]


class Evidence(NamedTuple):
    """The log evidence's error, and two standard errors of it.

    se: `posterior.log_evidence_se`, which contains what the fit may lack.
    monte_carlo_se: of the weights alone; NaN by Markov chains.
    """

    error: float
    se: float
    monte_carlo_se: float


def ranks(simulated: Simulated, number: int) -> tuple[Fit, Ranks]:
    """Simulate data set `number`, fit it, and rank its true values among draws of the fit."""
    true, y = simulate(simulated, number)
    fit, posterior = fitted(simulated, number, y)
    sampled = posterior.sample(key(number, "draws"), THINNING * DRAWS)
    draws = {name: sampled[name][::THINNING] for name in true}
    rng = np.random.default_rng(number)
    names, true_values = quantities(simulated, y, {name: value[None] for name, value in true.items()})
    values = [quantities(simulated, y, sites)[1] for sites in (draws, shrunk(simulated, y, draws))]
    return fit, Ranks(names, *(normalised_ranks(true_values[0], value, rng) for value in values))


def evidence(conjugate: Conjugate, number: int) -> tuple[Fit, Evidence]:
    """Simulate data set `number`, fit it, and compare its log evidence with the exact one."""
    _, y = simulate(conjugate, number)
    fit, posterior = fitted(conjugate, number, y)
    error = posterior.log_evidence - conjugate.log_evidence(np.asarray(y))
    monte_carlo = np.sqrt((1 / posterior.ess - 1) / posterior.certificate.num_draws)
    return fit, Evidence(error, posterior.log_evidence_se, float(monte_carlo))


def simulate(simulated: Simulated, number: int) -> tuple[Sites, Array]:
    """Latent sites and data `y`, drawn from the prior."""
    sites = Predictive(simulated.model, num_samples=1)(key(number, "data"), *simulated.args)
    true = {name: value[0] for name, value in sites.items()}
    return true, true.pop("y")


def fitted(simulated: Simulated, number: int, y: Array) -> tuple[Fit, FlowPosterior]:
    start = time.perf_counter()
    posterior = FlowVI(simulated.model, progress_bar=False).run(key(number, "fit"), *simulated.args, y)
    seconds = time.perf_counter() - start
    return Fit(number, posterior.certified, posterior.certificate.by, posterior.ess, seconds), posterior


def key(number: int, purpose: str) -> PRNGKeyArray:
    """Key of data set `number`; simulation, fit and draws are independent of each other."""
    return jax.random.fold_in(jax.random.key(number), ("data", "fit", "draws").index(purpose))


def quantities(simulated: Simulated, y: Array, sites: Sites) -> tuple[list[str], Float[np.ndarray, "num quantities"]]:
    """Names and values of what is ranked: every scalar, and the log joint density, which sees all of them together.

    Source: Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman, Vehtari 2023, arXiv 2211.02383, for the density.
    """
    names, columns = [], []
    for name, value in sites.items():
        flat = np.asarray(value).reshape(len(value), -1)
        names += [name] if value.ndim == 1 else [f"{name}[{i}]" for i in range(flat.shape[1])]
        columns.append(flat)
    columns.append(np.asarray(log_densities(simulated, y, sites))[:, None])
    return [*names, "log density"], np.concatenate(columns, 1)


@partial(jax.jit, static_argnums=0)
def log_densities(simulated: Simulated, y: Array, sites: Sites) -> Float[Array, " num"]:
    """`log p(sites, y)` of each draw."""
    args = (simulated.model, (*simulated.args, y), {})
    return jax.vmap(lambda draw: jnp.asarray(log_density(*args, draw)[0]))(sites)


@partial(jax.jit, static_argnums=0)
def shrunk(simulated: Simulated, y: Array, draws: Sites) -> Sites:
    """The draws moved towards their mean by 20% of the distance, on the unconstrained scale."""
    args = (simulated.model, (*simulated.args, y), {})
    unconstrained = jax.vmap(lambda draw: unconstrain_fn(*args, draw))(draws)
    moved = jax.tree.map(lambda x: x.mean(0) + SHRINKAGE * (x - x.mean(0)), unconstrained)
    return jax.vmap(lambda draw: constrain_fn(*args, draw))(moved)
