"""Checks of user arguments: random keys, whole numbers, numbers in an interval, data."""

import itertools
import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

_SHOWN = 5  # names that a message repeats
_LONGEST = 40  # characters of a value that a message repeats


def require_key(key: Any, name: str = "rng_key") -> None:
    """Raise a TypeError if `key` is not one random key, of either style; a batch of keys is not. Also within jit."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if typed and shape == ():
        return
    if not typed and dtype == np.uint32 and shape == _shape_of_raw_keys(jax.config.jax_default_prng_impl):
        return
    batch = shape if typed else shape[:-1] if dtype == np.uint32 and shape else ()
    got = f"a batch of keys of shape {batch}: pass one" if batch else f"{described(key)}: pass jax.random.key(0)"
    raise TypeError(f"{name} expected a JAX random key, got {got}")


@cache
def _shape_of_raw_keys(default_impl: str) -> tuple[int, ...]:
    """Shape of a `jax.random.PRNGKey` of JAX's default generator."""
    return jax.eval_shape(lambda: jax.random.PRNGKey(0)).shape


def require_counts(least: int = 1, most: int | None = None, /, **counts: Any) -> None:
    """Raise a TypeError if a named number is not an integer (nor are True and 100.0), a ValueError if out of range."""
    expected = f"at least {least}" if most is None else f"from {least} to {most}"
    for name, count in counts.items():
        if not _is_scalar(count, int, jnp.integer):
            advice = f": write {int(count)}" if isinstance(count, float) and count.is_integer() else ""
            raise TypeError(f"{name} expected an integer, got {described(count)}{advice}")
        if not isinstance(count, Tracer) and (count < least or (most is not None and count > most)):
            raise ValueError(f"{name} expected {expected}, got {count}")


def require_cond_dim(cond_dim: Any) -> None:
    """Raise a TypeError if the length of a condition is neither an integer nor None, a ValueError if it is negative."""
    if isinstance(cond_dim, tuple):
        raise TypeError(f"cond_dim expected an integer or None, got {cond_dim}: write cond_dim={math.prod(cond_dim)}")
    if cond_dim is not None:
        require_counts(0, cond_dim=cond_dim)


def require_instance(kind: type | tuple[type, ...], example: str, /, **objects: Any) -> None:
    """Raise a TypeError if a named object is not of a class, of which `example` is an instance in code."""
    for name, value in objects.items():
        if not isinstance(value, kind):
            got = f"the class {value.__name__}" if isinstance(value, type) else described(value)
            raise TypeError(f"{name} expected an object such as {example}, got {got}")


def require_callable(example: str, /, **functions: Any) -> None:
    """Raise a TypeError if a named object is not a function; `example` is one in code."""
    for name, value in functions.items():
        if not callable(value):
            raise TypeError(f"{name} expected a function such as {example}, got {described(value)}")


def require_numbers(interval: str, /, **numbers: Any) -> None:
    """Raise a TypeError if one is not a number (such as True), a ValueError if infinite or outside, say, `(0, 1]`."""
    low, high = map(float, interval[1:-1].split(","))
    expected = "a finite number" if interval == "(-inf, inf)" else f"a number in {interval}"
    for name, number in numbers.items():
        if not _is_scalar(number, int | float, jnp.integer, jnp.floating):
            raise TypeError(f"{name} expected {expected}, got {described(number)}")
        above = number > low or (interval[0] == "[" and number == low)
        below = number < high or (interval[-1] == "]" and number == high)
        if not (above and below):
            raise ValueError(f"{name} expected {expected}, got {number}")


def require_choice(choices: Iterable[str], /, **strings: Any) -> None:
    """Raise a ValueError if a named object is not one of the choices."""
    choices = list(choices)
    for name, value in strings.items():
        if not isinstance(value, str) or value not in choices:
            got = repr(value) if isinstance(value, str) else described(value)
            raise ValueError(f"{name} expected one of {choices}, got {got}")


