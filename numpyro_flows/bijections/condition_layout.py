"""Conditions of several arrays as one vector, and back."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from numpyro_flows.arguments import as_array, described

Kind = Literal["real", "whole", "flag"]
"""Of numbers: floating-point, integers, booleans."""


class Leaf(NamedTuple):
    """One array of a condition: the keys that lead to it, its shape, and its kind of numbers."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    kind: Kind

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def label(self) -> str:
        """As code: `condition['image']`."""
        return "condition" + "".join(f"[{key!r}]" for key in self.path)


class ConditionLayout(NamedTuple):
    """The layout of a condition as one vector. The condition is an array or a dict of arrays (or of such dicts).

    The vector has the raveled arrays one after another, those of a dict in the order of sorted keys. Integers and
    booleans become floating-point numbers in it; `unpack` restores their types. The object has only names and shapes:
    files can store it, and it can be a static field of a module.

    Attributes:
        leaves: the arrays. A condition that is an array is one leaf with an empty path.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import ConditionLayout
        >>> condition = {"table": jnp.ones(2), "image": jnp.zeros((3, 3))}
        >>> layout = ConditionLayout.of(condition)
        >>> layout.pack(condition).shape, layout.unpack(layout.pack(condition))["image"].shape
        ((11,), (3, 3))
    """

    leaves: tuple[Leaf, ...]

    @classmethod
    def of(cls, condition: Any, num_batch_axes: int = 0) -> "ConditionLayout":
        """The layout of a condition whose arrays begin with `num_batch_axes` axes of a batch.

        Raises:
            TypeError: for arrays that are not numbers, and dicts whose keys are not strings.
            ValueError: for an empty dict, and arrays with fewer axes.
        """
        leaves = []
        for path, value in _walk(condition, ()):
            leaf = Leaf(path, (), "real")
            array = as_array(value, leaf.label) if not hasattr(value, "dtype") else value
            shape = tuple(array.shape)
            if len(shape) < num_batch_axes:
                raise ValueError(f"{leaf.label} expected an array with {num_batch_axes} axis or more, got {shape}")
            leaves.append(leaf._replace(shape=shape[num_batch_axes:], kind=_kind_of(array.dtype)))
        return cls(tuple(leaves))

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(leaf.size for leaf in self.leaves)

    def slices(self) -> Iterator[tuple[Leaf, slice]]:
        """Each array, and the place of its numbers in the vector."""
        start = 0
        for leaf in self.leaves:
            yield leaf, slice(start, start + leaf.size)
            start += leaf.size

    def pack(self, condition: Any) -> Float[Array, "*batch size"]:
        """A condition, or a batch of them, as vectors. The batch shapes of the arrays broadcast.

        Raises:
            TypeError: for arrays that are not numbers.
            ValueError: if keys or shapes are not those of the layout, or batch shapes do not fit together.
        """
        arrays = [as_array(value, leaf.label) for leaf, value in zip(self.leaves, self.values(condition))]
        batches = []
        for leaf, array in zip(self.leaves, arrays):
            cut = array.ndim - len(leaf.shape)
            if cut < 0 or array.shape[cut:] != leaf.shape:
                raise ValueError(f"{leaf.label} expected a shape that ends with {leaf.shape}, got {array.shape}")
            batches.append(array.shape[:cut])
        try:
            batch = jnp.broadcast_shapes(*batches)
        except ValueError as error:
            raise ValueError(f"condition expected arrays of one batch shape, got {batches}") from error
        dtype = jnp.result_type(float, *(array.dtype for array in arrays if jnp.issubdtype(array.dtype, jnp.inexact)))
        flat = [
            jnp.broadcast_to(array.reshape(*own, leaf.size).astype(dtype), (*batch, leaf.size))
            for leaf, array, own in zip(self.leaves, arrays, batches)
        ]
        return jnp.concatenate(flat, axis=-1)

    def unpack(self, vector: Float[Array, "*batch size"]) -> Any:
        """The condition, or the batch of conditions, that `pack` made vectors of."""
        condition: Any = {}
        for leaf, where in self.slices():
            array = vector[..., where].reshape(*vector.shape[:-1], *leaf.shape)
            if leaf.kind != "real":
                array = array != 0 if leaf.kind == "flag" else jnp.round(array).astype(int)
            if not leaf.path:
                return array
            inner = condition
            for key in leaf.path[:-1]:
                inner = inner.setdefault(key, {})
            inner[leaf.path[-1]] = array
        return condition

    def values(self, condition: Any) -> list[Any]:
        """The arrays of a condition in the order of `leaves`; a ValueError if it has other keys."""
        found = dict(_walk(condition, ()))
        if found.keys() != {leaf.path for leaf in self.leaves}:
            got = f"a dict of {_named(found)}" if isinstance(condition, Mapping) else described(condition)
            raise ValueError(f"condition expected {self}, got {got}")
        return [found[leaf.path] for leaf in self.leaves]

    def abstract(self) -> Any:
        """A condition without values, for `jax.eval_shape`."""
        return jax.eval_shape(self.unpack, jax.ShapeDtypeStruct((self.size,), jnp.result_type(float)))

    def __str__(self) -> str:
        if self.leaves[0].path == ():
            return f"an array of shape (..., *{self.leaves[0].shape})"
        return f"a dict of {_named({leaf.path: leaf.shape for leaf in self.leaves})}"

    def require_valid(self) -> None:
        """Raise a ValueError if it cannot be the layout of a condition: a file may contain anything."""
        paths = [leaf.path for leaf in self.leaves]
        below = {path[:end] for path in paths for end in range(len(path))}
        good = all(leaf.kind in get_args(Kind) and min((0, *leaf.shape)) >= 0 for leaf in self.leaves)
        if not paths or len(set(paths)) < len(paths) or below & set(paths) or not good:
            raise ValueError(f"expected a layout of arrays with keys of their own, got {self.leaves}")


def _walk(condition: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays of a condition with the keys that lead to them, in sorted order, which JAX's trees have, too."""
    if not isinstance(condition, Mapping):
        yield path, condition
        return
    name = Leaf(path, (), "real").label
    if strange := [key for key in condition if not isinstance(key, str)]:
        raise TypeError(f"{name} expected a dict whose keys are strings, got {strange}")
    if not condition:
        raise ValueError(f"{name} expected at least one array, got an empty dict")
    for key in sorted(condition):
        yield from _walk(condition[key], (*path, key))


def _named(found: Mapping[tuple[str, ...], Any]) -> str:
    """Keys, and shapes where there are some."""
    shapes = {".".join(path): getattr(value, "shape", value) for path, value in found.items()}
    return str({name: shape if isinstance(shape, tuple) else described(shape) for name, shape in shapes.items()})


def _kind_of(dtype: Any) -> Kind:
    if dtype == np.bool_:
        return "flag"
    return "whole" if jnp.issubdtype(dtype, jnp.integer) else "real"
