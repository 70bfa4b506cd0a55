"""Figures in README and the pages are those of the settings and the results, and statements without a number hold."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.figures import figures
from benchmarks.figures.flows import over_independent, speed_ratios
from benchmarks.figures.rows import Row, of, pick
from benchmarks.results import FOLDER, read
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


def nuts_diverges() -> bool:
    (row,) = pick("posteriordb", method="nuts", posterior="eight_schools-eight_schools_centered")
    return float(row["divergences"]) > 0


def only_two_cores() -> bool:
    return all(
        "2 cores" in path.read_text().splitlines()[0] for path in FOLDER.glob("*.csv") if "summary" not in path.stem
    )


def no_flow_was_trained() -> bool:
    return (of(pick("posteriordb", method="flow"), "seconds_flow") == 0).all()


def recipe(name: str) -> Row:
    return pick("flows", recipe=name)[0]


def few_rows_keep_the_mixture() -> bool:
    rows = read("density_tables")
    return all(row["kept"] == "mixture" for row in rows if int(row["rows"]) < 200)


def funnel() -> Row:
    return pick("speed_hard", model="funnel of 101 dimensions")[0]


def planar_flows_have_the_largest_ratios() -> bool:
    by_flow, _ = speed_ratios()
    planar = float(np.median(by_flow.pop("planar")))
    return planar > 2 * max(float(np.median(ratios)) for ratios in by_flow.values())


STATEMENTS: list[tuple[str, str, Callable[[], object]]] = [
    ("README.md", "a funnel on which NUTS diverges", nuts_diverges),
    ("README.md", "All figures are from two CPU cores", only_two_cores),
    ("docs/index.md", "on which NUTS diverges", nuts_diverges),
    (
        "docs/nuts_instead.md",
        "There NUTS may have few effective draws",
        lambda: of(read("speed_hard"), "nuts_min_ess").min() < 100,
    ),
    (
        "docs/how_a_fit_is_certified.md",
        "For small data sets, compiled NUTS takes less time per data set",
        lambda: float(read("speed_many")[0]["data_sets_per_second_over_nuts"]) < 1,
    ),
    ("docs/choosing-a-flow.md", "they were enough", no_flow_was_trained),
    ("docs/choosing-a-flow.md", "With few rows a flow gains little over a mixture", few_rows_keep_the_mixture),
    (
        "docs/choosing-a-flow.md",
        "`nsf_autoregressive` has a lower NLL in the table below",
        lambda: all(
            float(recipe("nsf_autoregressive")[data]) < float(recipe("nsf_coupling")[data])
            for data in ("moons_nll", "gaussians_nll")
        ),
    ),
    (
        "docs/choosing-a-flow.md",
        "at most `passes` times and usually far fewer",
        lambda: all(
            int(row["passes_per_layer"]) < int(row["dim"]) / 5 for row in pick("flows_slow_direction", method="ours")
        ),
    ),
    (
        "docs/continuous-flows.md",
        "so a continuous flow is far slower than a coupling flow",
        lambda: float(recipe("ffjord")["moons_ms_per_step"]) > 10 * float(recipe("nsf_coupling")["moons_ms_per_step"]),
    ),
    (
        "docs/continuous-flows.md",
        "gives straighter fields, so densities take fewer evaluations",
        lambda: (over_independent("evaluations") < 1).all(),
    ),
    (
        "docs/continuous-flows.md",
        "distils a fitted flow into one that needs 4",
        lambda: (of(read("continuous_few_steps"), "distilled_evaluations") == 4).all(),
    ),
    (
        "docs/amortized.md",
        "a posterior takes a fraction of a second",
        lambda: of(read("amortized_schools"), "seconds").max() / 1_000 < 0.1,
    ),
    (
        "docs/amortized.md",
        "Training takes longer than one fit",
        lambda: (
            of(read("amortized_schools"), "training_seconds").min() > of(read("speed_second"), "first_seconds").max()
        ),
    ),
    (
        "docs/many_rows.md",
        "NUTS may take less time",
        lambda: of(read("speed_large"), "seconds_over_nuts").max() > 1,
    ),
    (
        "docs/several_devices.md",
        "We have not yet measured the speed of several real devices",
        lambda: all("forced" in row["device"] for row in read("devices")),
    ),
    (
        "docs/inverse_problems.md",
        "The table shows how much the flow gains over a Gaussian mixture",
        lambda: (of(pick("inverse_digits", method="amortised"), "joint_gain") > 0).all(),
    ),
    (
        "docs/benchmarks.md",
        "of FlowVI's run time, with few effective draws",
        lambda: float(max(read("speed_large"), key=lambda row: int(row["rows"]))["nuts_min_ess"]) < 400,
    ),
    (
        "docs/benchmarks.md",
        "On the funnel it is faster, but its smallest ESS is too small for any use",
        lambda: float(funnel()["nuts_min_ess"]) < 100 and float(funnel()["seconds_over_nuts"]) > 1,
    ),
    (
        "docs/benchmarks.md",
        "Planar flows have the largest ratios by far",
        planar_flows_have_the_largest_ratios,
    ),
    (
        "docs/benchmarks.md",
        "The result is the number of gradients to 10,000 effective draws, for one seed",
        lambda: {row["seed"] for row in read("rivals")} == {"0"},
    ),
    (
        "docs/benchmarks.md",
        "so the ratio is near 1",
        lambda: np.abs(of(read("flows_compile_seconds"), "ratio") - 1).max() < 0.3,
    ),
    (
        "docs/benchmarks.md",
        "Optimal-transport pairs take fewer evaluations",
        lambda: (over_independent("evaluations") < 1).all(),
    ),
    (
        "docs/benchmarks.md",
        "NUTS has run on few images",
        lambda: of(pick("inverse_digits", method="nuts"), "images").max() < 20,
    ),
]


@pytest.mark.parametrize(
    ("page", "words", "holds"), STATEMENTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_statement_without_a_figure_holds(page, words, holds):
    text = " ".join(re.sub(r"<!-- .*? -->", "", (ROOT / page).read_text()).split())
    assert words in text, "the page does not say this any more: change STATEMENTS"
    assert holds(), "the results say otherwise: change the page"
