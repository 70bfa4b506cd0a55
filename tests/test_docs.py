"""What the pages say is what was measured."""

from benchmarks.flows.page import PAGE, with_tables
from numpyro_flows import flows


def test_the_tables_of_the_page_are_those_of_the_benchmarks():
    text = PAGE.read_text()
    assert with_tables(text) == text, "run: python -m benchmarks.flows.page"


def test_every_recipe_is_in_the_table():
    recipes = {name for name in dir(flows) if hasattr(getattr(flows, name), "__code__")}
    general = {"coupling", "autoregressive", "with_tails"}
    for name in recipes - general:
        assert f"| {name} |" in PAGE.read_text()
