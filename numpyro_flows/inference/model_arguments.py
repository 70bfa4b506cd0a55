"""A model's arguments as the library uses them: tables become arrays, and no array is the user's own object."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from numpyro_flows.arguments import described, of_pandas


def with_arrays(model: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """A model's arguments with NumPy arrays in place of tables, also inside dicts, lists and tuples.

    Every NumPy array becomes a new view of its numbers. JAX keeps what it traced by the identity of an array: after a
    fit of an array, it would not notice that the array has new numbers in a second fit.

    A pandas Series becomes an array `(rows,)`, a DataFrame an array `(rows, columns)`, and an xarray DataArray its
    values. Whole and Boolean values keep their type. Missing values are NaN.

    Raises:
        TypeError: if a table has values that are not real numbers; the text names the argument and the columns.
    """
    names = _names(model, len(args))
    by_position = tuple(_converted(value, name) for name, value in zip(names, args, strict=True))
    return by_position, {name: _converted(value, name) for name, value in kwargs.items()}


def run_with_arrays[T](
    run: Callable[[tuple, dict[str, Any]], T], model: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any], T]:
    """`run` with arrays in place of tables; a model that fails with them may want the tables themselves.

    Returns:
        The arguments with which the model ran, and what it gave.

    Raises:
        TypeError: if it fails with both; the text names the first table, and the model's own error.
    """
    try:
        arrays = with_arrays(model, args, kwargs)
        return *arrays, run(*arrays)
    except (TypeError, AttributeError, LookupError) as error:
        named = dict(zip(_names(model, len(args)), args, strict=True)) | kwargs
        table = next(((name, value) for name, value in named.items() if _is_table(value)), None)
        if table is None:
            raise
        try:
            return args, kwargs, run(args, kwargs)
        except (TypeError, AttributeError, LookupError):
            raise error if isinstance(error, TypeError) else _explained(*table, error) from error


def _explained(name: str, table: Any, error: Exception) -> TypeError:
    advice = f"use {name} in the model as an array"
    if hasattr(table, "columns"):
        advice += f", or pass dict({name}) to use its columns by name, as {name}[{next(iter(table.columns), '')!r}]"
    return TypeError(
        f"the model gets the numbers of the argument {name!r}, {described(table)}, as an array: {advice}; the model "
        f"then stopped with {type(error).__name__}: {error}"
    )


def _names(model: Callable, num: int) -> list[str]:
    """The model's names for its positional arguments."""
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    return [names[i] if i < len(names) else f"args[{i}]" for i in range(num)]


def _converted(value: Any, name: str) -> Any:
    if type(value) is dict:
        return {key: _converted(inner, f"{name}[{key!r}]") for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_converted(inner, f"{name}[{i}]") for i, inner in enumerate(value))
    if _is_array_of_xarray(value):
        return value.values
    if isinstance(value, np.ndarray):
        return value.view()
    table = of_pandas(value, f"the argument {name}")
    return value if table is None else table


def _is_table(value: Any) -> bool:
    return _is_array_of_xarray(value) or type(value).__module__.partition(".")[0] == "pandas"


def _is_array_of_xarray(value: Any) -> bool:
    xarray = sys.modules.get("xarray")  # such an object exists only if it is imported
    return xarray is not None and isinstance(value, xarray.DataArray)
