"""Imports point down only, as the layers of the architecture say, and NumPyro enters at `transforms`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import numpyro_flows

PACKAGE = Path(__file__).parents[1] / "numpyro_flows"

# From the bottom up; a module may import from its own layer and those below. Names of folders stand for all inside.
LAYERS = [
    ["arguments", "recipe", "picture", "precision", "model_run"],
    ["bijections", "continuous", "networks"],
    ["flows", "gaussianization"],
    [
        "trees",
        "supports",
        "transforms",
        "sites",
        "files",
        "scoring",
        "distributions",
        "model_sites",
        "guides",
        "objectives",
        "training",
        "sampling",
    ],
    ["newton", "gaussian", "modes", "tails", "survey"],
    ["model_checks", "masked", "target", "stages", "flow_stage", "fingerprint"],
    [
        "posterior",
        "priors",
        "stored",
        "verdict",
        "export",
        "variational",
        "observations",
        "resuming",
        "fitting",
        "likelihood",
        "whitening",
        "density",
        "anomaly",
        "series",
        "latent_ode_networks",
        "latent_ode",
        "latent_ode_training",
        "diagnostics",
        "plots",
        "flow_plots",
        "io",
    ],
]
FIRST_WITH_NUMPYRO = "files"

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")  # the contents page


def part(path: Path) -> str:
    """The name in the table that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, of_types: bool = True) -> list[str]:
    """All that a file imports, as dotted names: `from a import b` is `a.b`; `of_types`: under TYPE_CHECKING too."""
    tree = ast.parse(path.read_text())
    if not of_types:
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
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
    assert part(path) in LEVEL, f"{part(path)} is new: give it a place in LAYERS"
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "numpyro_flows":
            imported = rest.split(".")[0]
            assert imported in LEVEL, f"{name}: import from the module that defines it, not from the package"
            assert LEVEL[imported] <= LEVEL[part(path)], f"{part(path)} is below {imported}, and imports {name}"
        if top == "numpyro":
            assert LEVEL[part(path)] >= LEVEL[FIRST_WITH_NUMPYRO], f"{part(path)} is maths, and imports {name}"


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
    needs = {path: {defining(name) for name in imports(path, of_types=False)} for path in MODULES}
    while needs:
        free = [path for path in needs if not needs[path] & needs.keys()]
        assert free, f"import cycle among {[str(path.relative_to(PACKAGE)) for path in needs]}"
        for path in free:
            del needs[path]


def test_importing_the_package_imports_none_of_its_modules():
    """So it costs nothing; a name is imported when it is first used."""
    script = """
import sys, numpyro_flows
loaded = {name for name in sys.modules if name.startswith(("numpyro_flows.", "jax", "equinox", "diffrax"))}
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert numpyro_flows.FlowVI.__module__ == "numpyro_flows.variational"
