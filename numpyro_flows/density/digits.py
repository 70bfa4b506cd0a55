"""Columns whose values floating-point numbers cannot tell apart, such as Unix times in single precision."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float

_SOME_ROWS = 5_000
_WINDOW = 0.05  # share of rows whose range is the spread around a value: 1/8 standard deviation for normal values
# Spacing over this range, for normal values at 0.03 standard deviations. Measured: two moons lose 0.01 nat at 0.05, a
# normal distribution at 0.2. Subtracting a number too early costs no digits.
_COARSE = 0.25
_SHARE = 0.05  # share of rows for which this must hold
_HEAVY = 0.01  # above this share of rows at one value, the distance to neighbouring values gives the spread
_MOST_TOGETHER, _RIDGE = 256, 1e-6  # maximum number of columns to check together, and ridge for their correlations
_MOST_LOST = 0.01  # nats
_SHOWN = 5  # columns that a message names


def require_digits(
    name: str,
    values: Float[np.ndarray, "num *event"],
    labels: Sequence[str],
    *,
    given: Any = None,
    cell: ArrayLike = 0.0,
    unconstrained: bool = False,
) -> None:
    """Raise a ValueError for values that JAX's floating-point numbers cannot hold, or cannot tell apart.

    Args:
        name: name of the argument.
        values: values in double precision.
        labels: names of columns.
        given: type of the array that the user passed, in which values may already be equal.
        cell: width of the noise that will be added to each column.
        unconstrained: whether the values are those after the transform of the support.
    """
    columns = values.reshape(len(values), -1)
    own = jnp.finfo(jnp.result_type(float))
    precisions = [own]
    if given is not None and jnp.issubdtype(given, jnp.floating):
        precisions.append(jnp.finfo(given))
    precision = max(precisions, key=lambda precision: float(precision.eps))
    large = np.maximum(-columns.min(0), columns.max(0)) > float(own.max)
    if large.any():
        raise ValueError(
            f"{name} expected numbers up to {float(own.max):.2g}, the largest of JAX's {own.dtype}, got larger ones in "
            f"{_listed(labels, large)}: divide these columns"
        )
    if len(columns) < 2:
        return
    some = columns[:: -(-len(columns) // _SOME_ROWS)]
    ratio = _spacing_over_spread(some, precision, np.broadcast_to(cell, some.shape[1:]))
    coarse = (ratio > _COARSE).mean(0) > _SHARE
    if not coarse.any():
        return
    worst = int(np.flatnonzero(coarse)[0])
    at = some[int(np.argmax(ratio[:, worst])), worst]
    spread = np.subtract(*np.quantile(columns[:, worst], [0.75, 0.25]))
    after = ", after the transform of its support," if unconstrained else ""
    advice = "subtract a number, such as the median, from these columns in double precision"
    if unconstrained:
        advice = "choose another support or unit for these columns"
    if precision.eps == own.eps and own.bits < 64:
        advice += ', or call jax.config.update("jax_enable_x64", True) at the start'
    elif precision.eps > own.eps:
        advice += f", from the source: the array passed is of type {precision.dtype}"
    raise ValueError(
        f"{name} expected columns whose values {precision.dtype} numbers can tell apart, got values too close to each "
        f"other for their size in {_listed(labels, coarse)}. For example, {_named(labels[worst])}{after} has values "
        f"near {at:.6g}, where {precision.dtype} numbers are {_spacing(at, precision):.3g} apart, and an "
        f"interquartile range of {spread:.2g}: {advice}"
    )


def require_digits_together(values: Float[np.ndarray, "num *event"], labels: Sequence[str]) -> None:
    """Raise a ValueError for columns that are so nearly functions of each other that rounding spoils their differences.

    This is the case if rounding moves the whitened rows by more than 0.01 nat of a normal distribution's density.
    """
    columns = values.reshape(len(values), -1)
    some = columns[:: -(-len(columns) // _SOME_ROWS)]
    num, dim = some.shape
    if not 1 < dim <= min(_MOST_TOGETHER, num // 4):  # as for whitening by a covariance
        return
    sd = np.where(np.ptp(some, axis=0) > 0, some.std(0), 1.0)
    standard = (some - some.mean(0)) / sd
    root = np.linalg.cholesky(standard.T @ standard / num + _RIDGE * np.eye(dim))
    precision = jnp.finfo(jnp.result_type(float))
    rounded = (some.astype(precision.dtype) - some) / sd
    moved = np.linalg.solve(root, rounded.T)
    if 0.5 * (moved**2).sum(0).mean() < _MOST_LOST:
        return
    alone = 0.5 * (rounded**2).mean(0) * (np.linalg.inv(root) ** 2).sum(0)
    lost = alone > max(alone.max() / 100, _MOST_LOST / dim)
    advice = "replace some of these columns by differences, computed in double precision"
    if precision.bits < 64:
        advice += ', or call jax.config.update("jax_enable_x64", True) at the start'
    raise ValueError(
        f"data expected columns whose differences {precision.dtype} numbers resolve, got some that are functions "
        f"of each other up to rounding: {_listed(labels, lost)}: {advice}"
    )


def _spacing(values: ArrayLike, precision: Any) -> Any:
    _, exponent = np.frexp(values)
    return np.maximum(np.ldexp(float(precision.eps), exponent - 1), float(precision.tiny))


def _spacing_over_spread(
    columns: Float[np.ndarray, "num size"], precision: Any, cell: Float[np.ndarray, " size"]
) -> Float[np.ndarray, "num size"]:
    """The spacing at each value, over the range of 5% of the rows around it or the distance between repeated values."""
    order = np.argsort(columns, axis=0)
    v = np.take_along_axis(columns, order, axis=0)
    num = len(v)
    half = max(int(_WINDOW * num / 2), 1)
    index = np.arange(num)
    low = np.clip(index - half, 0, max(num - 1 - 2 * half, 0))
    spread = v[np.minimum(low + 2 * half, num - 1)] - v[low]
    with np.errstate(divide="ignore", over="ignore"):
        spacing = _spacing(v, precision)
        ratio = spacing / (spread + cell)
        for column in np.flatnonzero((ratio > _COARSE).mean(0) > _SHARE):
            spread[:, column] = np.maximum(spread[:, column], _between_heavy(v[:, column]))
            ratio[:, column] = spacing[:, column] / (spread[:, column] + cell[column])
    unsorted = np.empty_like(ratio)
    np.put_along_axis(unsorted, order, ratio, axis=0)
    return unsorted


def _between_heavy(v: Float[np.ndarray, " num"]) -> Float[np.ndarray, " num"]:
    """Distance from a value shared by many rows to the next such value; 0 if few rows share it."""
    values, counts = np.unique(v, return_counts=True)
    heavy: Bool[np.ndarray, " values"] = counts >= max(_HEAVY * len(v), 2)
    nearest = np.zeros(len(values))
    if heavy.any():
        gaps = np.diff(values[heavy])
        nearest[heavy] = np.minimum(np.append(np.inf, gaps), np.append(gaps, np.inf))
    return np.repeat(nearest, counts)


def _named(label: str) -> str:
    return f"column {label}" if label.isdigit() else label


def _listed(labels: Sequence[str], which: Bool[np.ndarray, " size"]) -> str:
    names = list(dict.fromkeys(np.asarray(labels)[which]))
    return ", ".join(map(_named, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
