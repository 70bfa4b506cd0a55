"""Exact answers where all but the scales is Gaussian: quadrature over the log scales.

Data of a balanced design are independent normals in a few orthogonal subspaces, so that the Gaussian likelihood
`N(y; 0, V)` needs one sum of squares and one variance for each of them.
"""

from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float
from scipy.special import logsumexp

from benchmarks.necks.case import Marginal, Truth, midpoints
from benchmarks.necks.models import LARGEST_SCALE


class Subspace(NamedTuple):
    """The part of the data in a subspace: its dimension and the sum of its squares."""

    dim: int
    squares: float

    def log_likelihood(self, variance: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        return -0.5 * (self.dim * np.log(2.0 * np.pi * variance) + self.squares / variance)


class Crossed(NamedTuple):
    """The subspaces of a table with one observation for each row and column."""

    num_rows: int
    num_columns: int
    mean: Subspace
    rows: Subspace
    columns: Subspace
    rest: Subspace

    @classmethod
    def of(cls, table: Float[np.ndarray, "rows columns"]) -> "Crossed":
        rows, columns = table.shape
        mean = table.mean()
        by_row, by_column = table.mean(1) - mean, table.mean(0) - mean
        rest = table - mean - by_row[:, None] - by_column
        return cls(
            rows,
            columns,
            Subspace(1, float(table.size * mean**2)),
            Subspace(rows - 1, float(columns * (by_row**2).sum())),
            Subspace(columns - 1, float(rows * (by_column**2).sum())),
            Subspace((rows - 1) * (columns - 1), float((rest**2).sum())),
        )

    def log_likelihood(
        self, of_row: np.ndarray, of_column: np.ndarray, of_noise: np.ndarray, of_mean: float
    ) -> np.ndarray:
        """Log density of the table, given the variances of effects, noise and the common mean (which is zero)."""
        row, column = self.num_columns * of_row, self.num_rows * of_column
        mean = of_noise + row + column + self.num_rows * self.num_columns * of_mean
        return (
            self.mean.log_likelihood(mean)
            + self.rows.log_likelihood(of_noise + row)
            + self.columns.log_likelihood(of_noise + column)
            + self.rest.log_likelihood(of_noise)
        )


PILOTS_LOWEST = np.array([-16.0, -16.0, -4.0])  # log scales; below lies less than 1e-6 of the posterior
PILOTS_CELLS = (420, 420, 150)


def pilots_truth(table: Float[np.ndarray, "groups scenarios"]) -> Truth:
    """Quadrature over three log scales, one slice for each value of `log sigma_y`."""
    crossed = Crossed.of(table)
    high = np.log(LARGEST_SCALE)
    log_a, log_b, log_y = (midpoints(low, high, num) for low, num in zip(PILOTS_LOWEST, PILOTS_CELLS))
    square_a, square_b = np.exp(2.0 * log_a)[:, None], np.exp(2.0 * log_b)
    slices = [crossed.log_likelihood(square_a, square_b, np.exp(2.0 * s), 200.0) + s for s in log_y]
    logs = np.stack(slices) + log_a[:, None] + log_b - 3.0 * high  # uniform scales: log sigma has density sigma / 100
    total = logsumexp(logs)
    weights = np.exp(logs - total)
    cell = np.prod([grid[1] - grid[0] for grid in (log_a, log_b, log_y)])
    marginals = {
        "log sigma_a": Marginal.on_grid(log_a, weights.sum((0, 2))),
        "log sigma_b": Marginal.on_grid(log_b, weights.sum((0, 1))),
        "log sigma_y": Marginal.on_grid(log_y, weights.sum((1, 2))),
    }
    return Truth(float(total + np.log(cell)), marginals)


def gamma_truth(y: Float[np.ndarray, " groups"], shape: float, noise: float) -> Truth:
    """`benchmarks.traps.shapes.centred_groups`: a common mean ~ Normal(0, 5), and tau ~ Gamma(shape, shape)."""
    log_tau = midpoints(-300.0, 6.0, 60_000)
    variance = noise**2 + np.exp(2.0 * log_tau)
    mean, rest = Subspace(1, y.size * y.mean() ** 2), Subspace(y.size - 1, ((y - y.mean()) ** 2).sum())
    logs = mean.log_likelihood(variance + 25.0 * y.size) + rest.log_likelihood(variance)
    logs = logs + scipy.stats.gamma.logpdf(np.exp(log_tau), shape, scale=1.0 / shape) + log_tau
    total = logsumexp(logs)
    marginal = Marginal.on_grid(log_tau, np.exp(logs - total))
    return Truth(float(total + np.log(log_tau[1] - log_tau[0])), {"log tau": marginal})
