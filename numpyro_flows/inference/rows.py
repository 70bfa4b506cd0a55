"""The rows of a subsampled plate, which a density reads in blocks: all of them, in the memory of one block."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree
from numpyro.primitives import Messenger

RowNumbers = Int[Array, " block"]


class Rows(NamedTuple):
    """The subsampled plate of a model.

    Attributes:
        plate: its name.
        size: its number of rows.
        block: its `subsample_size`, the number of rows that are read at a time.
        inside: names of the sites in it, of which a run of the model has a block only.
    """

    plate: str
    size: int
    block: int
    inside: frozenset[str]

    @classmethod
    def of(cls, sites: dict[str, dict[str, Any]]) -> "Rows | None":
        """The subsampled plate in a trace of `WithRows(model)`; None where there is none.

        Raises:
            ValueError: where there are several, or one has latent sites inside.
        """
        plates = {name: site["args"] for name, site in sites.items() if site["type"] == "plate"}
        subsampled = {name: args for name, args in plates.items() if is_subsampled(*args)}
        if not subsampled:
            return None
        if len(subsampled) > 1:
            raise ValueError(
                f"expected at most one subsampled plate, got {list(subsampled)}: leave subsample_size out of all but "
                "the largest"
            )
        ((plate, (size, block)),) = subsampled.items()
        inside = {name: site for name, site in sites.items() if plate in _plates_around(site)}
        latent = [name for name, site in inside.items() if site["type"] == "sample" and not site["is_observed"]]
        if latent:
            raise ValueError(
                f"expected latent sites outside of the subsampled plate {plate!r}, got {latent}: a block of rows does "
                "not know the others' values; marginalise them, or leave subsample_size out"
            )
        return cls(plate, size, block, frozenset(inside))

    def mean[T: PyTree](self, of_block: Callable[[RowNumbers], T]) -> T:
        """The mean of `of_block(rows)` over blocks that have every row once, weighted by their numbers of rows.

        The log density with a block counts it as the whole, so this is the one with all rows.
        """
        full, rest = divmod(self.size, self.block)
        first = jnp.arange(self.block)

        def add(sums: Any, number: Array) -> tuple[Any, None]:
            # with what rounding lost so far (Kahan 1965): 1e6 rows in single precision lose a nat otherwise
            total, lost = sums
            term = jax.tree.map(jnp.subtract, of_block(first + number * self.block), lost)
            new = jax.tree.map(jnp.add, total, term)
            return (new, jax.tree.map(lambda new, total, term: (new - total) - term, new, total, term)), None

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_block, first))
        (total, _), _ = jax.lax.scan(add, (zeros, zeros), jnp.arange(full))
        mean = jax.tree.map(lambda leaf: leaf * (self.block / self.size), total)
        if rest == 0:
            return mean
        last = of_block(jnp.arange(full * self.block, self.size))
        return jax.tree.map(lambda leaf, other: leaf + other * (rest / self.size), mean, last)


class WithRows(Messenger):
    """A handler that gives a model's subsampled plate these rows, or the first ones; it changes no other model.

    An `np.memmap` in `numpyro.subsample` stays on disk: rows along its first axis are read from it when they are used.
    """

    def __init__(self, fn: Callable | None = None, rows: RowNumbers | None = None):
        super().__init__(fn)
        self._rows = rows
        self._current: RowNumbers | None = None

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "plate" and is_subsampled(*msg["args"]):
            size, block = msg["args"]
            self._current = jnp.arange(block) if self._rows is None else self._rows
            msg["args"], msg["value"] = (size, self._current.shape[0]), self._current
        elif msg["type"] == "subsample" and isinstance(msg["value"], np.memmap) and self._current is not None:
            msg["value"] = _read(msg["value"], self._current)
            msg["kwargs"] = {"event_dim": None}  # which tells the plate that this is done


def is_subsampled(size: int, subsample_size: int | None) -> bool:
    """Whether a plate of these arguments has a part of its rows only."""
    return subsample_size is not None and subsample_size != size


def _read(array: np.memmap, rows: RowNumbers) -> Array:
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    shape = (rows.shape[0], *array.shape[1:])
    if dtype.itemsize < 8:
        like = jax.ShapeDtypeStruct(shape, dtype)
        return jax.pure_callback(lambda rows: np.asarray(array[np.asarray(rows)], dtype), like, rows)
    # in halves: within `with jax.enable_x64(True)` the thread of the callback still has single precision
    like = jax.ShapeDtypeStruct((*shape, 2), np.uint32)
    halves = jax.pure_callback(
        lambda rows: np.asarray(array[np.asarray(rows)], dtype, order="C").view(np.uint32).reshape(like.shape),
        like,
        rows,
    )
    return jax.lax.bitcast_convert_type(halves, dtype)


def _plates_around(site: dict[str, Any]) -> list[str]:
    return [frame.name for frame in site.get("cond_indep_stack", ())]
