"""Figures in README and the pages are those of the settings and the results, and statements without a number hold."""

import pytest

from benchmarks.figures import figures
from docs.figures import ROOT, findings, pages, written

KNOWN = {"settings.num_steps": "5,000", "flows.table": "\n| a |\n"}


@pytest.fixture(scope="module")
def values() -> dict[str, str]:
    return figures()


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_figures_of_a_page_are_those_of_the_results(page, values):
    assert not [*findings(page.read_text(), values)], "run: python docs/figures.py --write"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("After <!-- settings.num_steps -->4,000<!-- end --> steps", "expected '5,000', got '4,000'"),
        ("| <!-- settings.steps -->5,000<!-- end --> |", "settings.steps: unknown"),
        ("After <!-- settings.num_steps -->5,000 steps", "without its partner"),
        ("After <!-- settings.num_steps -->5,000 <!-- settings.num_steps -->5,000<!-- end -->", "got '5,000 <!--"),
        ("After 5,000<!-- end --> steps", "without its partner"),
        ("It ends after\n<!-- settings.num_steps -->5,000<!-- end --> steps", "begins a line"),
        ("- <!-- settings.num_steps -->5,000<!-- end --> steps", "begins a line"),
        ("After {{ settings.num_steps }} steps", "outside the site"),
    ],
)
def test_a_wrong_figure_is_found(text, what):
    assert what in "; ".join(findings(text, KNOWN))


def test_figures_are_written_between_their_markers():
    text = "| <!-- settings.num_steps -->?<!-- end --> |\n<!-- flows.table -->\nold\n<!-- end -->\n"
    new = "| <!-- settings.num_steps -->5,000<!-- end --> |\n<!-- flows.table -->\n| a |\n<!-- end -->\n"
    assert written(text, KNOWN) == new
    assert written(new, KNOWN) == new
    assert not [*findings(new, KNOWN)]
