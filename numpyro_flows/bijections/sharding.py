"""Values inside `jax.shard_map`, whose types say over which axes of devices they vary."""

from typing import Any

import jax
from jaxtyping import PyTree


def alike[T: PyTree](values: T, *others: PyTree) -> T:
    """`values`, marked as varying over every axis that one of them or of `others` varies over.

    Loops want a carry to have one type from start to end, and what enters as the same on all devices may leave as
    different ones. Outside `jax.shard_map` nothing varies, and nothing is done.
    """
    axes = frozenset[Any]().union(*map(_varying, jax.tree.leaves((values, others))))
    if not axes:
        return values

    def mark(leaf: Any) -> Any:
        missing = axes - _varying(leaf)
        return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(mark, values)


def _varying(leaf: Any) -> frozenset[Any]:
    kind: Any = jax.typeof(leaf)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # from jax 0.12 on
