"""Probabilities of discrete columns, each by a network that sees the columns before it and a condition."""

import math
from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, Scalar

from numpyro_flows.arguments import require_counts, require_key
from numpyro_flows.networks import Parameters
from numpyro_flows.precision import full_precision

_HIDDEN = (32, 32)
_MAX_LOG_SCALE = 7.0  # of a logistic, in standard deviations of the training rows


class AbstractDiscrete(eqx.Module):
    """The probabilities of one whole number, given the vector `seen` of fixed length.

    Attributes:
        low: the smallest value.
        high: the largest value; None if unbounded.
        code_size: length of `encode(k)`.
    """

    low: AbstractVar[int]
    high: AbstractVar[int | None]
    code_size: AbstractVar[int]

    @abstractmethod
    def log_prob(self, k: Scalar, seen: Float[Array, " size"]) -> Scalar:
        """The log probability of a value in the support."""

    @abstractmethod
    def sample(self, key: PRNGKeyArray, seen: Float[Array, " size"]) -> Scalar:
        """One draw."""

    @abstractmethod
    def encode(self, k: Float[Array, "*batch"]) -> Float[Array, "*batch code"]:
        """The code of a value for later columns."""

    def inside(self, k: Float[Array, "*batch"]) -> Bool[Array, "*batch"]:
        """Whether values are in the support."""
        within = (k == jnp.round(k)) & (k >= self.low)
        return within if self.high is None else within & (k <= self.high)


class Categories(AbstractDiscrete):
    """`p(k) = softmax(g(seen))[k - low]`: unordered levels `low, low + 1, ... high`.

    Args:
        key: random key of the network.
        low, high: the smallest and the largest level.
        seen_dim: length of the network's input.
        shares: share of each level in the data, `(high - low + 1,)`, all positive: the probabilities at the start.
    """

    network: Parameters
    low: int = eqx.field(static=True)
    high: int = eqx.field(static=True)
    code_size: int = eqx.field(static=True)

    def __init__(self, key: PRNGKeyArray, low: int, high: int, seen_dim: int, shares: Float[ArrayLike, " levels"]):
        self.low, self.code_size = low, high - low + 1
        self.high = high  # pyright: ignore[reportIncompatibleVariableOverride]
        self.network = Parameters(key, jnp.log(jnp.asarray(shares, float)), seen_dim, _HIDDEN)
        self.__check_init__()

    def __check_init__(self) -> None:  # also checks objects loaded from a file
        if self.code_size != self.high - self.low + 1:
            raise ValueError(f"code_size expected {self.high - self.low + 1}, got {self.code_size}")
        require_counts(**{"the number of levels": self.code_size})

    def log_prob(self, k: Scalar, seen: Float[Array, " size"]) -> Scalar:
        return jax.nn.log_softmax(self.network(seen))[(k - self.low).astype("int32")]

    def sample(self, key: PRNGKeyArray, seen: Float[Array, " size"]) -> Scalar:
        return (self.low + jax.random.categorical(key, self.network(seen))).astype(float)

    def encode(self, k: Float[Array, "*batch"]) -> Float[Array, "*batch code"]:
        return jax.nn.one_hot((k - self.low).astype("int32"), self.code_size)


class Counts(AbstractDiscrete):
    """`p(k) = (F(t(k + 1)) - F(t(k))) / (F(t(high + 1)) - F(t(low)))`: ordered whole numbers from `low` on.

    `t(k) = log(1 + k - low)`, and `F` is the distribution function of a mixture of logistic distributions, whose
    parameters a network gives. The division makes the probabilities sum to 1. Differences are computed in logarithms,
    without cancellation, also in the tails.

    Args:
        key: random key of the network.
        low, high: the smallest and the largest value; `high=None` if unbounded.
        seen_dim: length of the network's input.
        loc, scale: mean and standard deviation of `t` in the data.
        num_components: number of logistic distributions.

    Source: discretised mixtures of logistics, Salimans, Karpathy, Chen, Kingma 2017, arXiv 1701.05517.
    """

    network: Parameters
    low: int = eqx.field(static=True)
    high: int | None = eqx.field(static=True)
    loc: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    code_size: int = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        low: int,
        high: int | None,
        seen_dim: int,
        loc: float,
        scale: float,
        num_components: int = 6,
    ):
        self.low, self.high, self.loc, self.scale, self.code_size = low, high, loc, scale, 1
        even, spread = jnp.zeros(num_components), jnp.linspace(-1.5, 1.5, num_components)
        start = jnp.concatenate([even, spread, jnp.full(num_components, -1.0)])
        self.network = Parameters(key, start, seen_dim, _HIDDEN)
        self.__check_init__()

    def __check_init__(self) -> None:  # also checks objects loaded from a file
        if not (math.isfinite(self.loc) and math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"loc and scale expected finite numbers, scale > 0, got {self.loc} and {self.scale}")
        if self.high is not None and self.high < self.low:
            raise ValueError(f"high expected at least low={self.low}, got {self.high}")
        if self.code_size != 1:
            raise ValueError(f"code_size expected 1, got {self.code_size}")

    def log_prob(self, k: Scalar, seen: Float[Array, " size"]) -> Scalar:
        log_weights, loc, scale = self._mixture(seen)
        width = jnp.log1p(1.0 / (k - self.low + 1.0)) / self.scale  # of t, which a difference of logarithms would lose
        of_cells = _log_mass((self.encode(k)[0] - loc) / scale, width / scale)
        return jax.nn.logsumexp(log_weights + of_cells) - jax.nn.logsumexp(log_weights + self._log_whole(loc, scale))

    def sample(self, key: PRNGKeyArray, seen: Float[Array, " size"]) -> Scalar:
        log_weights, loc, scale = self._mixture(seen)
        which_key, place_key = jax.random.split(key)
        log_whole = self._log_whole(loc, scale)
        which = jax.random.categorical(which_key, log_weights + log_whole)
        loc, scale, whole = loc[which], scale[which], jnp.exp(log_whole[which])
        low, high = (self._start - loc) / scale, (self._end - loc) / scale
        share = jax.random.uniform(place_key)
        # both tails of a truncated logistic, each as a sum of what is not negative
        below = jax.nn.sigmoid(low) + share * whole
        above = jax.nn.sigmoid(-high) + (1.0 - share) * whole
        t = self.loc + self.scale * (loc + scale * (jnp.log(below) - jnp.log(above)))
        largest = largest_whole() if self.high is None else self.high
        return jnp.clip(self.low + jnp.floor(jnp.expm1(t)), self.low, largest)

    def encode(self, k: Float[Array, "*batch"]) -> Float[Array, "*batch code"]:
        return ((jnp.log1p(k - self.low) - self.loc) / self.scale)[..., None]

    @property
    def _start(self) -> float:
        return -self.loc / self.scale

    @property
    def _end(self) -> float:
        """The end of the last cell, in standard deviations of `t`."""
        return math.inf if self.high is None else (math.log1p(self.high - self.low + 1) - self.loc) / self.scale

    def _mixture(self, seen: Float[Array, " size"]) -> tuple[Array, Array, Array]:
        logits, loc, log_scale = jnp.split(self.network(seen), 3)
        return jax.nn.log_softmax(logits), loc, jnp.exp(_MAX_LOG_SCALE * jnp.tanh(log_scale / _MAX_LOG_SCALE))

    def _log_whole(self, loc: Array, scale: Array) -> Array:
        """The log mass of the support for each component."""
        start = (self._start - loc) / scale
        if self.high is None:
            return jax.nn.log_sigmoid(-start)
        return _log_mass(start, (self._end - self._start) / scale)


