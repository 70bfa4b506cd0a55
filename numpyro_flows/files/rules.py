"""How each class is split into fields and rebuilt from them; constructors of modules are not run."""

import dataclasses
import typing
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import numpyro.distributions as dist
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

from numpyro_flows.files.kinds import Number, describe
from numpyro_flows.files.numpyro_fields import FIELDS, KINDS

BASES = (eqx.Module, dist.Distribution, Transform, Constraint)


class Rule(NamedTuple):
    """The fields of a class with their kinds, and the two directions. Without `kinds`, fields may be anything."""

    kinds: dict[str, Any] | None
    take_apart: Callable[[Any], dict[str, Any]]
    build: Callable[[dict[str, Any]], Any]


def rule_of(cls: type) -> Rule | None:
    """The rule of a class; None if files cannot store its instances."""
    if (kinds := vars(cls).get("FILE_KINDS")) is not None:  # a class of this library that declares what a file stores
        return Rule(kinds, cls.file_fields, cls.from_file_fields)
    if issubclass(cls, tuple) and (fields := getattr(cls, "_fields", None)) is not None:
        return Rule(_hints(cls, fields), lambda node: node._asdict(), lambda fields: cls(**fields))
    if issubclass(cls, eqx.Module):
        names = [field.name for field in dataclasses.fields(cls)]
        return Rule(
            _hints(cls, names),
            lambda node: {name: getattr(node, name) for name in names},
            lambda fields: _build_module(cls, fields),
        )
    if issubclass(cls, dist.Distribution):
        names = sorted({*cls.gather_pytree_data_fields(), *cls.gather_pytree_aux_fields()})
        return Rule(
            {name: KINDS.get(name, Number | None) for name in names},
            lambda node: {name: vars(node).get(name) for name in names},
            lambda fields: _build_distribution(cls, fields),
        )
    if issubclass(cls, Transform | Constraint):
        listed = FIELDS.get(cls.__name__) if cls.__module__.startswith("numpyro.distributions.") else None
        kinds = None if listed is None else {name: KINDS.get(name, Number | None) for name in listed.split()}
        return Rule(kinds, _pytree_fields, lambda fields: _build_plain(cls, fields))
    return None


class InFiles:
    """A class that declares by `FILE_KINDS` which arguments and attributes a file stores."""

    FILE_KINDS: typing.ClassVar[dict[str, Any]]

    def file_fields(self) -> dict[str, Any]:
        """The values of the fields."""
        return {name: getattr(self, name) for name in self.FILE_KINDS}

    @classmethod
    def from_file_fields(cls, fields: dict[str, Any]) -> Any:
        """The object with these fields, each of its declared kind."""
        return cls(**fields)


def _hints(cls: Any, names: Iterable[str]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError):  # a user's own, which names what is imported for type checking only
        hints = {}
    return {name: hints.get(name, Any) for name in names}


def _build_module(cls: type, fields: dict[str, Any]) -> Any:
    instance = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(instance, name, value)
    for base in cls.__mro__:  # what the class itself checks of its fields
        if "__check_init__" in vars(base):
            vars(base)["__check_init__"](instance)
    return instance


def _build_distribution(cls: type, fields: dict[str, Any]) -> Any:
    instance = object.__new__(cls)
    # None is not set if the class has its own value, such as one that is computed on request
    vars(instance).update({k: v for k, v in fields.items() if v is not None or not hasattr(cls, k)})
    return instance


def _pytree_fields(node: Any) -> dict[str, Any]:
    children, (names, rest) = node.tree_flatten()
    return {**dict(zip(names, children)), **rest}


def _build_plain(cls: type, fields: dict[str, Any]) -> Any:
    shadowed = [name for name in fields if callable(getattr(cls, name, None))]
    if shadowed:  # fields of a user's own class, without declarations
        raise ValueError(f"expected fields of {describe(cls)}, got {shadowed}, which are methods")
    instance = object.__new__(cls)
    vars(instance).update(fields)
    return instance
