"""From structures to trees: objects of the table's classes, and of classes that the caller trusts, field by field.

Nothing in a file is run, imported or looked up as an attribute.
"""

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_flows.files import table
from numpyro_flows.files.container import BrokenFile, checksum_of
from numpyro_flows.files.encode import ELEMENT_TYPES, KEY_IMPLEMENTATIONS, MAX_DEPTH, NOT_FINITE, STORED_AS
from numpyro_flows.files.kinds import describe, fits
from numpyro_flows.files.rules import rule_of


class Reader:
    """Decodes a structure. An array that was used is removed, so that none is used twice."""

    def __init__(self, arrays: dict[str, np.ndarray], trusted: dict[str, type]):
        self.arrays = arrays
        self.trusted = trusted

    def decode(self, node: Any, kind: Any, path: str = "", depth: int = 0) -> Any:
        """The value of a structure; a `BrokenFile` if it is not of `kind`, or is invalid."""
        if depth > MAX_DEPTH:
            raise _wrong(path[:200], f"expected at most {MAX_DEPTH} levels of nesting, got more")
        value = self._value(node, path, depth)
        if not fits(value, kind):
            raise _wrong(path, f"expected {describe(kind)}, got {_shown(value)}")
        return value

    def _value(self, node: Any, path: str, depth: int) -> Any:
        if node is None or isinstance(node, bool | int | float | str):
            return node
        match node:
            case {"float": str() as text} if len(node) == 1 and text in NOT_FINITE:
                return NOT_FINITE[text]
            case {"tuple": list() as items} if len(node) == 1:
                return tuple(self._items(items, path, depth))
            case {"list": list() as items} if len(node) == 1:
                return self._items(items, path, depth)
            case {"dict": list() as items} if len(node) == 1:
                return dict(self._pairs(items, path, depth))
            case {"ordered": list() as items} if len(node) == 1:
                return OrderedDict(self._pairs(items, path, depth))
            case {"object": str() as name} if len(node) == 1:
                return self._object(name, path)
            case {"class": str() as name, "fields": dict() as fields} if len(node) == 2:
                return self._instance(name, fields, path, depth)
            case {
                "array": str() as name,
                "is": str() as what,
                "dtype": str() as dtype,
                "checksum": str() as checksum,
            } if len(node) == 4:
                return self._array(path, name, what, dtype, checksum)
        raise _wrong(path, f"expected a value, an array, a container or an object of a class, got {_shown(node)}")

    def _items(self, items: list, path: str, depth: int) -> list:
        return [self.decode(item, Any, f"{path}[{i}]", depth + 1) for i, item in enumerate(items)]

    def _pairs(self, items: list, path: str, depth: int) -> list[tuple[str | int, Any]]:
        if not all(isinstance(item, list) and len(item) == 2 and type(item[0]) in (str, int) for item in items):
            raise _wrong(path, "expected pairs of a key and a value")
        if len({item[0] for item in items}) < len(items):
            raise _wrong(path, "a key occurs twice")
        return [(key, self.decode(value, Any, f"{path}[{key!r}]", depth + 1)) for key, value in items]

    def _object(self, name: str, path: str) -> Any:
        found = self._find(name, path)
        if isinstance(found, type):
            raise _wrong(path, f"expected a function or constraint of the table, got the class {name!r}")
        return found

    def _find(self, name: str, path: str) -> Any:
        if name in self.trusted:
            return self.trusted[name]
        try:
            return table.find(name)
        except KeyError:
            raise _wrong(
                path,
                f"the file has {name!r}, which is not in the table of names for files. If it is your class "
                f"or FlowJAX's, and you trust the file, load it with `trusted=({name.rpartition('.')[2]},)`",
            ) from None
        except ImportError as error:
            raise _wrong(path, f"the installed packages do not have {name!r} ({error})") from error

    def _array(self, path: str, name: str, kind: str, dtype: str, checksum: str) -> Any:
        array = self.arrays.pop(name, None)
        if array is None:
            raise _wrong(path, f"expected an array that nothing else refers to, got {name!r}")
        if dtype not in ELEMENT_TYPES or array.dtype != np.dtype(STORED_AS.get(dtype, dtype)):
            raise _wrong(path, f"expected an array of {dtype}, got one stored as {array.dtype}")
        if checksum_of(array) != checksum:
            raise _wrong(path, "the checksum of the array is wrong: the file was changed or damaged")
        array = array.copy()
        try:
            if dtype in STORED_AS:
                array = array.view(jnp.dtype(dtype))[..., 0]
            if kind == "numpy":
                return array
            if kind == "jax":
                return jnp.asarray(array)
            if kind in KEY_IMPLEMENTATIONS:
                return jax.random.wrap_key_data(jnp.asarray(array), impl=kind)
        except Exception as error:  # of NumPy's and JAX's, for shapes that do not fit
            raise _wrong(path, str(error)) from error
        raise _wrong(path, f"expected an array of jax, numpy or a random key, got {kind!r}")

    def _instance(self, name: str, fields: dict[str, Any], path: str, depth: int) -> Any:
        cls = self._find(name, path)
        rule = rule_of(cls) if isinstance(cls, type) else None
        if rule is None:
            raise _wrong(path, f"expected a class, got {name!r}")
        if rule.kinds is not None and fields.keys() != rule.kinds.keys():
            missing, extra = sorted(rule.kinds.keys() - fields.keys()), sorted(fields.keys() - rule.kinds.keys())
            raise _wrong(path, f"expected exactly the fields of {name}: missing are {missing}, not of it {extra}")
        kinds = dict.fromkeys(fields, Any) if rule.kinds is None else rule.kinds
        values = {
            field: self.decode(node, kinds[field], f"{path}.{field}", depth + 1) for field, node in fields.items()
        }
        try:
            return rule.build(values)
        except Exception as error:  # of the class's own checks
            raise _wrong(path, f"{name} cannot have these fields: {error}") from error


def _wrong(path: str, what: str) -> BrokenFile:
    return BrokenFile(f"at {path.lstrip('.') or 'the top'}: {what}")


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, bool | int | float | str | dict) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}..."