class DiscreteFactor(eqx.Module):
    """`p(k_1, ..., k_d | c) = p(k_1 | c) p(k_2 | k_1, c) ...`: discrete columns by the chain rule.

    Args:
        columns: the probabilities of each column, `Categories` or `Counts`; a column sees the codes of those before it,
            then the standardised condition.
        condition_loc, condition_scale: mean and standard deviation of the condition in the data, `(cond_dim,)`.
    """

    columns: tuple[Categories | Counts, ...]
    condition_loc: Float[Array, " cond_dim"]
    condition_scale: Float[Array, " cond_dim"]

    @property
    def code_size(self) -> int:
        """Length of the columns' codes for later factors."""
        return sum(column.code_size for column in self.columns)

    def log_prob(self, values: Float[Array, " dim"], condition: Float[Array, " cond_dim"]) -> Scalar:
        """The log probability of one row, `-inf` outside the support."""
        log_prob = chain_log_prob(self.columns, self.feasible(values), self._standardised(condition))
        return jnp.where(self.inside(values).all(), log_prob, -jnp.inf)

    def sample(self, key: PRNGKeyArray, condition: Float[Array, " cond_dim"]) -> Float[Array, " dim"]:
        """One row."""
        require_key(key, "key")
        codes, values, standardised = [], [], self._standardised(condition)
        with full_precision():
            for column, column_key in zip(self.columns, jax.random.split(key, len(self.columns))):
                values.append(column.sample(column_key, jnp.concatenate([*codes, standardised])))
                codes.append(column.encode(values[-1]))
        return jnp.stack(values)

    def encode(self, values: Float[Array, "*batch dim"]) -> Float[Array, "*batch code"]:
        """The codes of rows for later factors."""
        return jnp.concatenate([column.encode(values[..., i]) for i, column in enumerate(self.columns)], axis=-1)

    def inside(self, values: Float[Array, "*batch dim"]) -> Bool[Array, "*batch dim"]:
        """For each value, whether it is in its column's support."""
        return jnp.stack([column.inside(values[..., i]) for i, column in enumerate(self.columns)], axis=-1)

    def feasible(self, values: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """The values, with the smallest value of its column in place of each value outside the support."""
        lows = jnp.asarray([column.low for column in self.columns], values.dtype)
        return jnp.where(self.inside(values), values, lows)

    def _standardised(self, condition: Float[Array, " cond_dim"]) -> Array:
        return (condition - self.condition_loc) / self.condition_scale


def chain_log_prob(
    columns: tuple[Categories | Counts, ...], values: Float[Array, " dim"], condition: Float[Array, " cond_dim"]
) -> Scalar:
    """The log probability of one row in the support, given a condition in the networks' form."""
    log_prob, codes = jnp.zeros((), values.dtype), []
    with full_precision():
        for column, k in zip(columns, values):
            log_prob = log_prob + column.log_prob(k, jnp.concatenate([*codes, condition]))
            codes.append(column.encode(k))
    return log_prob


def largest_whole() -> int:
    """The largest number up to which JAX's present precision has all whole numbers."""
    return 2 ** (jnp.finfo(jnp.result_type(float)).nmant + 1)


def _log_mass(start: Array, width: Array) -> Array:
    """`log(s(start + width) - s(start))` with `s` the logistic function."""
    return jax.nn.log_sigmoid(start + width) + jax.nn.log_sigmoid(-start) + jnp.log(-jnp.expm1(-width))
