"""Data for density estimation, checked and made unconstrained: an array, a dict of sites or a DataTree."""

import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Int
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ComposeTransform, ReshapeTransform, Transform, biject_to

from numpyro_flows.arguments import as_numbers, described, require_all, require_finite_rows, require_flags
from numpyro_flows.density.degenerate import REPEATED, warn_of_dependence, warn_of_repetition
from numpyro_flows.density.digits import require_digits, require_digits_together
from numpyro_flows.modeling.sites import Sites, table_as_sites

Support = constraints.Constraint | Sequence[constraints.Constraint] | Mapping[str, constraints.Constraint] | None
"""Of an event; one for each column; one for each site; the real numbers."""

Dequantize = bool | Sequence[bool] | np.ndarray | Mapping[str, bool]
"""Of all whole numbers; one for each column; one for each site."""

_SHOWN = 5  # columns that a message names
_LEAST_ROWS = 3
_LEAST_ESS = 0.01  # of weights, as a share of the rows: below this there is a warning
_ALL_WHOLE = 2.0**23  # above this, all numbers of single precision are whole


class Observations(NamedTuple):
    """Checked data.

    values: events on their own scale, of shape `(num, *event)`; sites one after the other.
    constrain: transform from real vectors to such events; None if events are real vectors.
    x: events as real vectors; for integers, of the middles of their cells.
    log_det: `log |det dx/dvalue|` of each event.
    labels: names of the columns of `x`.
    cells: which values of an event are integers to spread over `[k, k + 1)`.
    noise: standard deviation of the Gaussian noise to add to all values.
    """

    values: Float[np.ndarray, "num *event"]
    constrain: Transform | None
    x: Float[np.ndarray, "num dim"]
    log_det: Float[np.ndarray, " num"]
    labels: list[str]
    cells: Bool[np.ndarray, "*event"]
    noise: float = 0.0

    @property
    def are_noisy(self) -> bool:
        return self.noise > 0 or bool(self.cells.any())

    def rows(
        self, index: Int[np.ndarray, " some"], rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "some dim"], Float[np.ndarray, " some"]]:
        """Some rows as real vectors, and their `log_det`; with noise from `rng`, if noise is to be added."""
        if not self.are_noisy:
            return self.x[index], self.log_det[index]
        values = self.values[index]
        if self.cells.any():
            values = values + np.where(self.cells, rng.uniform(size=values.shape), 0.0)
        if self.noise > 0:
            values = values + self.noise * rng.normal(size=values.shape)
        return _unconstrained(self.constrain, values)

    def only(self, kept: Bool[np.ndarray, " num"]) -> "Observations":
        """The data of some rows."""
        return self._replace(values=self.values[kept], x=self.x[kept], log_det=self.log_det[kept])


