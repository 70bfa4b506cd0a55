"""Rows so far from all others that whitening by them would squash the rest: they are found, named and left out."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri

from numpyro_flows.density.observations import Observations

_FAR = 1_000.0  # robust standard deviations: nearer rows cost the others less than 0.05 nat (measured, one in 1,000)
_MOST = 0.02  # maximum share of rows in a column; more of them belong to the distribution
_MOST_IN_ALL = 0.05  # maximum share of rows that is left out, over all columns
_LEAST_P = 1e-6  # of the gap before the far rows, by the tail of the others; a Cauchy distribution has no far rows
_TAIL, _LEAST_TAIL = 0.05, 10  # share of the rows that show how heavy the tail is, and the least number of them
_CENTRAL = (0.25, 0.1, 0.05, 0.02)  # the first range between such quantiles that is not empty gives the scale
_SHOWN = 5  # rows that the message names


class Far(NamedTuple):
    """Which rows are far, with the column where each is farthest, and its distance in robust standard deviations."""

    rows: Bool[np.ndarray, " num"]
    column: np.ndarray
    distance: np.ndarray


def far_rows(x: Float[np.ndarray, "num dim"], weights: Float[np.ndarray, " num"]) -> Far:
    """Rows that are 1,000 robust standard deviations away in a column, beyond a gap that its tail does not explain.

    Both ends count as one tail, of the distances `z` from the median. For each `k` up to one in 50 rows, Hill's
    estimate from the values below the `k` farthest gives the tail's index `a`. A gap from `z` to `c z` in such a tail
    has the probability `c^-a`. Rows with more than a fiftieth of the weight are not outliers.

    Source: Hill 1975, Annals of Statistics 3(5).
    """
    num, dim = x.shape
    distance = np.zeros(num)
    column = np.zeros(num, int)
    for index in range(dim):
        z = _distances(x[:, index])
        far = _beyond_the_gap(z)
        if far.any() and weights[far].sum() <= max(_MOST, 1.0 / num) * weights.sum():
            farther = far & (z > distance)
            distance[farther], column[farther] = z[farther], index
    return Far(distance > 0, column, distance)


def _distances(x: Float[np.ndarray, " num"]) -> Float[np.ndarray, " num"]:
    """From the median, in robust standard deviations; zeros where nearly all values are alike."""
    ends = np.quantile(x, [0.5, *_CENTRAL, *(1.0 - q for q in _CENTRAL)])
    for low, high, share in zip(ends[1:], ends[1 + len(_CENTRAL) :], _CENTRAL):
        if high > low:
            with np.errstate(over="ignore"):  # an infinite distance is far, too
                return np.abs(x - ends[0]) / ((high - low) / (-2.0 * ndtri(share)))
    return np.zeros(len(x))


def _beyond_the_gap(z: Float[np.ndarray, " num"]) -> Bool[np.ndarray, " num"]:
    num = len(z)
    most, tail = max(int(_MOST * num), 1), max(int(_TAIL * num), _LEAST_TAIL)
    if z.max() < _FAR or num <= most + tail:
        return np.zeros(num, bool)
    top = -np.sort(-np.partition(z, num - most - tail - 1)[num - most - tail - 1 :])
    logs = np.log(np.clip(top, 1e-9, 1e300))
    sums = np.concatenate([[0.0], np.cumsum(logs)])
    k = np.arange(1, most + 1)
    inverse_index = (sums[k + tail] - sums[k]) / tail - logs[k + tail]
    unlikely = logs[k - 1] - logs[k] > -np.log(_LEAST_P) * inverse_index
    if not unlikely.any():
        return np.zeros(num, bool)
    return z >= top[k[unlikely][-1] - 1]  # the nearest such gap: beyond it others may follow


def near_rows(
    observations: Observations,
    condition: Float[np.ndarray, "num cond_dim"] | None,
    weights: Float[np.ndarray, " num"],
) -> Bool[np.ndarray, " num"]:
    """The rows that are fitted, without those that are far away; a warning names the latter."""
    far = far_rows(observations.x, weights)
    what = [f"column {label}" if label.isdigit() else label for label in observations.labels]
    if condition is not None:
        of_condition = far_rows(condition, weights)
        farther = of_condition.distance > far.distance
        what += [f"column {index} of condition" for index in range(condition.shape[1])]
        far = Far(
            far.rows | of_condition.rows,
            np.where(farther, observations.x.shape[1] + of_condition.column, far.column),
            np.maximum(far.distance, of_condition.distance),
        )
    if not far.rows.any():
        return ~far.rows
    index = np.flatnonzero(far.rows)
    farthest = index[np.argsort(-far.distance[index], kind="stable")][:_SHOWN]
    shown = ", ".join(f"row {row} ({what[far.column[row]]}: {far.distance[row]:.2g})" for row in farthest)
    more = ", ..." if len(index) > _SHOWN else ""
    stays = weights[far.rows].sum() > _MOST_IN_ALL * weights.sum()
    does = "stay in the fit, as they are many, and make it worse for the others" if stays else "are left out of the fit"
    warnings.warn(
        f"{len(index)} of {len(weights)} rows {does}. They are more robust standard deviations away from the median "
        f"than the tail of the others explains: {shown}{more}. Correct or remove these rows; to keep them, fit "
        "np.arcsinh((column - its median) / its spread) instead of the column",
        UserWarning,
        stacklevel=4,
    )
    return np.ones(len(weights), bool) if stays else ~far.rows