def require_flags(**flags: Any) -> None:
    """Raise a TypeError if a named value is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} expected True or False, got {described(value)}")


def require_two_times(**intervals: Any) -> None:
    """Raise a TypeError if a named interval is not two numbers, a ValueError if they are equal or not finite."""
    for name, times in intervals.items():
        if not isinstance(times, Sequence | np.ndarray) or isinstance(times, str) or len(times) != 2:
            raise TypeError(f"{name} expected two times, for example (0.0, 1.0), got {described(times)}")
        require_numbers("(-inf, inf)", **{f"each time of {name}": times[0]})
        require_numbers("(-inf, inf)", **{f"each time of {name}": times[1]})
        if times[0] == times[1]:
            raise ValueError(f"{name} expected two different times, got {times}")


def _is_scalar(value: Any, python: Any, *kinds: Any) -> bool:
    """Whether a value is a number of Python, NumPy or JAX, of these kinds; booleans are not numbers."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None:
        return value.shape == () and any(jnp.issubdtype(dtype, kind) for kind in kinds)
    return isinstance(value, python) and not isinstance(value, bool)


def as_numbers(values: Any, name: str) -> Float[np.ndarray, "..."]:
    """Real numbers in double precision, from an array, a list, a number, a pandas DataFrame or Series.

    Masked (NumPy) or missing (pandas) values become NaN. It raises a TypeError if they are not numbers, or not known
    yet, within jit, and a ValueError if a list's rows differ in length.
    """
    if isinstance(values, Tracer):
        raise TypeError(f"{name} expected numbers, got an array that jit, vmap or grad traces: call this outside of it")
    return _read(values, name).astype(np.float64)


def as_array(values: Any, name: str) -> Array:
    """Real numbers as an array of JAX, also within jit; otherwise like `as_numbers`, but in their own precision."""
    if isinstance(values, jax.Array | int | float):
        return jnp.asarray(values)
    return jnp.asarray(_read(values, name))


def _read(values: Any, name: str) -> np.ndarray:
    table = of_pandas(values, name)
    if table is not None:
        return table
    if values is None or isinstance(values, str | bytes | Mapping | Set):
        raise TypeError(f"{name} expected an array of numbers, got {described(values)}")
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(np.float64), np.nan)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} expected an array, got {described(values)} of parts of different lengths") from error
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.integer, jnp.floating, np.bool_)):
        got = described(array if array.ndim else values)
        advice = ": convert it with .astype(float)" if array.dtype.hasobject and array.ndim else ""
        raise TypeError(f"{name} expected real numbers, got {got}{advice}")
    return array


def of_pandas(values: Any, name: str) -> np.ndarray | None:
    """The numbers of a pandas Series `(rows,)` or DataFrame `(rows, columns)`, in their own type; None for others.

    Missing values are NaN. It raises a TypeError that names the type, and the columns, if they are not real numbers.
    """
    pandas = sys.modules.get("pandas")  # such an object exists only if it is imported
    if pandas is None or not isinstance(values, pandas.DataFrame | pandas.Series):
        return None
    is_series = isinstance(values, pandas.Series)
    table = values.to_frame() if is_series else values
    others = {column: dtype for column, dtype in table.dtypes.items() if not _is_real(dtype, pandas)}
    if others:
        shown = listed([f"{column!r} ({dtype})" for column, dtype in others.items()])
        which = f"a Series of type {values.dtype}" if is_series else f"other values in the columns {shown}"
        advice = ": encode them, or leave them out"
        if is_series and values.dtype == object:
            advice = ": encode them, or convert them with .astype(float)"
        raise TypeError(f"{name} expected real numbers, got {which}{advice}")
    columns = [_numbers_of(table.iloc[:, i]) for i in range(table.shape[1])]
    return columns[0] if is_series else np.stack(columns, 1) if columns else np.zeros(table.shape)


def _is_real(dtype: Any, pandas: Any) -> bool:
    return pandas.api.types.is_numeric_dtype(dtype) and dtype.kind != "c"


