"""Trees whose leaves are fixed when they are made: the arrays among their values."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_pytree_node_class
class Split[T]:
    """A tree whose leaves are the values that were arrays when it was made; numbers and functions are its structure.

    Leaves may become anything (`None`, numbers, shapes) and arrays again: no operation on trees changes the structure.
    """

    def __init__(self, tree: T):
        leaves, self._structure = jax.tree.flatten(tree)
        is_array = tuple(isinstance(leaf, _ARRAYS) for leaf in leaves)
        self.arrays = tuple(leaf for leaf, array in zip(leaves, is_array) if array)
        self._rest = tuple(_Array if array else leaf for leaf, array in zip(leaves, is_array))
        self.num_axes = tuple(np.ndim(leaf) for leaf in self.arrays)

    @property
    def tree(self) -> T:
        arrays = iter(self.arrays)
        return jax.tree.unflatten(self._structure, [next(arrays) if leaf is _Array else leaf for leaf in self._rest])

    def tree_flatten(self) -> tuple[Any, Any]:
        return self.arrays, (self._structure, self._rest, self.num_axes)

    @classmethod
    def tree_unflatten(cls, aux_data: Any, arrays: Any) -> "Split[Any]":
        self = cls.__new__(cls)
        self.arrays = tuple(arrays)
        self._structure, self._rest, self.num_axes = aux_data
        return self

    def __deepcopy__(self, memo: Any) -> "Split[T]":
        return jax.tree.map(lambda leaf: copy.deepcopy(leaf, memo), self)

    def __getstate__(self) -> tuple[Any, ...]:
        return jax.tree.unflatten(self._structure, self._rest), self.arrays, self.num_axes  # JAX pickles no structures

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        rest, self.arrays, self.num_axes = state
        leaves, self._structure = jax.tree.flatten(rest)
        self._rest = tuple(leaves)


class _Array:
    """Marks the place of an array that was taken out."""


_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


def leading_shape(arrays: Any, num_axes: Any) -> tuple[int, ...]:
    """The axes that `lax.scan` or `vmap` put in front of arrays that once had `num_axes`."""
    return jnp.broadcast_shapes(*(np.shape(array)[: np.ndim(array) - num] for array, num in zip(arrays, num_axes)))


def over_leading_axis(
    function: Callable[..., Any], arrays: Any, num_axes: Any, args: Any, axes: tuple[int, int]
) -> Any:
    """`function(arrays, args)` for every index of the first leading axis.

    Args:
        function: a function of arrays without that axis.
        arrays: arrays with or without the axis; an axis of length 1 fits any length.
        num_axes: see `leading_shape`.
        args: a tree of arrays that all have it.
        axes: place of the axis in `args` and in the results.
    """
    most = len(leading_shape(arrays, num_axes))
    has = [np.ndim(array) - num == most for array, num in zip(arrays, num_axes)]
    alone = [has and len(array) == 1 for array, has in zip(arrays, has)]
    arrays = tuple(array[0] if alone else array for array, alone in zip(arrays, alone))
    in_axes = tuple(0 if has and not alone else None for has, alone in zip(has, alone))
    return jax.vmap(function, in_axes=(in_axes, axes[0]), out_axes=axes[1])(arrays, args)
