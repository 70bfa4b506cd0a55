"""What the package imports is what it declares."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_imports_are_declared():
    imported = set()
    for path in (ROOT / "numpyro_flows").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {match[0] for text in project["dependencies"] if (match := re.match(r"[\w.-]+", text))}
    declared = {normalised(name) for name in names} | {"matplotlib"}  # an extra of arviz, which is declared with it
    assert any("matplotlib" in text for text in project["dependencies"])
    own = {"numpyro_flows", *sys.stdlib_module_names}
    assert {normalised(name) for name in imported - own} <= declared
