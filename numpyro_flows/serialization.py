"""Flows to a file and back: a `.npz` archive of the arrays and one JSON text of the structure around them.

No pickle, and nothing that a file says is run: it names classes and functions of packages that are trusted, and loading
builds modules and distributions only, without running their constructors.
"""

import dataclasses
import importlib
import json
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

FORMAT = 1
"""Version of the files. A change that older code would misread raises it."""

_HEADER = "structure"
_TRUSTED = ("numpyro_flows", "diffrax", "equinox", "flowjax", "jax", "lineax", "numpyro", "optimistix", "paramax")
_OBJECTS = (eqx.Module, dist.Distribution, Transform, Constraint)


def save_tree(path: str | os.PathLike, kind: str, tree: Any) -> None:
    """Write a tree of arrays, plain values, containers, Equinox modules and NumPyro's distributions to `path`.

    Args:
        path: the file.
        kind: what it is, in a word, which `load_tree` checks.
        tree: what to write.

    Raises:
        TypeError: where the tree holds anything else; functions are kept by name and must be importable.
    """
    arrays: dict[str, np.ndarray] = {}
    header = json.dumps({"format": FORMAT, "kind": kind, "tree": _encode(tree, arrays)})
    with open(path, "wb") as file:  # a handle, as np.savez adds an ending to a bare name
        np.savez(file, allow_pickle=False, **{_HEADER: np.array(header)} | arrays)


def load_tree(path: str | os.PathLike, kind: str, *, trusted: Sequence[str] = ()) -> Any:
    """The tree that `save_tree` wrote to `path`.

    Args:
        path: the file.
        kind: what it must be.
        trusted: packages whose classes and functions it may name, beside this library and those it stands on.

    Raises:
        ValueError: where the file is none of `save_tree`'s, of another kind, truncated, written by a newer version, or
            names something that is not in a trusted package.
    """
    try:
        # opened here, as np.load leaves a truncated file open
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        header = json.loads(str(arrays.pop(_HEADER)))
        version, found, structure = header["format"], header["kind"], header["tree"]
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"expected a whole file saved by numpyro_flows, got {os.fspath(path)!r} ({error})") from error
    if version > FORMAT:
        raise ValueError(
            f"expected a file of format {FORMAT} at most, got format {version} of a newer numpyro_flows: update it"
        )
    if found != kind:
        raise ValueError(f"expected a file with a {kind}, got one with a {found}: {os.fspath(path)!r}")
    return _decode(structure, arrays, (*_TRUSTED, *trusted))


def _encode(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if isinstance(node, (jax.Array, np.ndarray, np.generic)):
        name = f"array{len(arrays)}"
        arrays[name] = np.asarray(node)
        return {"array": name, "numpy": not isinstance(node, jax.Array)}
    if isinstance(node, tuple) and type(node) is not tuple:
        return {"named": _name(type(node)), "items": [_encode(item, arrays) for item in node]}
    if isinstance(node, (tuple, list)):
        return {type(node).__name__: [_encode(item, arrays) for item in node]}
    if isinstance(node, dict) and all(isinstance(key, str) for key in node):
        return {"dict": {key: _encode(item, arrays) for key, item in node.items()}}
    if isinstance(node, _OBJECTS):
        state = vars(node)
        if isinstance(node, eqx.Module):  # beside its fields Equinox keeps markers of its own
            state = {field.name: state[field.name] for field in dataclasses.fields(node) if field.name in state}
        if isinstance(node, Transform):  # a weak reference to its inverse
            state = {key: value for key, value in state.items() if key != "_inv"}
        return {"object": _name(type(node)), "state": {k: _encode(v, arrays) for k, v in state.items()}}
    if callable(node) and hasattr(node, "__qualname__"):
        return {"function": _name(node)}
    raise TypeError(f"cannot save a {type(node).__module__}.{type(node).__qualname__}: {node!r}")


def _decode(node: Any, arrays: dict[str, np.ndarray], trusted: Sequence[str]) -> Any:
    if not isinstance(node, dict):
        return node
    if "array" in node:
        array = arrays[node["array"]]
        return array if node["numpy"] else jnp.asarray(array)
    if "named" in node:
        cls = _find(node["named"], trusted)
        if not (isinstance(cls, type) and issubclass(cls, tuple)):
            raise ValueError(f"expected a named tuple, got {node['named']}")
        return tuple.__new__(cls, [_decode(item, arrays, trusted) for item in node["items"]])
    if "tuple" in node:
        return tuple(_decode(item, arrays, trusted) for item in node["tuple"])
    if "list" in node:
        return [_decode(item, arrays, trusted) for item in node["list"]]
    if "dict" in node:
        return {key: _decode(item, arrays, trusted) for key, item in node["dict"].items()}
    if "function" in node:
        return _find(node["function"], trusted)
    cls = _find(node["object"], trusted)
    if not (isinstance(cls, type) and issubclass(cls, _OBJECTS)):
        raise ValueError(f"expected a module or a distribution, got {node['object']}")
    instance = object.__new__(cls)
    for key, value in node["state"].items():
        object.__setattr__(instance, key, _decode(value, arrays, trusted))
    return instance


def _name(thing: Any) -> str:
    name = f"{thing.__module__}:{thing.__qualname__}"
    try:
        found = _get(name)
    except (AttributeError, ImportError):
        found = None
    if found is not thing:
        raise TypeError(f"cannot save {thing!r}: it cannot be imported as {name}")
    return name


def _find(name: str, trusted: Sequence[str]) -> Any:
    """The class or function of that name, which must be defined where the name says, in a trusted package.

    Raises:
        ValueError: where it is not: importing a module runs it, and a module's own imports are in its reach.
    """
    module, _, path = name.partition(":")
    if module.split(".")[0] not in trusted:
        raise ValueError(f"expected names of {list(trusted)}, got {name!r}: if you trust it, say so by `trusted`")
    try:
        found = _get(name)
    except (AttributeError, ImportError) as error:
        raise ValueError(f"expected a file that this version can read, got one with {name!r} ({error})") from error
    if (getattr(found, "__module__", None), getattr(found, "__qualname__", None)) != (module, path):
        raise ValueError(f"expected a class or function that {module!r} defines, got {name!r}")
    return found


def _get(name: str) -> Any:
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found
