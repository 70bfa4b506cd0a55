"""Discrete factors of data: untrained columns, and the form in which they are trained."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray, Scalar
from numpyro.distributions import constraints

from numpyro_flows.modeling.columns import is_categorical
from numpyro_flows.modeling.discrete import Categories, Counts, chain_log_prob


class DiscreteTraining(eqx.Module):
    """Columns in the form of a bijection: the log probability is the log-determinant, on a base of log density 0."""

    columns: tuple[Categories | Counts, ...]

    def inverse_and_log_det(self, values: Array, condition: Array) -> tuple[Array, Scalar]:
        return values, chain_log_prob(self.columns, values, condition)


def no_base(dim: int) -> dist.Distribution:
    """The base of `DiscreteTraining`."""
    return dist.ImproperUniform(constraints.real_vector, (), (dim,))


def maker(
    bounds: Sequence[tuple[int, int | None]],
    values: Float[np.ndarray, "num dim"],
    weights: Float[np.ndarray, " num"],
    cond_dim: int,
) -> Callable[[PRNGKeyArray], DiscreteTraining]:
    """The function that makes untrained columns, which start near the frequencies of the training rows."""

    def make(key: PRNGKeyArray) -> DiscreteTraining:
        columns, seen = [], cond_dim
        for (low, high), k, column_key in zip(bounds, values.T, jax.random.split(key, len(bounds))):
            if high is not None and is_categorical(low, high):
                found = np.bincount((k - low).astype(int), weights, minlength=high - low + 1) + 0.5
                column = Categories(column_key, low, high, seen, found / found.sum())
            else:
                t = np.log1p(k - low)
                loc = float(np.average(t, weights=weights))
                scale = float(np.sqrt(np.average((t - loc) ** 2, weights=weights)))
                column = Counts(column_key, low, high, seen, loc, scale or 1.0)
            columns.append(column)
            seen += column.code_size
        return DiscreteTraining(tuple(columns))

    return make
