"""What the pages say is what was measured."""

import importlib
import re

import pytest

from benchmarks.figures.readme import verdict
from docs.figures import ROOT
from numpyro_flows import flows

PUBLIC = ("flows", "bijections", "embeddings", "continuous", "gaussianization", "flow_plots")
README = ROOT / "README.md"
FRONT_PAGE = ROOT / "docs" / "index.md"
RECIPES = ROOT / "docs" / "choosing-a-flow.md"


@pytest.mark.slow  # `.ci/run` runs the README's example, which calls the same functions
@pytest.mark.filterwarnings("default")  # of ArviZ and NUTS, for the readers
def test_the_front_page_leads_to_a_certified_posterior():
    """Its code, block by block, as a reader would copy it."""
    blocks = re.findall(r"```\{code-cell\} ipython3\n(.*?)```", FRONT_PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) > 3
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["posterior"].certified
    assert names["draws"]["theta"].shape == (4000, 8)


@pytest.mark.slow  # `.ci/run` runs the same model in examples/eight_schools.py
def test_the_example_of_the_readme_runs_as_it_stands(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names = {}
    exec(block, names)
    assert names["posterior"].certified
    assert names["draws"]["theta"].shape == (4000, 8)
    assert capsys.readouterr().out.startswith(verdict()[0])


def test_every_recipe_is_in_the_table():
    recipes = {name for name in dir(flows) if hasattr(getattr(flows, name), "__code__")}
    general = {"coupling", "autoregressive", "with_tails"}
    for name in recipes - general:
        assert f"| {name} |" in RECIPES.read_text()


def test_every_public_name_is_in_the_reference_with_an_example():
    """Each package's page is generated from docstrings; a doctest runs each example."""
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = re.findall(r"automodule:: (\S+)", pages)
    public = ["numpyro_flows", *(f"numpyro_flows.{name}" for name in PUBLIC)]
    assert sorted(documented) == sorted(public)
    for module in map(importlib.import_module, public):
        for name in dir(module):
            value = getattr(module, name)
            home = getattr(value, "__module__", "")
            shown = home.startswith("numpyro_flows") if hasattr(module, "__path__") else home == module.__name__
            if shown and not name.startswith("_"):
                assert ">>> " in (value.__doc__ or ""), f"{module.__name__}.{name} has no example"
