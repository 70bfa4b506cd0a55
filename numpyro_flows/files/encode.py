"""From trees to structures: JSON that names classes of the table, beside the arrays."""

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_flows.files.container import checksum_of
from numpyro_flows.files.kinds import describe, fits
from numpyro_flows.files.rules import rule_of
from numpyro_flows.files.table import name_of, name_of_singleton

MAX_DEPTH = 100
"""Levels of nesting."""

KEY_IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
STORED_AS = {"bfloat16": np.uint16, "complex64": np.float32, "complex128": np.float64}
"""Element types that safetensors or its readers lack, and their stored types, with one axis more."""

ELEMENT_TYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", *STORED_AS),
)
NOT_FINITE = {"inf": np.inf, "-inf": -np.inf, "nan": np.nan}


class Writer:
    """Encodes a tree, and collects its arrays."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def encode(self, node: Any, path: str = "", depth: int = 0) -> Any:
        """The structure of a node in JSON; a TypeError if it is, or contains, something that a file cannot store."""
        if depth > MAX_DEPTH:
            raise TypeError(f"cannot save what is nested deeper than {MAX_DEPTH} levels: {path[:200]}")
        if isinstance(node, float) and not np.isfinite(node):
            return {"float": str(float(node))}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if isinstance(node, np.bool_ | np.integer):
            return node.item()
        if isinstance(node, jax.Array | np.ndarray | np.generic):
            return self._array(node, path)
        if (name := name_of_singleton(node)) is not None:
            return {"object": name}
        if type(node) in (tuple, list):
            items = [self.encode(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node)]
            return {type(node).__name__: items}
        if type(node) in (dict, OrderedDict):
            return self._dict(node, path, depth)
        return self._instance(node, path, depth)

    def _dict(self, node: dict, path: str, depth: int) -> Any:
        strange = [key for key in node if type(key) not in (str, int)]
        if strange:
            raise TypeError(f"cannot save a dict with other keys than strings and integers: {strange} in {path}")
        items = [[key, self.encode(value, f"{path}[{key!r}]", depth + 1)] for key, value in node.items()]
        return {"dict" if type(node) is dict else "ordered": items}

    def _array(self, node: jax.Array | np.ndarray | np.generic, path: str) -> Any:
        kind = "jax" if isinstance(node, jax.Array) else "numpy"
        if isinstance(node, jax.Array) and jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
            kind = str(jax.random.key_impl(node))
            if kind not in KEY_IMPLEMENTATIONS:
                raise TypeError(f"cannot save a random key of {kind}: {path}")
            node = jax.random.key_data(node)
        array = np.asarray(node)
        dtype = array.dtype.name
        if dtype not in ELEMENT_TYPES:
            raise TypeError(f"cannot save an array of {dtype}: {path}")
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(array.shape)
        if dtype in STORED_AS:
            array = array[..., None].view(STORED_AS[dtype])
        name = str(len(self.arrays))
        self.arrays[name] = array
        return {"array": name, "is": kind, "dtype": dtype, "checksum": checksum_of(array)}

    def _instance(self, node: Any, path: str, depth: int) -> Any:
        cls = type(node)
        name = name_of(cls) or f"{cls.__module__}.{cls.__qualname__}"
        rule = rule_of(cls)
        if rule is None:
            raise TypeError(f"cannot save a {name}{f' in {path}' if path else ''}: {_advice(node)}")
        fields = rule.take_apart(node)
        for field, value in fields.items():
            kind = Any if rule.kinds is None else rule.kinds.get(field)
            if kind is None or not fits(value, kind):
                raise TypeError(
                    f"cannot save {path}.{field} of {name}: expected {describe(kind)}, got {type(value).__name__}"
                )
        state = {field: self.encode(value, f"{path}.{field}", depth + 1) for field, value in fields.items()}
        return {"class": name, "fields": state}


def _advice(node: Any) -> str:
    if callable(node):
        return (
            f"{node!r} is not in the table of functions that files may name. Write it as the `__call__` of an "
            "equinox.Module, and give that class as `trusted` when you load the file"
        )
    return "files have arrays, numbers, strings, containers, Equinox modules and NumPyro's distributions"