def observe(data: Any, support: Support = None, *, dequantize: Dequantize = False, noise: float = 0.0) -> Observations:
    """Checked data; arguments and errors are those of `fit_density`."""
    shapes: dict[str, tuple[int, ...]] | None = None
    if (sites := sites_of(data)) is not None:
        shapes, values = stack(sites)
        if not (support is None or isinstance(support, Mapping)):
            raise ValueError(f"support expected a dict by site for a dict of sites, got {support}")
        require_constraints((support or {}).values())
        inside: constraints.Constraint = Sites(shapes, support)
        labels = [name for name, shape in shapes.items() for _ in range(int(np.prod(shape)))]
    else:
        values = as_numbers(data, "data")
        if values.ndim == 0:
            raise ValueError(f"data expected an array of shape (num, *event), got the number {values}")
        if isinstance(support, Mapping):
            raise ValueError(f"support expected a constraint for an array of data, got a dict of {sorted(support)}")
        inside = _one_support(support, values.shape[1:])
        labels = [str(i) for i in range(int(np.prod(values.shape[1:])))]
    if 0 in values.shape:
        raise ValueError(f"data expected rows and coordinates, got an array of shape {values.shape}")
    require_finite_rows("data", values)
    cells = _checked_cells(dequantize, values.shape[1:], shapes)
    given = _float_type([data] if sites is None else list(sites.values()))
    require_digits("data", values, labels, given=given, cell=np.maximum(cells.reshape(-1), noise))
    _check_whole_numbers(values, cells, labels, warns=noise == 0)
    # of integers the middle of a cell, whose ends may lie on the boundary
    checked = values + 0.5 * cells if cells.any() else values
    in_support = np.asarray(inside(jnp.asarray(checked)))
    require_all(in_support.reshape(len(values), -1).all(1), f"expected data within {inside}, got values outside it")
    noisy = cells | (noise > 0)
    constrain = _constrain(inside, values.shape[1:])
    x, log_det = _unconstrained(constrain, checked)
    require_all(np.isfinite(x).all(1), f"expected data within {inside}, got values on its boundary")
    if noise > 0 and log_det.any():
        raise ValueError(f"noise expected 0 for data within {inside}, because noise would leave it, got {noise}")
    if len(x) <= max(x.shape[1], _LEAST_ROWS - 1):
        least = f"more rows than coordinates, and at least {_LEAST_ROWS}"
        raise ValueError(f"data expected {least}, got {len(x)} rows of {x.shape[1]}")
    own = labels if x.shape[1] == len(labels) else [f"coordinate {i}" for i in range(x.shape[1])]
    if constrain is not None:
        require_digits("data", x, own, cell=np.inf if noisy.any() else 0.0, unconstrained=True)
    if not noisy.all():
        varies = np.ptp(x, axis=0) > 0
        if x.shape[1] == noisy.size:
            varies |= noisy.reshape(-1)
        if not varies.all():  # the values tell which; of a matrix some may be constant by its support
            constant = np.ptp(values.reshape(len(values), -1), axis=0) == 0
            names = ", ".join(dict.fromkeys(np.asarray(labels)[constant][:_SHOWN]))
            raise ValueError(f"expected coordinates that vary, got constant ones: {names}")
        warn_of_repetition(values.reshape(len(values), -1))
    if not noisy.any():
        require_digits_together(values, labels)
        warn_of_dependence(x)
    return Observations(values, constrain, x, log_det, own, cells, noise)


def _float_type(arrays: Sequence[Any]) -> np.dtype | None:
    """The type of arrays of floating-point numbers, if all have the same type."""
    types = {getattr(array, "dtype", None) for array in arrays}
    first = next(iter(types))
    return first if len(types) == 1 and isinstance(first, np.dtype) and jnp.issubdtype(first, jnp.floating) else None


def _checked_cells(
    dequantize: Dequantize, event_shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]] | None
) -> Bool[np.ndarray, "*event"]:
    """The values of an event to dequantize."""
    if isinstance(dequantize, Mapping):
        if shapes is None:
            raise ValueError(f"dequantize expected True or False for an array of data, got a dict of {[*dequantize]}")
        if not dequantize.keys() <= shapes.keys():
            raise ValueError(f"dequantize expected a dict by site, of some of {[*shapes]}, got {[*dequantize]}")
        require_flags(**{f"dequantize[{name!r}]": flag for name, flag in dequantize.items()})
        parts = [np.full(math.prod(shape), bool(dequantize.get(name, False))) for name, shape in shapes.items()]
        return np.concatenate(parts)
    if isinstance(dequantize, Sequence | np.ndarray) and not isinstance(dequantize, str):
        if shapes is not None:
            raise ValueError("dequantize expected True, False or a dict by site for a dict of sites, got a sequence")
        flags = np.asarray(dequantize)
        if flags.dtype != bool:
            raise TypeError(f"dequantize expected True or False for each column, got {described(flags)}")
        if flags.shape != event_shape:
            raise ValueError(f"dequantize expected one for each column, of shape {event_shape}, got {flags.shape}")
        return flags
    require_flags(dequantize=dequantize)
    return np.full(event_shape, bool(dequantize))


