"""How far draws are from the exact answer, beyond their Monte Carlo error."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from benchmarks.traps.case import Truth, Values
from benchmarks.traps.truth import PROBABILITIES

MEAN_BOUND = 0.1  # true standard deviations
SD_BOUND = 0.1  # relative
QUANTILE_BOUND = 0.1  # true interquartile ranges
EVIDENCE_BOUND = 0.05
ERRORS = 4.0  # Monte Carlo standard errors that are allowed beyond a bound


class Score(NamedTuple):
    """The largest errors over all scalars; None if there is nothing to compare."""

    mean: float | None
    sd: float | None
    quantile: float | None
    log_evidence: float | None
    wrong: bool


def score(draws: Values, num_effective: float, log_evidence: float, truth: Truth) -> Score:
    """Compare draws and a log evidence with the truth.

    Args:
        draws: sites and derived values, each of shape `(num, *site)`.
        num_effective: number of independent draws that they are worth.
        log_evidence: estimate of the fit.
        truth: the exact answer.
    """
    means, sds, quantiles, fine = [], [], [], []
    for name, (mean, sd) in truth.moments.items():
        x = draws[name]
        z = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1.0)
        means.append(np.abs(x.mean(0) - mean) / sd)
        sds.append(np.abs(x.std(0) / sd - 1))
        fine.append(means[-1] <= MEAN_BOUND + ERRORS * num_effective**-0.5)
        fine.append(sds[-1] <= SD_BOUND + ERRORS * np.sqrt(((z**4).mean(0) - 1).clip(0) / 4 / num_effective))
    for name, exact in truth.quantiles.items():
        quantiles.append(np.abs(np.quantile(draws[name], PROBABILITIES, axis=0) - exact) / (exact[2] - exact[0]))
        fine.append(_beyond_error(draws[name], num_effective, exact) <= QUANTILE_BOUND)
    evidence = None if truth.log_evidence is None else log_evidence - truth.log_evidence
    fine.append(np.array(evidence is None or abs(evidence) <= EVIDENCE_BOUND))
    return Score(_largest(means), _largest(sds), _largest(quantiles), evidence, not all(np.all(x) for x in fine))


def _beyond_error(x: Float[np.ndarray, "num *site"], num: float, exact: Float[np.ndarray, "3 *site"]) -> np.ndarray:
    """Distances of the exact quartiles to the draws' confidence intervals, in interquartile ranges."""
    half = ERRORS * np.sqrt(PROBABILITIES * (1 - PROBABILITIES) / num)
    low, high = (np.quantile(x, (PROBABILITIES + side * half).clip(0, 1), axis=0) for side in (-1, 1))
    return np.maximum(np.maximum(low - exact, exact - high), 0) / (exact[2] - exact[0])


def _largest(errors: list[np.ndarray]) -> float | None:
    """The largest value; a NaN counts as the largest."""
    return float(max(np.max(np.where(np.isnan(x), np.inf, x)) for x in errors)) if errors else None
