"""What the pages say is what was measured."""

import re

import pytest

from benchmarks.flows.page import PAGE, with_tables
from benchmarks.readme import README, with_table
from numpyro_flows import flows

FRONT_PAGE = README.parent / "docs" / "index.md"


def test_the_tables_of_the_page_are_those_of_the_benchmarks():
    text = PAGE.read_text()
    assert with_tables(text) == text, "run: python -m benchmarks.flows.page"


def test_the_table_of_the_readme_is_that_of_the_benchmarks():
    assert with_table(README.read_text()) == README.read_text(), "run: python -m benchmarks.readme"


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


def test_every_recipe_is_in_the_table():
    recipes = {name for name in dir(flows) if hasattr(getattr(flows, name), "__code__")}
    general = {"coupling", "autoregressive", "with_tails"}
    for name in recipes - general:
        assert f"| {name} |" in PAGE.read_text()
