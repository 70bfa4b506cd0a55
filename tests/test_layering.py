"""Imports point down only, from room to room, and NumPyro enters above the maths."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import numpyro_flows

PACKAGE = Path(__file__).parents[1] / "numpyro_flows"

# What a room, a folder or a file that stands alone, may import; from the bottom up.
_MATHS = {"_jax", "arguments", "precision", "picture", "networks", "embeddings"}
_MATHS |= {"bijections", "continuous", "gaussianization", "flows"}
_WORDS = _MATHS | {"files", "modeling", "training"}
ROOMS: dict[str, set[str]] = {
    "_jax": set(),
    "arguments": set(),
    "precision": set(),
    "picture": set(),
    "networks": {"arguments"},
    "embeddings": {"arguments", "networks"},
    "bijections": {"_jax", "arguments", "precision", "networks"},
    "continuous": {"arguments", "networks", "bijections"},
    "gaussianization": {"arguments", "precision", "picture", "bijections"},
    "flows": _MATHS,
    "files": {"bijections"},
    "modeling": _MATHS | {"files"},
    "training": _MATHS | {"files"},
    # stories, which do not know each other, but for the density that a posterior's draws become
    "density": _WORDS,
    "latent_ode": _WORDS,
    "inference": _WORDS | {"density"},
    "amortized": _WORDS | {"embeddings", "density", "inference"},
    # what looks at results
    "plots": {"arguments"},
    "flow_plots": _WORDS,
    "diagnostics": _WORDS | {"plots", "inference", "amortized"},
}
WITH_NUMPYRO = {
    "files",
    "modeling",
    "density",
    "latent_ode",
    "inference",
    "amortized",
    "plots",
    "flow_plots",
    "diagnostics",
}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")  # the contents page


def room(path: Path) -> str:
    """The name in the table of the room that a file of the package is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """All that a file imports, for types too, as dotted names: `from a import b` is `a.b`."""
    tree = ast.parse(path.read_text())
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    assert room(path) in ROOMS, f"{room(path)} is new: give it a line in ROOMS"
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "numpyro_flows":
            imported = rest.split(".")[0]
            assert imported in ROOMS, f"{name}: import from the module that defines it, not from the package"
            assert imported in {room(path), *ROOMS[room(path)]}, f"{room(path)} may not import {imported}: {name}"
        if top == "numpyro":
            assert room(path) in WITH_NUMPYRO, f"{room(path)} is maths, and imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_read_in_one_go(path):
    assert len(path.read_text().splitlines()) <= 350


def defining(name: str) -> Path | None:
    """The module of the package that a dotted name lies in; None for names of other packages."""
    top, *parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = PACKAGE.joinpath(*parts[:end])
        for path in (module.with_suffix(".py"), module / "__init__.py"):
            if top == PACKAGE.name and path.exists():
                return path
    return None


def test_no_cycles():
    needs = {path: {defining(name) for name in imports(path)} for path in MODULES}
    while needs:
        free = [path for path in needs if not needs[path] & needs.keys()]
        assert free, f"import cycle among {[str(path.relative_to(PACKAGE)) for path in needs]}"
        for path in free:
            del needs[path]


def test_the_drawing_is_that_of_the_imports():
    """`uv run docs/imports.py` makes it so."""
    drawn = runpy.run_path(str(PACKAGE.parent / "docs" / "imports.py"))["page"]()
    assert (PACKAGE.parent / "CONTRIBUTING.md").read_text() == drawn


def test_importing_the_package_imports_none_of_its_modules():
    """So it costs nothing; a name is imported when it is first used."""
    script = """
import sys, numpyro_flows
loaded = {name for name in sys.modules if name.startswith(("numpyro_flows.", "jax", "equinox", "diffrax"))}
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert numpyro_flows.FlowVI.__module__ == "numpyro_flows.inference.flow_vi"
