"""Rows on which a density can grow without bound: repeated rows, and columns that are functions of each other."""

import warnings

import numpy as np
from jaxtyping import Float

REPEATED = 0.1  # above this share of repeated rows there is a warning
_LEAST_EIGENVALUE, _MOST_COLUMNS = 1e-10, 256  # for correlations, and the maximum number of columns to check


def warn_of_repetition(columns: Float[np.ndarray, "num size"]) -> None:
    """Warn if more than a tenth of the rows are copies of others."""
    # equal rows have equal projections, others almost surely not
    spread = np.ptp(columns, axis=0)
    projected = columns @ (np.random.default_rng(0).normal(size=len(spread)) / np.where(spread > 0, spread, 1.0))
    repeated = 1 - len(np.unique(projected)) / len(columns)
    if repeated > REPEATED:
        warnings.warn(
            f"{repeated:.0%} of the rows occur more than once, and a density can grow without bound there; "
            "validation rows may be among the training rows",
            UserWarning,
            stacklevel=4,
        )


def warn_of_dependence(x: Float[np.ndarray, "num dim"]) -> None:
    """Warn if a column is a linear function of others: it adds only rounding and a ridge to the density."""
    num, dim = x.shape
    varies = np.ptp(x, axis=0) > 0
    if not (1 < varies.sum() <= _MOST_COLUMNS and num > 2 * dim):
        return
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(x[:, varies].T))
    if eigenvalues[0] < _LEAST_EIGENVALUE:
        dependent = int((eigenvalues < _LEAST_EIGENVALUE).sum())
        warnings.warn(
            f"{dependent} of {dim} columns are linear functions of others, and a density can grow without "
            "bound along them: leave these columns out",
            UserWarning,
            stacklevel=4,
        )
