"""The row of the table for a method's draws and work.

Every evaluation of the density counts as one gradient, including evaluations of the value alone, for a weight or an
ELBO.
"""

import time
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from arviz_stats.base.array import array_stats

from benchmarks.posteriordb.scoring import NUM_DRAWS, Row, errors
from numpyro_flows.inference.certificate import certify
from numpyro_flows.inference.psis import smooth

MAX_RHAT = 1.01  # Vehtari et al. 2021, arXiv 1903.08008
MAX_KHAT = 0.7  # Vehtari et al. 2024, arXiv 1507.02646

Reference = Mapping[str, np.ndarray]
Scalars = Mapping[str, np.ndarray]


class Work(NamedTuple):
    """What a method did, before its draws count and for the draws that count.

    Seconds are without those of compilation.
    """

    warmup_gradients: float
    gradients: float
    warmup_seconds: float
    seconds: float
    compile_seconds: float


def of_chains(scalars: Scalars, num_chains: int, reference: Reference, work: Work, most: float = float("inf")) -> Row:
    """The row of Markov chains; all draws of a scalar are in one axis, chain after chain.

    They are trusted if the largest r-hat is below `MAX_RHAT`. The effective draws are the smallest bulk ESS, or `most`
    if that is less.
    """
    chains = [np.asarray(draws, float).reshape(num_chains, -1) for draws in scalars.values()]
    effective = min(most, float(np.min([array_stats.ess(x) for x in chains])))
    rhat = float(np.max([array_stats.rhat(x) for x in chains]))
    mean_error, sd_error = errors(scalars, dict(reference))
    return {
        "trusted": rhat < MAX_RHAT,
        "effective": effective,
        "rhat": rhat,
        **_costs(work, work.gradients / effective, work.seconds / effective),
        "mean_error": mean_error,
        "sd_error": sd_error,
    }


def of_weights(
    sample: Callable[[Any, int], tuple[Scalars, np.ndarray]],
    keys: tuple[Any, Any],
    reference: Reference,
    work: Work,
    trusted: bool | None = None,
) -> Row:
    """The row of a fit that gives independent draws with log weights; `work` is the fit's, all of it warm-up.

    Each draw costs an evaluation. Errors are of weighted draws. The fit is trusted where k-hat is below `MAX_KHAT`,
    unless it has a verdict of its own. `sample` is called twice, and the first call is taken for its compilation.
    """
    start = time.perf_counter()
    scalars, log_weights = sample(keys[0], NUM_DRAWS)
    first = time.perf_counter() - start
    certificate = certify(log_weights)
    start = time.perf_counter()
    sample(keys[1], NUM_DRAWS)
    drawing = time.perf_counter() - start
    ess = certificate.ess if certificate.ess > 0 else np.nan
    weights = np.exp(smooth(log_weights)[0]) if certificate.ess > 0 else np.full(log_weights.size, np.nan)
    mean_error, sd_error = errors(scalars, dict(reference), weights)
    work = work._replace(compile_seconds=work.compile_seconds + max(0.0, first - drawing))
    return {
        "trusted": bool(certificate.khat < MAX_KHAT or ess >= 0.99) if trusted is None else trusted,
        "effective": ess * NUM_DRAWS,
        "khat": certificate.khat,
        **_costs(work._replace(gradients=NUM_DRAWS, seconds=drawing), 1 / ess, drawing / NUM_DRAWS / ess),
        "mean_error": mean_error,
        "sd_error": sd_error,
    }


def _costs(work: Work, gradients_each: float, seconds_each: float) -> Row:
    """The cost of the run, and of 1,000 and 10,000 effective draws at the price of one."""
    before = work.compile_seconds + work.warmup_seconds
    return {
        "gradients": ceil(work.warmup_gradients + work.gradients),
        "warmup_gradients": ceil(work.warmup_gradients),
        "gradients_to_1000": work.warmup_gradients + 1_000 * gradients_each,
        "gradients_to_10000": work.warmup_gradients + 10_000 * gradients_each,
        "seconds": before + work.seconds,
        "compile_seconds": work.compile_seconds,
        "seconds_to_10000": before + 10_000 * seconds_each,
    }
