"""Some columns or sites of an event: their indices, their places in the real vector, and their own support."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import transforms
from numpyro.distributions.transforms import Transform

from numpyro_flows.arguments import as_array, described, require_counts
from numpyro_flows.modeling.sites import Sites, SitesTransform
from numpyro_flows.modeling.supports import inside


class EventColumns(NamedTuple):
    """The columns of events with one axis, or the sites of a joint event.

    size: number of columns; for sites the length of the raveled vector.
    sites: the sites; None if an event is an array.
    constrain: transform from real vectors to events; None if they are the same.
    """

    size: int
    sites: Sites | None
    constrain: Transform | None

    @classmethod
    def of(cls, event_shape: tuple[int, ...], sites: Sites | None, constrain: Transform | None) -> "EventColumns":
        """Raises: ValueError where an event has no or several axes."""
        if len(event_shape) != 1:
            raise ValueError(f"expected events with one axis, to select columns, got event shape {event_shape}")
        return cls(event_shape[0], sites, constrain)

    def checked(self, columns: Any, name: str) -> list[Any]:
        """Columns as non-negative integers, or names of sites.

        Raises:
            TypeError: if it is not a list or tuple, or an element is not an integer or a string.
            ValueError: if it is empty, or has a column twice or one that does not exist.
        """
        if not isinstance(columns, Sequence | np.ndarray) or isinstance(columns, str):
            example = [0, 2] if self.sites is None else list(self.sites.shapes)[:1]
            raise TypeError(f"{name} expected a list, for example {example}, got {described(columns)}")
        if self.sites is None:
            for column in columns:
                require_counts(-self.size, self.size - 1, **{f"each of {name}": column})
            found: list[Any] = [int(column) % self.size for column in columns]
        else:
            found = list(columns)
            unknown = [column for column in found if column not in self.sites.shapes]
            if unknown:
                raise ValueError(f"{name} expected some of the sites {list(self.sites.shapes)}, got {unknown}")
        if not found or len(set(found)) < len(found):
            raise ValueError(f"{name} expected at least one column, each once, got {list(columns)}")
        return found

    def others(self, columns: Sequence[Any]) -> list[Any]:
        """All columns except these, in their order."""
        every = range(self.size) if self.sites is None else self.sites.shapes
        return [column for column in every if column not in columns]

    def places(self, columns: Sequence[Any]) -> tuple[int, ...]:
        """Coordinates of these columns in the real vector."""
        if self.sites is None:
            return tuple(columns)
        if not isinstance(self.constrain, SitesTransform):
            raise ValueError(f"expected sites with NumPyro's transforms to their supports, got {self.constrain}")
        sizes = {name: int(np.prod(shape)) for name, shape in self.constrain.unconstrained_shapes().items()}
        first = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist()))
        return tuple(place for name in columns for place in range(first[name], first[name] + sizes[name]))

    def constrain_of(self, columns: Sequence[Any]) -> Transform | None:
        """The transform from the real numbers of these columns to their values."""
        if self.sites is not None:
            return SitesTransform(self._sites_of(columns))
        return None if self.constrain is None else _restricted(self.constrain, tuple(columns), self.size)

    def real(self, values: Mapping[Any, ArrayLike], columns: Sequence[Any]) -> Float[Array, "*batch places"]:
        """The real numbers of values by column, whose batch shapes broadcast.

        Raises:
            ValueError: if shapes do not fit, or a value is outside its support.
        """
        shapes = [() if self.sites is None else self.sites.shapes[column] for column in columns]
        arrays = [as_array(value, f"column {column!r}") for column, value in zip(columns, values.values())]
        for column, array, shape in zip(columns, arrays, shapes):
            if array.shape[max(array.ndim - len(shape), 0) :] != shape:
                raise ValueError(f"column {column!r} expected the shape {('*batch', *shape)}, got {array.shape}")
        batches = [array.shape[: array.ndim - len(shape)] for array, shape in zip(arrays, shapes)]
        try:
            batch = jnp.broadcast_shapes(*batches)
        except ValueError as error:
            raise ValueError(f"values expected batch shapes that broadcast, got {batches}") from error
        parts = [jnp.broadcast_to(a, (*batch, *s)).reshape(*batch, -1) for a, s in zip(arrays, shapes)]
        vector = jnp.concatenate(parts, axis=-1).astype(jnp.result_type(float))
        constrain = self.constrain_of(columns)
        within = inside(constrain, vector, 1, 1)
        if not isinstance(within, Tracer) and not within.all():
            raise ValueError(f"values expected finite ones within the support, got others in columns {list(columns)}")
        return vector if constrain is None else jnp.asarray(constrain.inv(vector))

    def _sites_of(self, names: Sequence[str]) -> Sites:
        assert self.sites is not None
        shapes, supports = self.sites.shapes, self.sites.supports
        return Sites({name: shapes[name] for name in names}, {name: supports[name] for name in names})


def _restricted(constrain: Transform, columns: tuple[int, ...], size: int) -> Transform:
    """The part of an elementwise transform that acts on some columns.

    Raises:
        ValueError: for another transform.
    """
    if isinstance(constrain, transforms.CatTransform) and constrain.dim == -1 and set(constrain.lengths) == {1}:
        return transforms.CatTransform([constrain.transforms[column] for column in columns], -1)
    while isinstance(constrain, transforms.IndependentTransform):
        constrain = constrain.base_transform
    if constrain.domain.event_dim or constrain.codomain.event_dim:
        raise ValueError(f"expected a support with a constraint for each column, got {constrain.codomain}")

    def some(parameter: Any) -> Any:
        has_columns = np.ndim(parameter) and np.shape(parameter)[-1] == size > 1
        return parameter[..., np.asarray(columns)] if has_columns else parameter

    return jax.tree.map(some, constrain)
