"""A fingerprint of a model's arguments, to check that a saved fit is loaded with the data that it was fitted to."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_ROWS = 4_096  # rows that are read at a time


class Fingerprint(NamedTuple):
    """Hashes of all arguments.

    single: hash of the arguments in single precision, as JAX sees them by default.
    double: hash of them in double precision; empty if JAX did not have it enabled.
    unknown: paths of arguments that are neither numbers nor strings; only their type is compared.
    """

    single: str
    double: str
    unknown: list[str]

    def is_of(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether other arguments have this fingerprint, at the precision that both have."""
        other = fingerprint(args, kwargs)
        return self.double == other.double if self.double and other.double else self.single == other.single


def fingerprint(args: tuple, kwargs: dict[str, Any]) -> Fingerprint:
    """The fingerprint of a model's arguments: containers of arrays, numbers and strings."""
    single, double, unknown = hashlib.sha256(), hashlib.sha256(), []
    leaves = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=lambda leaf: leaf is None)[0]
    for path, leaf in leaves:
        place = jax.tree_util.keystr(path)
        array = _numbers(leaf)
        if array is None and not (leaf is None or isinstance(leaf, str | bytes)):
            unknown.append(f"{place} ({type(leaf).__module__}.{type(leaf).__qualname__})")
        for digest, narrow in ((single, True), (double, False)):
            content = [repr(leaf if isinstance(leaf, str | bytes) else type(leaf)).encode()]
            length = len(content[0])
            if array is not None:
                length, content = _bytes(array, narrow=narrow)
            digest.update(f"{place} {length} ".encode())
            for part in content:
                digest.update(part)
    has_double = jnp.result_type(float) == np.float64
    return Fingerprint(single.hexdigest(), double.hexdigest() if has_double else "", unknown)


def _numbers(leaf: Any) -> np.ndarray | None:
    """A leaf as an array of numbers; None if it is not one."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if not (isinstance(leaf, bool | int | float | complex) or hasattr(leaf, "__array__")):
        return None
    array = np.asarray(leaf)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    return array if array.dtype.kind in "biufc" else None


def _bytes(array: np.ndarray, *, narrow: bool) -> tuple[int, Iterator[bytes]]:
    """Numbers as JAX sees them, as their number of bytes and the bytes in parts; all whole numbers have the same type.

    So have all real and all complex ones. The bytes come in parts because an array may be a file larger than memory.
    """
    types = {"f": np.float32 if narrow else np.float64, "c": np.complex64 if narrow else np.complex128}
    kind = np.dtype(types.get(array.dtype.kind, np.int64))
    header = f"{kind} {array.shape} ".encode()

    def parts() -> Iterator[bytes]:
        yield header
        for start in range(0, max(len(array), 1) if array.ndim else 1, _ROWS):
            with np.errstate(over="ignore"):
                yield (array[start : start + _ROWS] if array.ndim else array).astype(kind).tobytes()

    return len(header) + kind.itemsize * array.size, parts()
