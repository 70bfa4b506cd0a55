"""How good draws are: by their importance weights, and against reference draws."""

import time
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import jax
import numpy as np

from benchmarks.posteriordb.models import flatten
from numpyro_flows.inference.certificate import certify
from numpyro_flows.inference.psis import smooth

NUM_DRAWS = 10_000  # draws that are scored, and effective draws for `seconds_to_10000`

Row = dict[str, Any]
Sample = Callable[[Any, int], tuple[Mapping[str, Any], np.ndarray]]  # key, number -> sites, log weights


def score_weighted(
    sample: Sample, reference: dict[str, np.ndarray], key: Any, seconds: float, certified: bool | None = None
) -> Row:
    """The columns of a method that gives independent draws with log weights, after a fit of `seconds`.

    `seconds_to_10000` adds the seconds that the fit needs to make 10,000 / ESS draws, its first call included. It is
    empty if the fit is not certified (by itself, or by these weights), because then no number of draws is known to be
    enough.
    """
    key, key_more = jax.random.split(key)
    start = time.perf_counter()
    sites, log_weights = sample(key, NUM_DRAWS)
    drawing = time.perf_counter() - start
    certificate = certify(log_weights)
    trusted = certificate.certified if certified is None else certified
    if trusted:
        start = time.perf_counter()
        sample(key_more, max(1, ceil(NUM_DRAWS / certificate.ess) - NUM_DRAWS))
        drawing += time.perf_counter() - start
    weights = np.exp(smooth(log_weights)[0]) if certificate.ess > 0 else np.full(log_weights.size, np.nan)
    scalars = flatten(sites)
    mean_error, sd_error = errors(scalars, reference)
    weighted_mean_error, weighted_sd_error = errors(scalars, reference, weights)
    return {
        "certified": certificate.certified,
        "khat": certificate.khat,
        "ess": certificate.ess,
        "elbo": certificate.elbo,
        "elbo_se": certificate.elbo_se,
        "log_evidence": certificate.log_evidence,
        "log_evidence_se": certificate.log_evidence_se,
        "mean_error": mean_error,
        "sd_error": sd_error,
        "weighted_mean_error": weighted_mean_error,
        "weighted_sd_error": weighted_sd_error,
        "seconds_to_10000": seconds + drawing if trusted else "",
    }


def errors(
    scalars: Mapping[str, np.ndarray], reference: dict[str, np.ndarray], weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Largest error of a mean, in reference sds, and largest relative error of an sd.

    Those of 10,000 perfect draws against 10,000 reference draws: about 0.03 and 3%, being the largest of a few.
    """
    mean_errors, sd_errors = [], []
    with np.errstate(invalid="ignore", over="ignore"):
        for name, draws in reference.items():
            mean = np.average(scalars[name], weights=weights)
            sd = np.sqrt(np.average((scalars[name] - mean) ** 2, weights=weights))
            mean_errors.append(abs(mean - draws.mean()) / draws.std())
            sd_errors.append(abs(sd / draws.std() - 1))
    return float(np.max(mean_errors)), float(np.max(sd_errors))
