"""What `fit_density` refuses and warns of, before it trains."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpyro.distributions import constraints

from numpyro_flows import FlowDistribution, flows
from numpyro_flows.bijections import Affine
from numpyro_flows.density.observations import observe
from tests.test_density import fit

DATA = np.random.default_rng(0).normal(size=(50, 2))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.where(np.arange(100).reshape(50, 2) == 7, np.nan, DATA), {}, "in 1 of 50 rows: 3"),
        (
            np.where(np.arange(100).reshape(50, 2) % 8 == 0, np.inf, DATA),
            {},
            r"in 13 of 50 rows: 0, 4, 8, 12, 16, \.\.\.",
        ),
        (DATA * [1, 0], {}, "constant ones: 1"),
        ({"a": DATA[:, 0], "b": np.ones(50) / 3}, {}, "constant ones: b"),
        (DATA[:2], {}, "expected more rows than coordinates, and at least 3, got 2 rows of 2"),
        (np.float64(3.5), {}, "got the number"),
        (DATA, {"support": constraints.positive}, "values outside it in"),
        (
            np.abs(DATA) * (np.arange(50) != 9)[:, None],
            {"support": constraints.nonnegative},
            "on its boundary in 1 of 50 rows: 9",
        ),
        (DATA, {"support": [constraints.real]}, "a constraint for each column"),
        (DATA, {"support": {"a": constraints.real}}, "expected a constraint for an array"),
        ({"a": DATA}, {"support": constraints.real}, "expected a dict by site"),
        ({"a": DATA}, {"support": {"b": constraints.real}}, r"got some of \['b'\]"),
        ({"a": DATA, "b": DATA[:3]}, {}, "the same number of rows"),
        ({}, {}, "at least one site"),
        (DATA, {"dequantize": True}, "expected whole numbers"),
        (DATA, {"weights": np.zeros(50)}, "not all 0"),
        (DATA, {"weights": -np.ones(50)}, "not all 0"),
        (DATA, {"weights": np.arange(50) < 2}, "effective sample size above 2, that of an event, got 2.0"),
        (DATA, {"weights": np.ones(3)}, r"expected the shape \(50,\), got \(3,\)"),
        (DATA, {"condition": DATA[:, 0]}, "condition expected the shape"),
        (DATA, {"condition": DATA * np.nan}, "condition expected finite values"),
        (
            DATA,
            {"condition": np.arange(50.0)[:, None] % 2, "condition_dropout": 0.1},
            "encode classes as one-hot vectors",
        ),
        (DATA, {"objective": "magic"}, "objective expected"),
        (DATA, {"num_steps": 0}, "num_steps expected at least 1, got 0"),
        (DATA, {"validation": 0.0}, r"validation expected a number in \(0, 1\), got 0.0"),
        (DATA, {"validation": 0.5, "test": 0.5}, "expected shares below 1 in all"),
        (DATA, {"flow": lambda key, dim: flows.realnvp(key, 3)}, r"a bijection of shape \(2,\), got \(3,\)"),
    ],
)
def test_errors(data, options, message):
    with pytest.raises(ValueError, match=message):
        fit(jax.random.key(0), data, **options)


@pytest.mark.parametrize("kind", ["arrays", *(pytest.param(k, marks=pytest.mark.slow) for k in ("frames", "dataset"))])
def test_batches_and_datasets_are_the_same_rows(kind):
    sites = {"a": DATA[:, 0], "b": DATA[:, 1]}
    frame = pd.DataFrame(sites)
    whole: Any = DATA if kind == "arrays" else sites
    given: Any = {
        "arrays": (DATA[i : i + 20] for i in (0, 20, 40)),
        "frames": iter([frame.iloc[:20], frame.iloc[20:, ::-1]]),
        "dataset": xr.Dataset({name: ("row", values) for name, values in sites.items()}),
    }[kind]
    one, other = (fit(jax.random.key(0), data, num_steps=1) for data in (whole, given))
    assert one.fit.held_out == other.fit.held_out
    np.testing.assert_array_equal(one.log_prob(whole), other.log_prob(whole))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "an iterator without any"),
        ([{"a": DATA[:, 0]}, {"b": DATA[:, 0]}], r"batches of the sites \['a'\], got one of \['b'\]"),
        (list(DATA), r"batches \(num, columns\) or dicts of sites, got one of an array .* shape \(2,\)"),
        ([(DATA, DATA)], r"batches \(num, columns\) or dicts of sites, got one of a tuple"),
        ([{"a": DATA[:, 0]}, DATA], r"batches of the sites \['a'\], got one of an array of type float64"),
    ],
)
def test_errors_of_batches(batches, message):
    with pytest.raises(ValueError, match=message):
        fit(jax.random.key(0), iter(batches))


def fitted(support=None, data: Any = DATA, **options):
    """A distribution as a fit gives it, without one."""
    constrain = observe(data, support).constrain
    return FlowDistribution(Affine(jnp.zeros(2)), constrain=constrain, **options)


@pytest.mark.parametrize(
    ("data", "flow", "options", "message"),
    [
        (DATA, fitted(base_dist=fitted()), {}, "on an untransformed base, got one on a TransformedDistribution"),
        (DATA, fitted(constraints.positive, np.exp(DATA)), {}, "values outside it"),
        (np.exp(DATA), fitted(), {"support": constraints.positive}, "support expected that of the flow"),
        ({"a": DATA[:, 0], "b": DATA[:, 1]}, fitted(), {}, r"data expected an array, as the flow has, got the sites"),
        (
            DATA,
            fitted(data={"a": DATA[:, 0], "b": DATA[:, 1]}),
            {},
            r"expected the sites \['a', 'b'\], .* got an array",
        ),
        (np.c_[DATA, DATA**2], fitted(), {}, r"events of shape \(2,\), as the flow has, got \(4,\)"),
    ],
)
def test_nothing_of_a_flow_is_dropped(data, flow, options, message):
    with pytest.raises(ValueError, match=message):
        fit(jax.random.key(0), data, flow=flow, **options)


def test_wrong_types():
    with pytest.raises(TypeError, match="flow expected a recipe"):
        fit(jax.random.key(0), DATA, flow=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="expected real numbers"):
        fit(jax.random.key(0), np.array([["a", "b"]]))


def test_warnings():
    counts = np.concatenate([np.random.default_rng(0).poisson(1e6, size=(750, 2))] * 4)
    with (
        pytest.warns(UserWarning, match="whole numbers"),
        pytest.warns(UserWarning, match="75% of the rows occur more than once"),
        pytest.warns(UserWarning, match="of 20.0 in 3000 rows: a few rows decide the fit"),
        pytest.warns(UserWarning, match="not finished: stopped because the loss is not finite"),
    ):
        flow = fit(
            jax.random.key(0),
            counts,
            weights=np.arange(3000) < 20,
            flow=lambda key, dim: Affine(jnp.full(dim, jnp.nan)),
            num_steps=5,
        )
    assert flow.fit.num_skipped == 5
    assert np.isnan(flow.fit.held_out.nll)
