"""Flows to a file and back: a `.npz` archive of the arrays and one JSON text of the structure around them.

No pickle: a file names classes and functions, and loading builds modules and distributions only, without running their
constructors.
"""

import dataclasses
import importlib
import json
import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

_STRUCTURE = "structure"


def save_tree(path: str | os.PathLike, tree: Any) -> None:
    """Write a tree of arrays, plain values, containers, Equinox modules and NumPyro distributions to `path`.

    Raises:
        TypeError: where the tree holds anything else; functions are kept by name and must be importable.
    """
    arrays: dict[str, np.ndarray] = {}
    structure = json.dumps(_encode(tree, arrays))
    with open(path, "wb") as file:  # a handle, as np.savez adds an ending to a bare name
        np.savez(file, allow_pickle=False, **{_STRUCTURE: np.array(structure)} | arrays)


def load_tree(path: str | os.PathLike) -> Any:
    """The tree that `save_tree` wrote to `path`.

    Raises:
        ValueError: where the file is not one of `save_tree`.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        structure = json.loads(str(arrays.pop(_STRUCTURE)))
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"expected a file saved by numpyro_flows, got {os.fspath(path)!r} ({error})") from error
    return _decode(structure, arrays)


def _encode(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if isinstance(node, (jax.Array, np.ndarray, np.generic)):
        name = f"array{len(arrays)}"
        arrays[name] = np.asarray(node)
        return {"array": name, "numpy": not isinstance(node, jax.Array)}
    if isinstance(node, (tuple, list)):
        return {type(node).__name__: [_encode(item, arrays) for item in node]}
    if isinstance(node, dict) and all(isinstance(key, str) for key in node):
        return {"dict": {key: _encode(item, arrays) for key, item in node.items()}}
    if isinstance(node, (eqx.Module, dist.Distribution)):
        state = vars(node)
        if isinstance(node, eqx.Module):  # beside its fields Equinox keeps markers of its own
            state = {field.name: state[field.name] for field in dataclasses.fields(node) if field.name in state}
        return {"object": _name(type(node)), "state": {k: _encode(v, arrays) for k, v in state.items()}}
    if callable(node) and hasattr(node, "__qualname__"):
        return {"function": _name(node)}
    raise TypeError(f"cannot save a {type(node).__module__}.{type(node).__qualname__}: {node!r}")


def _decode(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(node, dict):
        return node
    if "array" in node:
        array = arrays[node["array"]]
        return array if node["numpy"] else jnp.asarray(array)
    if "tuple" in node:
        return tuple(_decode(item, arrays) for item in node["tuple"])
    if "list" in node:
        return [_decode(item, arrays) for item in node["list"]]
    if "dict" in node:
        return {key: _decode(item, arrays) for key, item in node["dict"].items()}
    if "function" in node:
        return _find(node["function"])
    cls = _find(node["object"])
    if not (isinstance(cls, type) and issubclass(cls, (eqx.Module, dist.Distribution))):
        raise ValueError(f"expected a module or a distribution, got {node['object']}")
    instance = object.__new__(cls)
    for key, value in node["state"].items():
        object.__setattr__(instance, key, _decode(value, arrays))
    return instance


def _name(thing: Any) -> str:
    name = f"{thing.__module__}:{thing.__qualname__}"
    try:
        found = _find(name)
    except (AttributeError, ImportError):
        found = None
    if found is not thing:
        raise TypeError(f"cannot save {thing!r}: it cannot be imported as {name}")
    return name


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found
