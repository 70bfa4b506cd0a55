"""The rows of a subsampled plate. A density reads all of them in blocks, in the memory of one block."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree
from numpyro.primitives import Messenger

from numpyro_flows.modeling._numpyro import open_plates
from numpyro_flows.training.ahead import NO_OPTIMIZATION

_POINTS = 4  # points at which a density is compared
_ROUNDING = 1e3, 1e-6  # units of precision, and a share of the whole, by which sums of rows may differ
RowNumbers = Int[Array, " block"]


class Rows(NamedTuple):
    """The subsampled plate of a model.

    Attributes:
        plate: name of the plate.
        size: number of its rows.
        block: its `subsample_size`, the number of rows that are read at a time.
        inside: names of the sites in it or depending on its rows; a run of the model has only a block of them.
    """

    plate: str
    size: int
    block: int
    inside: frozenset[str]

    @classmethod
    def of(cls, sites: dict[str, dict[str, Any]]) -> "Rows | None":
        """The subsampled plate in a trace of `WithRows(model)`; None if there is none.

        Raises:
            ValueError: if there are several, or one has latent sites inside.
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
                f"expected latent sites outside of the subsampled plate {plate!r}, got {latent}: a block of rows "
                "lacks the values of the other rows. Marginalise these sites, or leave subsample_size out"
            )
        return cls(plate, size, block, frozenset(inside))

    def mean[T: PyTree](self, of_block: Callable[[RowNumbers], T]) -> T:
        """The mean of `of_block(rows)` over blocks that have every row once, weighted by their numbers of rows.

        The log density with a block scales it to the whole, so this mean is the log density with all rows.
        """
        full, rest = divmod(self.size, self.block)
        first = jnp.arange(self.block)

        def add(sums: Any, number: Array) -> tuple[Any, None]:
            # plus the rounding errors so far (Kahan 1965), which add up over many blocks in single precision
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
    """A handler that gives a model's subsampled plate these rows, or the first ones; it leaves other models unchanged.

    An `np.memmap` in `numpyro.subsample` stays on disk: rows are read from it when they are used.
    """

    def __init__(self, fn: Callable | None = None, rows: RowNumbers | None = None):
        super().__init__(fn)
        self._rows = rows

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "plate" and is_subsampled(*msg["args"]):
            size, block = msg["args"]
            rows = jnp.arange(block) if self._rows is None else self._rows
            msg["args"], msg["value"] = (size, rows.shape[0]), rows
        elif msg["type"] == "subsample" and isinstance(msg["value"], np.memmap):
            array, event_dim = msg["value"], msg["kwargs"]["event_dim"]
            for plate in open_plates():
                axis = plate.dim - event_dim + array.ndim
                # any other shape NumPyro itself broadcasts or refuses
                if len(plate.rows) < plate.size and axis >= 0 and array.shape[axis] == plate.size:
                    msg["value"] = _read(array, plate.rows, axis)
                    msg["kwargs"] = {"event_dim": None}  # so that the plates know that this is done


def is_subsampled(size: int, subsample_size: int | None) -> bool:
    """Whether a plate with these arguments has only a part of its rows."""
    return subsample_size is not None and subsample_size != size


def require_seen_plates(sites: dict[str, dict[str, Any]]) -> None:
    """Raise a ValueError if a site has only a part of its rows because of a plate that is not in the trace.

    For such a plate NumPyro draws the rows once for all.
    """
    for name, site in sites.items():
        unseen = [plate for plate in _plates_around(site) if plate not in sites]
        if site["type"] == "sample" and unseen and site.get("scale") is not None:
            raise ValueError(
                f"expected the plates of the site {name!r} in the model's trace, got {unseen} outside of it, with a "
                f"scale of {site['scale']}: make a subsampled plate in the model itself, not before, within scan, or "
                "hidden by a handler"
            )


def depending_on_rows(
    run: Callable[[Array, RowNumbers], tuple[Array, dict[str, Array]]], rows: Rows, dim: int
) -> frozenset[str]:
    """The deterministic sites outside the plate that still depend on its rows.

    `run(x, rows)` gives the log density with these rows in place of all, and the deterministic sites.

    Raises:
        ValueError: if the log density is not a sum over rows, for example because it uses a statistic of a block.
    """
    half = max(rows.block // 2, 1)
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(rng.integers(rows.size, size=half)) for _ in range(2))
    points = jnp.asarray(rng.uniform(-1.0, 1.0, (_POINTS, dim)), float)

    def at(x: Array) -> Any:
        (one, sites), (other, others) = run(x, first), run(x, second)
        both, _ = run(x, jnp.concatenate([first, second]))
        return one, other, both, {name: jnp.any(sites[name] != others[name]) for name in sites}

    one, other, both, differ = jax.jit(jax.vmap(at), compiler_options=NO_OPTIMIZATION)(points)
    mean, size = 0.5 * (one + other), 1.0 + jnp.maximum(jnp.abs(one), jnp.abs(other))
    apart = np.asarray(jnp.abs(both - mean) / size)
    if (apart > max(_ROUNDING[0] * jnp.finfo(apart.dtype).eps, _ROUNDING[1])).any():  # ignoring NaN
        raise ValueError(
            f"expected a log density that is a sum over the rows of the plate {rows.plate!r}, got one that is not: "
            f"with twice as many rows it is off by {np.nanmax(apart):.2g} of itself. Keep all that depends on rows in "
            "the plate, use no statistics of a block, such as its mean, and put no rows in numpyro.factor outside"
        )
    return frozenset(name for name, differs in differ.items() if np.asarray(differs).any())


def _read(array: np.memmap, rows: RowNumbers, axis: int) -> Array:
    """Rows of a file, read when the program runs."""
    if array.dtype.kind not in "biuf":
        raise TypeError(f"expected a file of real numbers, got an np.memmap of the type {array.dtype}")
    dtype = jax.dtypes.canonicalize_dtype(array.dtype.newbyteorder("="))
    shape = (*array.shape[:axis], rows.shape[0], *array.shape[axis + 1 :])

    def read(rows: Any) -> np.ndarray:
        index = (slice(None),) * axis + (np.asarray(rows),)
        return np.ascontiguousarray(array[index], dtype)

    if dtype.itemsize < 8:
        return jax.pure_callback(read, jax.ShapeDtypeStruct(shape, dtype), rows)
    # in halves: within `with jax.enable_x64(True)` the thread of the callback still has single precision
    halves = jax.ShapeDtypeStruct((*shape, 2), np.uint32)
    both = jax.pure_callback(lambda rows: read(rows).view(np.uint32).reshape(halves.shape), halves, rows)
    return jax.lax.bitcast_convert_type(both, dtype)


def _plates_around(site: dict[str, Any]) -> list[str]:
    return [frame.name for frame in site.get("cond_indep_stack", ())]
