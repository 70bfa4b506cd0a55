"""Data for density estimation: an array, a dict of sites or a DataTree, checked, and as unconstrained vectors."""

import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ComposeTransform, ReshapeTransform, Transform, biject_to

from numpyro_flows.arguments import as_numbers, described, require_all, require_finite_rows
from numpyro_flows.modeling.sites import Sites, table_as_sites

Support = constraints.Constraint | Sequence[constraints.Constraint] | Mapping[str, constraints.Constraint] | None
"""Of an event; one for each column; one for each site; the real numbers."""

_SHOWN = 5  # columns that a message names
_LEAST_ESS = 0.01  # of weights, as a share of the rows, below which one is warned
_REPEATED = 0.1  # share of rows that are there already from which one is warned


class Observations(NamedTuple):
    """Checked data.

    values: on their own scale, of shape `(num, *event)`; sites one after the other.
    constrain: from real vectors to such events; None where they are real vectors.
    x: as real vectors, and `log_det`, `log |det dx/dvalue|` for each; of integers, the middles of their cells.
    """

    values: Float[np.ndarray, "num *event"]
    constrain: Transform | None
    x: Float[np.ndarray, "num dim"]
    log_det: Float[np.ndarray, " num"]

    def rows(
        self, index: Int[np.ndarray, " some"], noise: Float[np.ndarray, "some *event"] | None = None
    ) -> tuple[Float[np.ndarray, "some dim"], Float[np.ndarray, " some"]]:
        """Some rows as real vectors, and their `log_det`; with noise that is added to the values, if any."""
        if noise is None:
            return self.x[index], self.log_det[index]
        return _unconstrained(self.constrain, self.values[index] + noise)


def observe(data: Any, support: Support = None, *, dequantize: bool = False) -> Observations:
    """Data, checked: arguments and errors are those of `fit_density`."""
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
    whole = np.all(values == np.round(values))
    if dequantize and not whole:
        raise ValueError("dequantize expected whole numbers, got others: leave it out")
    if whole and not dequantize:
        warnings.warn(
            "the data are whole numbers, on which a density can grow without bound: give dequantize=True to add "
            "uniform noise on [0, 1)",
            UserWarning,
            stacklevel=3,
        )
    # of integers the middle of a cell, whose ends may lie on the boundary
    checked = values + 0.5 if dequantize else values
    in_support = np.asarray(inside(jnp.asarray(checked)))
    require_all(in_support.reshape(len(values), -1).all(1), f"expected data within {inside}, got values outside it")
    constrain = _constrain(inside, values.shape[1:])
    x, log_det = _unconstrained(constrain, checked)
    require_all(np.isfinite(x).all(1), f"expected data within {inside}, got values on its boundary")
    if len(x) <= x.shape[1]:
        raise ValueError(f"data expected more rows than coordinates, got {len(x)} rows of {x.shape[1]}")
    if not dequantize:
        if (np.ptp(x, axis=0) == 0).any():  # the values tell which; of a matrix some may be constant by its support
            constant = np.ptp(values.reshape(len(values), -1), axis=0) == 0
            names = ", ".join(dict.fromkeys(np.asarray(labels)[constant][:_SHOWN]))
            raise ValueError(f"expected coordinates that vary, got constant ones: {names}")
        _warn_of_repetition(x)
    return Observations(values, constrain, x, log_det)


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
    xarray = sys.modules.get("xarray")  # importing it takes half a second, and whoever has a DataTree has done it
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
    """The sites of a DataFrame; anything else as it is; a TypeError that names the columns that are no numbers."""
    sites = table_as_sites(data)
    if sites is not data:
        as_numbers(data, "data")
    return sites


def stack(sites: Mapping[str, ArrayLike]) -> tuple[dict[str, tuple[int, ...]], Float[np.ndarray, "num size"]]:
    """Shapes of sites, and their raveled values side by side; a ValueError where their rows differ in number."""
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
    """Raise a TypeError where one is no NumPyro constraint."""
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


def _warn_of_repetition(x: Float[np.ndarray, "num dim"]) -> None:
    # rows that are alike have the same projection, others almost surely not
    projected = x @ np.random.default_rng(0).normal(size=x.shape[1])
    repeated = 1 - len(np.unique(projected)) / len(x)
    if repeated > _REPEATED:
        warnings.warn(
            f"{repeated:.0%} of the rows are there more than once, on which a density can grow without bound; "
            "validation rows may be among those trained on",
            UserWarning,
            stacklevel=4,
        )


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


def checked_condition(condition: ArrayLike | None, num: int) -> Float[np.ndarray, "num cond_dim"] | None:
    """Conditions of `num` rows, if there are any."""
    if condition is None:
        return None
    array = as_numbers(condition, "condition")
    if array.ndim != 2 or len(array) != num:
        advice = ": write condition[:, None]" if array.shape == (num,) else ""
        raise ValueError(f"condition expected the shape (num, cond_dim) with num={num}, got {array.shape}{advice}")
    require_finite_rows("condition", array)
    return array
