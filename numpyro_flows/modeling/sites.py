"""Several named sites as one vector, so that a joint distribution of sites is one event for NumPyro."""

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

from numpyro_flows.arguments import as_array
from numpyro_flows.files.rules import InFiles
from numpyro_flows.modeling._numpyro import TwoWayTransform


class Sites(constraints.Constraint, InFiles):
    """Vectors `(..., size)` of the raveled values of named sites, one after the other, each within its own support.

    NumPyro's `biject_to` supports this constraint, so a distribution with this support can be a latent site.

    Args:
        shapes: shape of every site's value, by name.
        supports: NumPyro constraint of every site, by name; real numbers for sites without one.

    Raises:
        ValueError: if a support belongs to no shape, or is discrete.
    """

    FILE_KINDS: ClassVar = {"shapes": dict[str, tuple[int, ...]], "supports": dict[str, constraints.Constraint]}
    event_dim = 1

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], supports: Mapping[str, constraints.Constraint] | None = None
    ):
        supports = supports or {}
        unknown = sorted(supports.keys() - shapes.keys())
        if unknown:
            raise ValueError(f"expected supports of the sites {sorted(shapes)}, got some of {unknown}")
        discrete = [name for name, support in supports.items() if support.is_discrete]
        if discrete:
            raise ValueError(f"expected continuous supports, got discrete ones of {discrete}")
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.supports = {name: supports.get(name, constraints.real) for name in shapes}

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [int(np.prod(shape)) for shape in self.shapes.values()]

    def pack(self, values: Mapping[str, ArrayLike]) -> Float[Array, "*batch size"]:
        """The vector of the sites' values, each of shape `(*batch, *site)`; other sites are ignored.

        Raises:
            ValueError: if a site is missing, or has another shape.
        """
        missing = [name for name in self.shapes if name not in values]
        if missing:
            raise ValueError(f"expected a value for each of {list(self.shapes)}, missing {missing}")
        parts, batch = [], None
        for name, shape in self.shapes.items():
            value = as_array(values[name], f"site {name!r}")
            cut = value.ndim - len(shape)
            if cut < 0 or value.shape[cut:] != shape or batch not in (None, value.shape[:cut]):
                expected = ("*batch",) if batch is None else batch
                raise ValueError(f"expected {name!r} of shape {(*expected, *shape)}, got {value.shape}")
            batch = value.shape[:cut]
            parts.append(value.reshape(*batch, -1))
        return jnp.concatenate(parts, axis=-1)

    def unpack(self, vector: Float[ArrayLike, "*batch size"]) -> dict[str, Array]:
        """The sites' values, each of shape `(*batch, *site)`."""
        vector = jnp.asarray(vector)
        parts = jnp.split(vector, np.cumsum(self._sizes)[:-1], axis=-1)
        return {
            name: part.reshape(*vector.shape[:-1], *shape) for part, (name, shape) in zip(parts, self.shapes.items())
        }

    def __call__(self, x: Float[ArrayLike, "*batch size"]) -> Array:  # pyright: ignore
        inside = []
        for name, value in self.unpack(x).items():
            checked = jnp.asarray(self.supports[name](value))
            inside.append(checked.reshape(*value.shape[: value.ndim - len(self.shapes[name])], -1).all(-1))
        return jnp.stack(inside).all(0)

    def __repr__(self) -> str:
        return f"Sites({self.shapes}, {self.supports})"

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.supports,), (("supports",), {"shapes": self.shapes})

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        if not isinstance(other, Sites) or self.shapes != other.shapes:
            return False
        return all(self.supports[name].eq(other.supports[name], static) for name in self.shapes)

    def feasible_like(self, prototype: Array) -> Array:  # pyright: ignore
        values = {name: self.supports[name].feasible_like(value) for name, value in self.unpack(prototype).items()}
        return self.pack(values)


class SitesTransform(TwoWayTransform, InFiles):
    """From real vectors onto the support of `Sites`: each site uses NumPyro's own transform to its support."""

    FILE_KINDS: ClassVar = {"sites": Sites}

    def __init__(self, sites: Sites):
        self.sites = sites

    @property
    def domain(self) -> constraints.Constraint:
        return constraints.real_vector

    @property
    def codomain(self) -> constraints.Constraint:
        return self.sites

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch size"]:  # pyright: ignore
        return self.sites.pack({name: transform(part) for name, transform, part in self._parts(x)})

    def inverse(self, y: Float[Array, "*batch size"]) -> Float[Array, "*batch dim"]:
        values = self.sites.unpack(y)
        batch = jnp.shape(y)[:-1]
        parts = [jnp.reshape(t.inv(values[name]), (*batch, -1)) for name, t in self._transforms().items()]
        return jnp.concatenate(parts, axis=-1)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:  # pyright: ignore
        values = self.sites.unpack(y)
        terms = [
            jnp.reshape(transform.log_abs_det_jacobian(part, values[name]), (*jnp.shape(x)[:-1], -1)).sum(-1)
            for name, transform, part in self._parts(x)
        ]
        return jnp.stack(terms).sum(0)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.sites.size)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], sum(int(np.prod(shape)) for shape in self.unconstrained_shapes().values()))

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.sites,), (("sites",), {})

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        return isinstance(other, SitesTransform) and self.sites.eq(other.sites, static)

    def _transforms(self) -> dict[str, Transform]:
        return {name: biject_to(self.sites.supports[name]) for name in self.sites.shapes}

    def unconstrained_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every site's part of the real vector, by name."""
        return {name: t.inverse_shape(self.sites.shapes[name]) for name, t in self._transforms().items()}

    def _parts(self, x: Float[Array, "*batch dim"]) -> list[tuple[str, Transform, Array]]:
        """Every site's transform with its part of the unconstrained vector, in the shape that the transform takes."""
        shapes = self.unconstrained_shapes()
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        parts = jnp.split(x, ends[:-1], axis=-1)
        return [
            (name, transform, part.reshape(*x.shape[:-1], *shapes[name]))
            for part, (name, transform) in zip(parts, self._transforms().items())
        ]


biject_to.register(Sites, SitesTransform)


def table_as_sites(value: Any) -> Any:
    """A dict of a pandas DataFrame's columns, or of an xarray Dataset's variables; other data stay as they are.

    Names are strings. Rows of a Dataset are along the first dimension of its variables.

    Raises:
        ValueError: if two columns have the same name.
    """
    pandas, xarray = (
        sys.modules.get("pandas"),
        sys.modules.get("xarray"),
    )  # such an object exists only if it is imported
    if xarray is not None and isinstance(value, xarray.Dataset):
        return {str(name): variable.values for name, variable in value.data_vars.items()}
    if pandas is None or not isinstance(value, pandas.DataFrame):
        return value
    names = [str(name) for name in value.columns]
    if len(set(names)) < len(names):
        raise ValueError(f"expected a DataFrame with columns of different names, got {names}")
    return {name: value.iloc[:, i] for i, name in enumerate(names)}