def _numbers_of(column: Any) -> np.ndarray:
    """A numeric pandas Series; whole and Boolean ones become floats only if values are missing."""
    if column.hasnans:
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.to_numpy(dtype=getattr(column.dtype, "numpy_dtype", None))


def require_finite_rows(name: str, values: Float[np.ndarray, "num *event"]) -> None:
    """Raise a ValueError if rows have NaN or infinite values."""
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    require_all(finite, f"{name} expected finite values, got NaN or infinite ones")


def require_all(good: Bool[np.ndarray, " num"], message: str, what: str = "rows") -> None:
    """Raise a ValueError if some values are not good. The text is the message, their number, and which they are."""
    bad = np.flatnonzero(~good)
    if bad.size:
        raise ValueError(f"{message} in {bad.size} of {good.size} {what}: {listed(bad)}")


def listed(items: Collection[Any]) -> str:
    """The first few of some items."""
    return ", ".join(map(str, itertools.islice(items, _SHOWN))) + (", ..." if len(items) > _SHOWN else "")


def require_shape_of_sample(sample_shape: Any) -> None:
    """Raise a TypeError if the shape of a sample is not a tuple of integers, a ValueError if one is negative."""
    if not isinstance(sample_shape, tuple):
        advice = f": write ({sample_shape},)" if isinstance(sample_shape, int) else ""
        raise TypeError(f"sample_shape expected a tuple of integers, got {described(sample_shape)}{advice}")
    for size in sample_shape:
        require_counts(0, **{"each size of sample_shape": size})


def described(value: Any) -> str:
    """A short description of a value."""
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str | bytes):
        text = repr(value)
        return f"the string {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}"
    if type(value).__module__.partition(".")[0] == "pandas":
        return f"a pandas {type(value).__name__}"
    if isinstance(value, np.ma.MaskedArray):
        return f"a masked array of type {value.dtype} and shape {value.shape}"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"an array of type {dtype} and shape {tuple(shape)}"
    if isinstance(value, Mapping):
        return f"a dict of {list(value)[:_SHOWN]}"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeioAEIO" else f"a {name}"


def as_array_advice(value: Any, name: str) -> str:
    """How to make an array of numbers of `value`, which a user knows as `name`; empty if `value` is one."""
    if hasattr(value, "to_numpy"):
        return f"pass {name}.to_numpy()"
    if isinstance(value, list | tuple):
        return f"pass jnp.asarray({name})"
    if isinstance(value, np.ma.MaskedArray):
        return f"pass {name}.filled(0.0), and mark its missing entries by numpyro.sample(..., obs_mask=~{name}.mask)"
    if isinstance(value, Mapping):
        return "pass one of its arrays"
    dtype: Any = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.names:
        return f"pass one of its fields, {name}[{dtype.names[0]!r}]"
    kind = getattr(dtype, "kind", "s" if isinstance(value, str | bytes) else "")
    if kind and kind in "fiu" and not (dtype.isnative and dtype.itemsize <= 8):  # JAX has no such numbers
        return f"pass {name}.astype({'float' if kind == 'f' else 'int'})"
    return {
        "O": f"pass {name}.astype(float)",
        "c": "pass real numbers",
        **dict.fromkeys("sUSMm", "pass numbers that encode it"),
    }.get(kind, "")


def as_widths(hidden: Any) -> tuple[int, ...]:
    """The widths of hidden layers; a TypeError unless they are a sequence of integers, a ValueError for one below 1."""
    if not isinstance(hidden, Sequence | np.ndarray) or isinstance(hidden, str):
        advice = f": write ({hidden},)" if isinstance(hidden, int) else ""
        raise TypeError(f"hidden expected a sequence of widths, for example (32, 32), got {described(hidden)}{advice}")
    for width in hidden:
        require_counts(**{"each width of hidden": width})
    return tuple(map(int, hidden))


def require_model(model: Any) -> None:
    """Raise a TypeError if a model cannot be called."""
    if not callable(model) or hasattr(model, "log_prob"):  # NumPyro's distributions can be called
        raise TypeError(f"model expected a NumPyro model, passed without calling it, got {described(model)}")
