"""What the pages say is what was measured."""

import importlib
import re
import sys

import pytest

from benchmarks.figures.readme import verdict
from docs.figures import ROOT
from numpyro_flows import flows
from numpyro_flows.inference.fallback import HELP

README, DOCS = ROOT / "README.md", ROOT / "docs"
FRONT_PAGE, RECIPES = DOCS / "index.md", DOCS / "choosing-a-flow.md"
sys.path.append(str(DOCS))
names = importlib.import_module("names")


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


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", ["refused_fit", "discrete_sites", "saving"])
def test_snippets_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they write files
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)
    assert len(blocks) > 3
    names_of_page = {}
    for block in blocks:
        exec(block, names_of_page)
    assert names_of_page["posterior"].certified


def test_reasons_lead_to_a_page_that_is_there():
    assert (README.parent / HELP).is_file()


def test_every_recipe_is_in_the_table():
    recipes = {name for name in dir(flows) if hasattr(getattr(flows, name), "__code__")}
    general = {"coupling", "autoregressive", "with_tails"}
    for name in recipes - general:
        assert f"| {name} |" in RECIPES.read_text()


def test_every_public_name_has_one_entry_in_the_reference_and_an_example():
    """The pages list names; Sphinx makes the entries from docstrings, and a doctest runs each example."""
    pages = "".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    listed = []
    for module, lines in re.findall(r"\.\. reference:: (\S+)\n\n((?:   .*\n)+)", pages):
        names_of_lines = [line for line in lines.splitlines() if not line.strip().startswith("=")]
        listed += [f"{module}.{name.strip()}" for name in ",".join(names_of_lines).split(",")]
    assert sorted(listed) == sorted(names.public())
    for name, value in names.public().items():
        assert ">>> " in (value.__doc__ or ""), f"{name} has no example"


def test_the_names_of_the_stub_are_public():
    stub = (README.parent / "numpyro_flows" / "__init__.pyi").read_text()
    modules = set(re.findall(r"^from \. import (\w+)", stub, flags=re.MULTILINE))
    assert modules == set(names.MODULES)
    classes_and_functions = set(re.findall(r" as (\w+)$", stub, flags=re.MULTILINE)) - modules
    assert {f"numpyro_flows.{name}" for name in classes_and_functions} <= set(names.public())


def test_code_in_prose_names_things_that_have_an_entry():
    """The site links what `names.found` finds, and fails where a name has no entry. So it must find every name."""
    plain = {name.rpartition(".")[2] for name in names.public()}
    plain = {name for name in plain if "_" in name or not name.islower()}  # others may be words
    pages = [page for page in DOCS.rglob("*.md") if "_build" not in page.parts and page.name != "README.md"]
    missed = []
    for page in [*pages, README.parent / "CHANGELOG.md", README.parent / "CONTRIBUTING.md"]:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", prose):
            found = {word for name in names.found(code) for word in re.findall(r"\w+", code[name.start : name.end])}
            missed += [(page.name, code, name) for name in plain & set(re.findall(r"\w+", code)) - found]
    assert not missed


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("FlowVI(model).run(key, y)", ["numpyro_flows.FlowVI", "numpyro_flows.FlowVI.run"]),
        ("flows.nsf_coupling", ["numpyro_flows.flows.nsf_coupling"]),
        ("iaf", ["numpyro_flows.flows.iaf"]),
        ("posterior.why", ["numpyro_flows.FlowPosterior.why"]),
        ("flow.fit.kept", ["numpyro_flows.DensityFit.kept"]),
        ("numpyro_flows.gaussianization", ["numpyro_flows.gaussianization"]),
        ("SVI", ["https://num.pyro.ai/en/stable/svi.html#numpyro.infer.svi.SVI"]),
        ("jax.vmap", ["https://docs.jax.dev/en/latest/_autosummary/jax.vmap.html"]),
        (
            "dist.Normal(0, 1)",
            ["https://num.pyro.ai/en/stable/distributions.html#numpyro.distributions.continuous.Normal"],
        ),
        ("summary.py", []),
        ("y = x + residual", []),
    ],
)
def test_names_in_code(code, expected):
    assert [name.address or name.name for name in names.found(code)] == expected


def test_a_parameter_is_not_the_function_of_the_same_name():
    assert not list(names.found("coupling", parameters={"coupling"}))
