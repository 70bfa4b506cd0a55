"""Checks whether a value is of the kind that a field declares.

Kinds are type hints: those of Equinox modules and named tuples are the ones that their classes already declare. For an
    array the element type is checked but not the shape, because stacked layers have one more axis than a single layer.
"""

import types
import typing
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.files.table import name_of

Number = bool | int | float | jax.Array | np.ndarray
"""What NumPyro's distributions take for parameters."""

_NO_FUNCTIONS = (type, dist.Distribution, Transform, Constraint)  # callable, but not used as an activation or norm


def fits(value: Any, kind: Any) -> bool:
    """Whether `value` is of `kind`: a class, None, a union, a literal, a generic container or a jaxtyping array."""
    if kind is Any or isinstance(kind, typing.TypeVar):
        return True
    if kind is None:
        return value is None
    if isinstance(kind, typing.ForwardRef):  # a class by its name in the table, to avoid an upward import
        return name_of(type(value)) == kind.__forward_arg__
    if isinstance(kind, type) and hasattr(kind, "dtypes") and hasattr(kind, "array_type"):  # of jaxtyping
        return is_array(value) and _has_dtype(value, kind.dtypes)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in args)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in args)
    if kind is Callable or origin is Callable:
        return (callable(value) and not isinstance(value, _NO_FUNCTIONS)) or _is_given_later(value)
    if origin is tuple:
        return isinstance(value, tuple) and _items_fit(value, args)
    if origin in (list, dict):
        return isinstance(value, origin) and _elements_fit(value, args)
    return _is_instance(value, origin or kind)


def is_array(value: Any) -> bool:
    """Whether it is an array of JAX or NumPy; a field may have either."""
    return isinstance(value, jax.Array | np.ndarray)


def describe(kind: Any) -> str:
    """A kind in words, for messages."""
    return getattr(kind, "__name__", str(kind)).replace("typing.", "").replace("numpyro_flows.", "")


def _has_dtype(value: jax.Array | np.ndarray, names: Any) -> bool:
    if not isinstance(names, tuple):  # any
        return True
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return "prng_key" in names
    return value.dtype.name in names


def _items_fit(value: tuple, args: tuple) -> bool:
    if len(args) == 2 and args[1] is Ellipsis:
        return all(fits(item, args[0]) for item in value)
    return len(value) == len(args) and all(fits(item, one) for item, one in zip(value, args))


def _elements_fit(value: list | dict, args: tuple) -> bool:
    if isinstance(value, dict):
        return all(fits(key, args[0]) and fits(item, args[1]) for key, item in value.items())
    return all(fits(item, args[0]) for item in value)


def _is_instance(value: Any, cls: Any) -> bool:
    if cls is AbstractBijection:  # FlowJAX's are bijections too
        return isinstance(value, eqx.Module) and hasattr(type(value), "inverse_and_log_det")
    if cls in (int, float):  # NumPy's and Python's rule: a bool is no number, an integer is a float
        return type(value) is int or (cls is float and (isinstance(value, float) or _is_given_later(value)))
    if cls is jax.Array:
        return is_array(value)
    return isinstance(cls, type) and isinstance(value, cls)


def _is_given_later(value: Any) -> bool:
    """Whether it is diffrax's mark for a tolerance or a norm that its step size controller gives."""
    return name_of(value) == "diffrax.use_stepsize_tol"