def _check_whole_numbers(
    values: Float[np.ndarray, "num *event"], cells: Bool[np.ndarray, "*event"], labels: Sequence[str], *, warns: bool
) -> None:
    """Raise a ValueError if values to dequantize are not whole; warn if other values are whole numbers that repeat."""
    columns, flat = values.reshape(len(values), -1), cells.reshape(-1)
    whole = np.array([bool((column == np.round(column)).all()) for column in columns.T])
    if not whole[flat].all():
        names = _names(labels, flat & ~whole)
        raise ValueError(f"dequantize expected whole numbers, got other numbers in {names}: leave dequantize out there")
    suspect = whole & ~flat & (np.ptp(columns, axis=0) > 0)
    for index in np.flatnonzero(suspect):
        column = columns[:, index]
        if not (whole.all() and np.median(np.abs(column)) < _ALL_WHOLE):  # large numbers are whole by chance
            suspect[index] = len(np.unique(column)) < (1 - REPEATED) * len(column)
    if warns and suspect.any():
        advice = "dequantize=True" if whole.all() else "dequantize, True for these and False for others,"
        warnings.warn(
            f"the data have whole numbers in {_names(labels, suspect)}, on which a density can grow without bound: "
            f"give {advice} to add uniform noise on [0, 1)",
            UserWarning,
            stacklevel=4,
        )


def _names(labels: Sequence[str], which: Bool[np.ndarray, " size"]) -> str:
    names = list(dict.fromkeys(np.asarray(labels)[which]))
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _unconstrained(
    constrain: Transform | None, values: Float[np.ndarray, "some *event"]
) -> tuple[Float[np.ndarray, "some dim"], Float[np.ndarray, " some"]]:
    if constrain is None:
        return values, np.zeros(len(values))
    x, log_det = _unconstrain(constrain, jnp.asarray(values))
    return np.asarray(x, np.float64), np.asarray(log_det, np.float64)


