"""Data with discrete columns or angles, checked, and taken apart by kind."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from numpyro.distributions import constraints

from numpyro_flows.arguments import as_numbers, require_all, require_finite_rows
from numpyro_flows.density.digits import require_digits
from numpyro_flows.density.observations import Support, require_constraints, sites_of, stack
from numpyro_flows.modeling.columns import Columns, bounds, is_angle, is_categorical, is_discrete, scalar_support
from numpyro_flows.modeling.discrete import largest_whole


class MixedData(NamedTuple):
    """Checked data by kind.

    columns: where each kind is in an event.
    values: raveled events, `(num, size)`; angles as they were given.
    bounds: the least and the largest value of each discrete column.
    linear: the real columns as `fit_density` takes them, an array or sites, with their support; None without real
        columns.
    """

    columns: Columns
    values: Float[np.ndarray, "num size"]
    bounds: tuple[tuple[int, int | None], ...]
    linear: tuple[Any, Support] | None

    def only(self, kept: Bool[np.ndarray, " num"]) -> "MixedData":
        """Of some rows."""
        linear = self.linear
        if linear is not None:
            rows, support = linear
            sites = rows if isinstance(rows, Mapping) else None
            some = rows[kept] if sites is None else {name: np.asarray(value)[kept] for name, value in sites.items()}
            linear = some, support
        return self._replace(values=self.values[kept], linear=linear)


def take_apart(data: Any, support: Any) -> MixedData:
    """Data by kind: arguments and errors are those of `fit_density`."""
    if (sites := sites_of(data)) is not None:
        return _of_sites(sites, support)
    values = as_numbers(data, "data")
    if values.ndim == 0:
        raise ValueError(f"data expected an array of shape (num, *event), got the number {values}")
    if isinstance(support, Mapping):
        raise ValueError(f"support expected constraints for an array of data, got a dict of {sorted(support)}")
    event_shape = values.shape[1:]
    size = int(np.prod(event_shape))
    if isinstance(support, constraints.Constraint):
        supports = [scalar_support(support)] * size
    else:
        supports = [scalar_support(one) for one in _for_each_column(support, event_shape)]
    labels = [f"column {i}" if event_shape else "the data" for i in range(size)]
    values = values.reshape(len(values), size)
    columns, of_discrete = _checked(None, event_shape, values, supports, labels)
    some = list(columns.linear)
    linear = (values[:, some], [supports[i] for i in some]) if some else None
    return MixedData(columns, values, of_discrete, linear)


def _of_sites(sites: Mapping[str, Any], support: Any) -> MixedData:
    shapes, values = stack(sites)
    if not isinstance(support, Mapping):
        raise ValueError(f"support expected a dict by site for a dict of sites or a DataFrame, got {support}")
    require_constraints(support.values())
    if unknown := sorted(support.keys() - shapes.keys()):
        raise ValueError(f"expected supports of the sites {sorted(shapes)}, got some of {unknown}")
    supports, labels, linear = [], [], {}
    for name, shape in shapes.items():
        inside = support.get(name, constraints.real)
        if not (is_angle(inside) or is_discrete(inside)):
            linear[name] = sites[name]
        supports += [scalar_support(inside)] * int(np.prod(shape))
        labels += [f"site {name!r}"] * int(np.prod(shape))
    columns, of_discrete = _checked(tuple(shapes.items()), (values.shape[1],), values, supports, labels)
    of_linear = {name: inside for name, inside in support.items() if name in linear}
    return MixedData(columns, values, of_discrete, (linear, of_linear) if linear else None)


def _for_each_column(support: Any, event_shape: tuple[int, ...]) -> Sequence[constraints.Constraint]:
    supports = list(support)
    require_constraints(supports)
    if len(event_shape) != 1 or len(supports) != event_shape[0]:
        raise ValueError(f"support expected a constraint for each column of {event_shape}, got {len(supports)}")
    return supports


def _checked(
    sites: tuple[tuple[str, tuple[int, ...]], ...] | None,
    event_shape: tuple[int, ...],
    values: Float[np.ndarray, "num size"],
    supports: Sequence[constraints.Constraint],
    labels: Sequence[str],
) -> tuple[Columns, tuple[tuple[int, int | None], ...]]:
    if 0 in values.shape:
        raise ValueError(f"data expected rows and coordinates, got an array of shape {values.shape}")
    require_finite_rows("data", values)
    kinds = ["discrete" if is_discrete(one) else "angles" if is_angle(one) else "linear" for one in supports]
    for i, one in enumerate(supports):
        if kinds[i] == "discrete" and not is_categorical(*bounds(one)):  # what a count's probabilities are computed of
            t = np.log1p(np.maximum(values[:, i : i + 1] - bounds(one)[0], 0.0))
            require_digits("data", t, [f"{labels[i]}, log(1 + count - {bounds(one)[0]})"], unconstrained=True)
    places = {kind: tuple(i for i, one in enumerate(kinds) if one == kind) for kind in ("discrete", "angles", "linear")}
    of_discrete = tuple(bounds(supports[i]) for i in places["discrete"])
    for i, (low, high) in zip(places["discrete"], of_discrete):
        _require_within(values[:, i], low, high, labels[i])
    return Columns(sites, event_shape, **places), of_discrete


def _require_within(values: Float[np.ndarray, " num"], low: int, high: int | None, label: str) -> None:
    require_all(values == np.round(values), f"{label} expected whole numbers, as its support is discrete, got others")
    expected = f"at least {low}" if high is None else f"from {low} to {high}"
    within = (values >= low) & (values <= (np.inf if high is None else high))
    require_all(within, f"{label} expected whole numbers {expected}, got others")
    most = largest_whole()
    require_all(
        np.abs(values) < most,
        f"{label} expected whole numbers below {most:,}, the largest that {jnp.result_type(float)} has exactly, got "
        "larger ones (jax.config.update('jax_enable_x64', True) allows them)",
    )
