"""A model's arguments as the library uses them: no array is the user's own object, and tables may become arrays."""

import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from numpyro_flows.arguments import described, of_pandas


def run_with_arguments[T](
    run: Callable[[tuple, dict[str, Any]], T], model: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any], T]:
    """`run` with a model's arguments: with tables as they are, and if the model fails with them, with their arrays.

    A warning says that a DataFrame became an array, because methods that both have may differ.

    Returns:
        The arguments with which the model ran, with new views of NumPy arrays, and what `run` gave.

    Raises:
        TypeError: if the model fails with both; the text names the first table, and the model's own error.
    """
    args, kwargs = new_views((args, kwargs))
    try:
        return args, kwargs, run(args, kwargs)
    except Exception as of_tables:  # of whatever kind: pandas and JAX know nothing of each other
        named = dict(zip(_names(model, len(args)), args, strict=True)) | kwargs
        tables = {name: value for name, value in named.items() if _has_table(value)}
        if not tables:
            raise
        arrays = with_arrays(model, args, kwargs)
        try:
            result = run(*arrays)
        except Exception as error:
            if (type(error), str(error)) == (type(of_tables), str(of_tables)):
                raise  # it has nothing to do with tables
            raise _explained(*next(iter(tables.items())), of_tables, error) from of_tables
        for name, value in tables.items():
            if hasattr(value, "columns"):
                warnings.warn(
                    f"the model gets the DataFrame {name!r} as an array, whose methods are NumPy's: .mean() is over "
                    f"all columns; pass {name}.to_numpy() if this is right, or dict({name})",
                    UserWarning,
                    stacklevel=2,
                )
        return *arrays, result


def require_densities_of_tables(sites: dict[str, dict[str, Any]]) -> None:
    """Raise the error of a distribution that cannot compute the density of an observed table."""
    for site in sites.values():
        if site["type"] == "sample" and site["is_observed"] and _has_table(site["value"]):
            site["fn"].log_prob(site["value"])


def with_arrays(model: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """A model's arguments with NumPy arrays in place of tables, also inside dicts, lists and tuples.

    A pandas Series becomes an array `(rows,)`, a DataFrame an array `(rows, columns)`, and an xarray DataArray its
    values. Whole and Boolean values keep their type. Missing values are NaN.

    Raises:
        TypeError: if a table has values that are not real numbers; the text names the argument and the columns.
    """
    names = _names(model, len(args))
    by_position = tuple(_converted(value, name) for name, value in zip(names, args, strict=True))
    return by_position, {name: _converted(value, name) for name, value in kwargs.items()}


def new_views(tree: Any) -> Any:
    """The same values, with a new view in place of each NumPy array.

    JAX keeps what it traced by the identity of an array: after a fit of an array, it would not notice that the array
    has new numbers in a second fit.
    """
    return _with_arrays_by(lambda array: array.view(), tree)


def copied(tree: Any) -> Any:
    """The same values, with copies of NumPy arrays, for use after the caller may have changed them. Files stay."""
    return _with_arrays_by(lambda array: array if isinstance(array, np.memmap) else array.copy(), tree)


def _with_arrays_by(change: Callable[[np.ndarray], np.ndarray], tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    if not any(isinstance(leaf, np.ndarray) for leaf in leaves):
        return tree
    return structure.unflatten([change(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves])


def _explained(name: str, table: Any, of_table: Exception, of_array: Exception) -> TypeError:
    advice = f"use {name} in the model as an array"
    if hasattr(table, "columns"):
        advice += f", or pass dict({name}) to use its columns by name, as {name}[{next(iter(table.columns), '')!r}]"
    return TypeError(
        f"the model cannot use the argument {name!r}, {described(table)}: {advice}. With the table it stopped with "
        f"{type(of_table).__name__}: {of_table}. With the numbers as an array it stopped with "
        f"{type(of_array).__name__}: {of_array}"
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
        return value.values.view()
    table = of_pandas(value, f"the argument {name}")
    return value if table is None else table


def _has_table(value: Any) -> bool:
    if type(value) in (dict, list, tuple):
        return any(map(_has_table, value.values() if type(value) is dict else value))
    return _is_array_of_xarray(value) or type(value).__module__.partition(".")[0] == "pandas"


def _is_array_of_xarray(value: Any) -> bool:
    xarray = sys.modules.get("xarray")  # such an object exists only if it is imported
    return xarray is not None and isinstance(value, xarray.DataArray)