@jax.jit
def _unconstrain(constrain: Transform, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = jnp.asarray(constrain.inv(values))
    log_det = jnp.asarray(constrain.log_abs_det_jacobian(x, values))
    return x, -log_det.reshape(len(x), -1).sum(1)


def sites_of(data: Any) -> Mapping[str, ArrayLike] | None:
    """The sites of a dict, a Dataset or a DataTree's posterior, draws along the first axis; None for an array."""
    xarray = sys.modules.get("xarray")  # importing it takes half a second, and a DataTree exists only if it is imported
    if xarray is None or not isinstance(data, xarray.DataTree | xarray.Dataset):  # which are mappings, too
        return data if isinstance(data, Mapping) else None
    if isinstance(data, xarray.DataTree):
        if "posterior" not in data.children and not data.data_vars:
            raise ValueError(f"data expected a DataTree with a posterior, got groups {list(data.children)}")
        data = (data["posterior"] if "posterior" in data.children else data).to_dataset()
    if not {"chain", "draw"} <= set(data.dims):
        raise ValueError(f"data expected draws along the dimensions chain and draw, got {list(data.dims)}")
    posterior = data.stack(draws=("chain", "draw")).transpose("draws", ...)
    return {str(name): variable.values for name, variable in posterior.data_vars.items()}


def table_of_sites(data: Any) -> Any:
    """The sites of a DataFrame or a Dataset, or of all batches of an iterator; other data are returned as they are.

    Raises:
        TypeError: if columns are not numbers; it names them.
        ValueError: if an iterator has no batches, or batches have different columns.
    """
    if isinstance(data, Iterator):
        return _joined([table_of_sites(batch) for batch in data])
    sites = table_as_sites(data)
    if sites is not data and hasattr(data, "columns"):
        as_numbers(data, "data")
    return sites


def _joined(batches: list[Any]) -> Any:
    """The rows of all batches, one after the other."""
    if not batches:
        raise ValueError("data expected batches of rows, got an iterator without any")
    if not isinstance(batches[0], Mapping):
        arrays = [as_numbers(batch, "a batch of data") for batch in batches]
        odd = [described(batch) for batch, array in zip(batches, arrays) if array.ndim < 2 or isinstance(batch, tuple)]
        if odd:
            raise ValueError(f"data expected batches (num, columns) or dicts of sites, got one of {odd[0]}")
        return np.concatenate(arrays)
    names = list(batches[0])
    for batch in batches:
        if not isinstance(batch, Mapping) or set(batch) != set(names):
            got = list(batch) if isinstance(batch, Mapping) else described(batch)
            raise ValueError(f"data expected batches of the sites {names}, got one of {got}")
    return {name: np.concatenate([as_numbers(batch[name], f"site {name!r}") for batch in batches]) for name in names}


def stack(sites: Mapping[str, ArrayLike]) -> tuple[dict[str, tuple[int, ...]], Float[np.ndarray, "num size"]]:
    """Shapes of sites, and their raveled values side by side; a ValueError if their numbers of rows differ."""
    if not sites:
        raise ValueError("data expected at least one site, got an empty dict")
    arrays = {name: as_numbers(value, f"site {name!r}") for name, value in sites.items()}
    lengths = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise ValueError(f"data expected sites with the same number of rows, got {lengths}")
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    return shapes, np.concatenate(
        [array.reshape(len(array), math.prod(array.shape[1:])) for array in arrays.values()], axis=1
    )


def _one_support(support: Any, event_shape: tuple[int, ...]) -> constraints.Constraint:
    if support is None:
        return constraints.real
    if isinstance(support, constraints.Constraint):
        return support
    supports: list[Any] = list(support) if isinstance(support, Sequence) and not isinstance(support, str) else [support]
    require_constraints(supports)
    if len(event_shape) != 1 or len(supports) != event_shape[0]:
        raise ValueError(f"support expected a constraint for each column of {event_shape}, got {len(supports)}")
    return constraints.cat(supports, -1)


def require_constraints(supports: Iterable[Any]) -> None:
    """Raise a TypeError for an object that is not a NumPyro constraint."""
    for support in supports:
        if not isinstance(support, constraints.Constraint):
            got = described(support)
            raise TypeError(f"support expected NumPyro constraints, for example constraints.positive, got {got}")


def _constrain(support: constraints.Constraint, event_shape: tuple[int, ...]) -> Transform | None:
    """The transform from a real vector to an event in the support."""
    transform = biject_to(support)
    shape = transform.inverse_shape(event_shape)
    if len(shape) == 1:
        return None if support is constraints.real else transform
    return ComposeTransform([ReshapeTransform(shape, (int(np.prod(shape)),)), transform])


def checked_weights(weights: ArrayLike | None, values: Float[np.ndarray, "num *event"]) -> Float[np.ndarray, " num"]:
    """Weights of mean 1."""
    num, size = len(values), int(np.prod(values.shape[1:]))
    if weights is None:
        return np.ones(num)
    array = as_numbers(weights, "weights")
    if array.shape != (num,):
        raise ValueError(f"weights expected the shape {(num,)}, got {array.shape}")
    if not np.isfinite(array).all() or (array < 0).any() or array.sum() == 0:
        raise ValueError("weights expected finite numbers >= 0 that are not all 0")
    ess = array.sum() ** 2 / (array**2).sum()
    if ess <= size:
        raise ValueError(f"weights expected an effective sample size above {size}, that of an event, got {ess:.1f}")
    if ess < _LEAST_ESS * num:
        warnings.warn(
            f"the weights have an effective sample size of {ess:.1f} in {num} rows: a few rows decide the fit",
            UserWarning,
            stacklevel=3,
        )
    return array / array.mean()


def weights_of(
    weights: Float[np.ndarray, " num"], index: Int[np.ndarray, " some"], use: str
) -> Float[np.ndarray, " some"]:
    """The weights of some rows, scaled to mean 1."""
    some = weights[index]
    if len(some) and not some.any():
        raise ValueError(
            f"weights expected some above 0 among the rows {use}, got none: pass another key, or more rows"
        )
    return some / some.mean() if len(some) else some


def checked_condition(condition: ArrayLike | None, num: int) -> Float[np.ndarray, "num cond_dim"] | None:
    """Conditions of `num` rows, if there are any."""
    if condition is None:
        return None
    array = as_numbers(condition, "condition")
    if array.ndim != 2 or len(array) != num:
        advice = ": write condition[:, None]" if array.shape == (num,) else ""
        raise ValueError(f"condition expected the shape (num, cond_dim) with num={num}, got {array.shape}{advice}")
    require_finite_rows("condition", array)
    require_digits("condition", array, [str(i) for i in range(array.shape[1])], given=_float_type([condition]))
    return array
