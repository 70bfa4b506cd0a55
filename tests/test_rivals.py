"""The rivals' benchmark: what its rows and its summary say of draws, weights and costs that are known."""

import jax
import numpy as np
import pytest

from benchmarks.posteriordb.scoring import NUM_DRAWS
from benchmarks.rivals.report import summary, wrong
from benchmarks.rivals.rows import Work, of_chains, of_weights

WORK = Work(warmup_gradients=500, gradients=4_000, warmup_seconds=1.0, seconds=2.0, compile_seconds=3.0)
REFERENCE = {"x": np.random.default_rng(0).normal(size=10_000)}


def test_chains_cost_warm_up_once_and_sampling_by_their_effective_draws():
    draws = np.random.default_rng(1).normal(size=4_000)
    row = of_chains({"x": draws}, 4, REFERENCE, WORK)
    assert row["trusted"]
    assert row["effective"] == pytest.approx(4_000, rel=0.1)
    assert row["gradients"] == 4_500
    assert row["gradients_to_10000"] == pytest.approx(500 + 4_000 * 10_000 / row["effective"])
    assert row["seconds_to_10000"] == pytest.approx(4 + 2 * 10_000 / row["effective"])


def test_chains_apart_are_not_trusted():
    draws = np.random.default_rng(1).normal(size=(4, 1_000)) + np.arange(4)[:, None]
    assert not of_chains({"x": draws.ravel()}, 4, REFERENCE, WORK)["trusted"]


def test_weighted_draws_cost_an_evaluation_each():
    def sample(key, num):
        x = 1.5 * np.asarray(jax.random.normal(key, (num,)), float)
        return {"x": x}, 0.5 * x**2 / 1.5**2 - 0.5 * x**2

    row = of_weights(sample, (jax.random.key(0), jax.random.key(1)), REFERENCE, WORK._replace(gradients=0))
    # of a normal with 1.5 times the sd: (E w)^2 / E w^2 = sqrt(2 * 1.5^2 - 1) / 1.5^2
    assert row["effective"] / NUM_DRAWS == pytest.approx(np.sqrt(3.5) / 2.25, rel=0.02)
    assert row["trusted"]
    assert row["gradients_to_1000"] == pytest.approx(500 + 1_000 * NUM_DRAWS / row["effective"])
    assert row["mean_error"] < 0.05


def test_summary_compares_the_runs_that_both_trust():
    def row(method, posterior, gradients, trusted=True, mean_error=0.01):
        figures = {"gradients_to_10000": gradients, "effective": 1e4, "mean_error": mean_error, "sd_error": 0.01}
        text = {name: str(value) for name, value in figures.items()}
        return {"posterior": posterior, "method": method, "seed": "0", "trusted": str(trusted), **text}

    rows = [row("flow", "a", 100), row("flow", "b", 400), row("flow", "c", 1)]
    rows += [row("nuts", "a", 200), row("nuts", "b", 200), row("nuts", "c", 9, trusted=False, mean_error=0.3)]
    ours, nuts = summary(rows)
    assert float(ours["over_nuts"]) == 1.0
    assert ours["over_nuts_worst"] == "2 (b)"
    assert (nuts["trusted"], nuts["trusted_but_wrong"], nuts["wins"]) == ("2", "0", "b")
    assert wrong(rows[-1])
