"""Trees of arrays, plain values, modules and NumPyro's distributions, written to a file and read back."""

import os
from typing import Any

from numpyro_flows.files.atomic import write_whole
from numpyro_flows.files.container import BrokenFile, pack, unpack
from numpyro_flows.files.decode import Reader
from numpyro_flows.files.encode import Writer
from numpyro_flows.files.rules import BASES, rule_of


def save_tree(path: str | os.PathLike, kind: str, tree: Any) -> None:
    """Write a tree of arrays, plain values, containers, Equinox modules and NumPyro's distributions to `path`.

    The write is atomic: an interrupted call leaves the old file. `kind` describes the content in a word, which
        `load_tree` checks. It raises a TypeError if the tree contains anything else, such as a function that the table
        does not have.
    """
    writer = Writer()
    structure = writer.encode(tree)
    write_whole(path, pack(kind, structure, writer.arrays))


def load_tree(path: str | os.PathLike, kind: str, expected: Any, *, trusted: tuple[type, ...] = ()) -> Any:
    """The tree that `save_tree` wrote to `path`. It must be of that kind, and of the type hint `expected`.

    `trusted` are further classes that the file may contain; a TypeError is raised if they are not a tuple of classes.
    If anything is wrong with the file, a ValueError says what, and where in the structure.
    """
    classes = _by_name(trusted)
    with open(path, "rb") as file:
        data = file.read()
    try:
        found, structure, arrays = unpack(data)
        if found != kind:
            raise BrokenFile(f"expected a file with a {kind}, got one with a {found}")
        reader = Reader(arrays, classes)
        tree = reader.decode(structure, expected)
        if reader.arrays:
            raise BrokenFile(f"nothing refers to the arrays {sorted(reader.arrays)}")
    except BrokenFile as error:
        raise ValueError(f"expected a whole file saved by numpyro_flows, got {os.fspath(path)!r}: {error}") from error
    return tree


def _by_name(trusted: Any) -> dict[str, type]:
    """Trusted classes by their names in a file; a TypeError unless they are a tuple of classes that files can store."""
    if not isinstance(trusted, tuple | list):
        raise TypeError(f"trusted expected a tuple of classes, such as trusted=(MyBijection,), got {trusted!r}")
    for cls in trusted:
        if not isinstance(cls, type) or rule_of(cls) is None:
            raise TypeError(
                "trusted expected a tuple of classes, each an equinox.Module, a NamedTuple or one of NumPyro's "
                f"{[base.__name__ for base in BASES[1:]]}, got {cls!r}"
            )
    return {f"{cls.__module__}.{cls.__qualname__}": cls for cls in trusted}
