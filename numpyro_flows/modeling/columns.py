"""Columns of several kinds: which are discrete, which are angles, which are real, and their places in an event."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints

from numpyro_flows.arguments import as_array
from numpyro_flows.modeling.sites import Sites, table_as_sites

_MOST_LEVELS = 32  # a bounded support with at most so many values has unordered categories


class Columns(NamedTuple):
    """Places of an event's values in its raveled vector.

    sites: names and shapes of the sites, one after the other; None if an event is an array.
    event_shape: shape of an event; for sites that of the raveled vector.
    discrete, angles, linear: places in the raveled vector.
    """

    sites: tuple[tuple[str, tuple[int, ...]], ...] | None
    event_shape: tuple[int, ...]
    discrete: tuple[int, ...]
    angles: tuple[int, ...]
    linear: tuple[int, ...]

    @property
    def size(self) -> int:
        """Length of the raveled vector."""
        return int(np.prod(self.event_shape))

    def pack(self, value: ArrayLike | Mapping[str, ArrayLike]) -> Float[Array, "*batch size"]:
        """Raveled vectors of an array, a dict of sites or a DataFrame; for sites, vectors are accepted too.

        Raises:
            ValueError: if the shape is wrong, a site is missing, or sites are given but an event is an array.
        """
        if self.sites is not None:
            value = table_as_sites(value)
        if isinstance(value, Mapping):
            if self.sites is None:
                raise ValueError(f"expected an array of shape (..., *{self.event_shape}), got a dict of {list(value)}")
            array = Sites(dict(self.sites)).pack(value)
        else:
            array = as_array(value, "value")
        batch = array.shape[: array.ndim - len(self.event_shape)]
        if array.ndim < len(self.event_shape) or array.shape[len(batch) :] != self.event_shape:
            raise ValueError(f"expected an array of shape (..., *{self.event_shape}), got {array.shape}")
        return array.astype(jnp.result_type(float)).reshape(*batch, self.size)

    def unpack(self, vector: Float[Array, "*batch size"]) -> Any:
        """Events, or a dict of sites in which discrete sites are integers."""
        if self.sites is None:
            return vector.reshape(*vector.shape[:-1], *self.event_shape)
        values, first = Sites(dict(self.sites)).unpack(vector), 0
        for name, shape in self.sites:
            if first in self.discrete and np.prod(shape) > 0:
                values[name] = values[name].astype(int)
            first += int(np.prod(shape))
        return values

    def join(self, discrete: Array, angles: Array, linear: Array) -> Float[Array, "*batch size"]:
        """Raveled vectors of the values of each kind, `(*batch, number)`."""
        order = np.argsort([*self.discrete, *self.angles, *self.linear])
        return jnp.concatenate([discrete, angles, linear], axis=-1)[..., order]


def scalar_support(support: constraints.Constraint) -> constraints.Constraint:
    """The support of one number of an event with independent numbers."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def is_angle(support: Any) -> bool:
    """Whether it is `constraints.circular`, alone or in independent numbers."""
    return isinstance(scalar_support(support), type(constraints.circular))


def is_discrete(support: Any) -> bool:
    """Whether it is a support of whole numbers."""
    return isinstance(support, constraints.Constraint) and support.is_discrete


def is_mixed(support: Any) -> bool:
    """Whether a support, or a list or dict of supports, has angles or whole numbers."""
    if isinstance(support, Mapping):
        support = support.values()
    some = support if isinstance(support, Iterable) and not isinstance(support, str) else [support]
    return any(is_angle(one) or is_discrete(one) for one in some)


def bounds(support: constraints.Constraint) -> tuple[int, int | None]:
    """The least and the largest whole number of a discrete support; None without a largest.

    Raises:
        ValueError: for a discrete support other than the integers from a bound on, or between two bounds.
    """
    inner: Any = scalar_support(support)
    if isinstance(inner, type(constraints.boolean)):
        return 0, 1
    low, high = getattr(inner, "lower_bound", None), getattr(inner, "upper_bound", None)
    if low is None or np.ndim(low) or inner.event_dim:
        raise ValueError(
            "support expected constraints.nonnegative_integer, positive_integer, integer_interval(a, b) or boolean for "
            f"whole numbers, got {support}"
        )
    return int(low), None if high is None else int(high)


def is_categorical(low: int, high: int | None) -> bool:
    """Whether whole numbers within bounds count as unordered categories: at most 32 levels."""
    return high is not None and high - low < _MOST_LEVELS
