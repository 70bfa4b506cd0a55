"""What a user sees of a running fit: the bar, and messages of the logger `numpyro_flows`."""

import ast
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_flows
from numpyro_flows import FlowVI, FlowVISettings, GaussianStart, MixtureTraining
from numpyro_flows.training.watch import Watch
from tests.test_loop import Counting

KEY = jax.random.key(0)


def gamma(y=None):
    numpyro.sample("x", dist.Gamma(0.5, 1.0))
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def test_the_bar_keeps_the_figures_and_the_time_left(capsys):
    """During a round too, in front of the loss, which a narrow terminal cuts off."""
    Counting(3.0, 2.0, 1.0).run(9, length=3, watch=Watch(progress_bar=True))
    bars = capsys.readouterr().err.split("\r")
    assert any("counting:  67%" in bar and "6/9 [" in bar and "best=2, loss=1]" in bar for bar in bars)
    assert any("<00:0" in bar for bar in bars)  # time left
    assert "best=1]" in bars[-1]


def test_stages_are_logged(caplog):
    """A stage that leaves the fit as it is says nothing."""
    with caplog.at_level(logging.INFO, "numpyro_flows"):
        posterior = FlowVI(gamma, stages=(GaussianStart(), MixtureTraining()), progress_bar=False).run(KEY)
    first, second = [record.getMessage() for record in caplog.records if record.name == "numpyro_flows"]
    assert first.startswith("GaussianStart: ")
    assert second.startswith("MixtureTraining: ")
    assert " s, not certified, k-hat " in first
    assert f" s, certified, k-hat {posterior.khat:.2f}, ESS {posterior.ess:.1%} of" in second


def test_rounds_are_logged_for_debugging(caplog):
    with caplog.at_level(logging.DEBUG, "numpyro_flows"):
        Counting(3.0, 2.0, 1.0).run(6, length=3)
    messages = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert messages == [(10, "counting, step 3: {'best': 2.0}"), (10, "counting, step 6: {'best': 1.0}")]


def test_nothing_is_logged_or_printed_unless_asked(capfd):
    FlowVI(gamma, stages=(GaussianStart(), MixtureTraining()), progress_bar=False).run(KEY)
    assert capfd.readouterr() == ("", "")


def test_only_summaries_print():
    prints = set()
    for path in Path(numpyro_flows.__file__).parent.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                prints |= {function.name for call in calls if isinstance(call, ast.Name) and call.id == "print"}
    assert prints == {"print_summary"}


@pytest.mark.slow
def test_the_bar_of_many_fits_counts_the_certified(capsys):
    def normal(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1), obs=y)

    FlowVI(normal).run_many(KEY, jnp.array([0.5, 1.0]))
    assert "data sets: 100%" in (bar := capsys.readouterr().err.split("\r")[-1])
    assert "certified=2]" in bar


@pytest.mark.slow
def test_the_bar_of_markov_chains(capsys):
    strict = FlowVISettings(num_steps=0, min_ess=1.0, sufficient_ess=1.0, max_khat=1e-6, first_sweeps=200)
    posterior = FlowVI(gamma, settings=strict).run(KEY)
    assert posterior.certificate.by == "mcmc"
    assert "Markov chains: " in (bar := capsys.readouterr().err.split("\r")[-1])
    assert f"rhat={posterior.certificate.rhat:.3f}, ess=" in bar
