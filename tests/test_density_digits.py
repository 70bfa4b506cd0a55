"""Columns whose values floating-point numbers do not tell apart: `fit_density` refuses them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints

from numpyro_flows import fit_density
from numpyro_flows.density.digits import require_digits
from numpyro_flows.density.observations import checked_condition, observe
from tests.test_density import fit

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(1_000, 1))
COARSE = "float32 numbers can tell apart"


def shifted(loc, scale, support=None):
    return lambda: observe(np.concatenate([Z, loc + scale * Z], axis=1), support)


@pytest.mark.parametrize(
    "call",
    [
        shifted(1e8, 1.0),
        shifted(1.7e9, 3600.0),  # Unix times
        shifted(-1e8, 1.0),
        shifted(1e-30, 1e-38),
        shifted(1e8, 1.0, [constraints.real, constraints.positive]),
        shifted(1.0 - 1e-8, 1e-9, [constraints.real, constraints.unit_interval]),
        shifted(1e30, 1e22),
        lambda: observe(np.concatenate([Z, np.where(RNG.random((1_000, 1)) < 0.3, 1e8, 0.0) + Z], axis=1)),  # a cluster
        lambda: observe(np.concatenate([Z, 1e8 + 3 * Z], axis=1).astype(np.float32)),  # all are 1e8 or 8 beside it
        lambda: observe(jnp.asarray(np.concatenate([Z, 1e8 + 20 * Z], axis=1), jnp.float32)),
        lambda: observe(np.concatenate([Z, 1e8 + RNG.poisson(5.0, size=(1_000, 1))], axis=1), dequantize=[False, True]),
    ],
    ids=[
        "far",
        "unix times",
        "negative",
        "tiny",
        "positive",
        "near one",
        "1e30",
        "a cluster",
        "collapsed",
        "collapsed partly",
        "counts",
    ],
)
def test_columns_that_are_too_fine(call):
    with pytest.raises(ValueError, match=f"data expected columns .* {COARSE}.* in column 1\\. "):
        call()


def test_what_to_do():
    with pytest.raises(ValueError, match=r"near 1e\+08, where float32 numbers are 8 apart.*subtract.*jax_enable_x64"):
        observe(1e8 + Z)
    with pytest.raises(ValueError, match="size in time"):
        observe({"x": Z, "time": 1.7e9 + 60 * Z[:, 0]})
    with pytest.raises(ValueError, match=f"condition expected columns .* {COARSE}"):
        checked_condition(1.7e9 + 60 * Z, 1_000)
    with pytest.raises(ValueError, match=r"data expected numbers up to 3\.4e"):
        observe(np.concatenate([Z, 1e300 * Z], axis=1))
    with pytest.raises(ValueError, match=r"after the transform of its support, .* choose another support"):
        observe(1e4 + 0.04 * Z, constraints.positive)  # of logarithms near 9, 4e-6 apart


def together(loc, scale, difference):
    """Two columns that differ by little, and one that has nothing to do with them."""
    first, second, third = RNG.normal(size=(3, 1_000))
    return np.stack([loc + scale * first, loc + scale * first + difference * second, third], axis=1)


@pytest.mark.filterwarnings("ignore:.*linear functions of others")  # as they are
def test_columns_that_are_nearly_alike(x64):
    """Start and end: each has the digits, and their difference has not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jnp, "result_type", lambda *_: np.dtype(np.float32))
        with pytest.raises(
            ValueError, match=r"float32 numbers resolve, .* up to rounding: column 0, column 1: replace"
        ):
            observe(together(1e5, 1.0, 0.003))
        observe(together(1e5, 1.0, 0.3))
        observe(together(0.0, 1.0, 0.003))
        observe(together(100.0, 1.0, 0.0))
    observe(together(1e5, 1.0, 0.003))


@pytest.mark.parametrize(
    "values",
    [
        1e5 + Z,
        1e4 * Z,
        1.7e9 + 86_400.0 * Z,  # days
        1e30 * (1 + 0.01 * Z),
        np.exp(8 * Z),
        np.where(Z < 0, 0.0, Z),  # half of them alike
        np.where(Z < 0, 1e4, 1e4 + Z),
        np.where(Z < 1, 1e4 + Z, 1e8),
        Z.astype(np.float32),
        np.round(Z, 2).astype(np.float16),
    ],
)
def test_columns_that_are_fine(values):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the data have whole numbers|.* occur more than once")
        observe(values)


@pytest.mark.parametrize("values", [1e3 + Z, 1e30 * (1 + 0.01 * Z), np.exp(8 * Z)])
def test_columns_that_are_fine_behind_a_support(values):
    observe(values, constraints.positive)


def test_counts_and_classes_are_fine():
    counts = np.float32(1e6 + RNG.poisson(5.0, size=(1_000, 1)))
    observe(counts, dequantize=True)
    checked_condition(RNG.integers(0, 2, size=(1_000, 3)), 1_000)
    checked_condition(np.full((1_000, 1), 1.7e9), 1_000)


def test_double_precision_tells_them_apart(x64):
    """A normal distribution far from 0; arrays that have lost its digits are refused still."""
    data = np.array([1e8, 1.7e9]) + Z * [1.0, 60.0] + 0.5 * RNG.normal(size=(1_000, 2))
    flow = fit(jax.random.key(0), data)
    log_prob = np.asarray(flow.log_prob(jnp.asarray(data)))
    gaussian = -0.5 * np.linalg.slogdet(np.cov(data.T))[1] - np.log(2 * np.pi) - 1.0
    assert log_prob.mean() == pytest.approx(gaussian, abs=0.02)
    draws = np.asarray(flow.sample(jax.random.key(1), (4_000,)))
    np.testing.assert_allclose((draws - data.mean(0)).std(0), data.std(0), rtol=0.1)
    with pytest.raises(ValueError, match="from the source: the array passed is of type float32"):
        observe(data.astype(np.float32))
    with pytest.raises(ValueError, match="float64 numbers can tell apart"):
        observe(1e18 + 500 * Z)
    require_digits("data", 1e300 * Z, ["0"])


@pytest.mark.slow
def test_very_large_numbers():
    """Of the order of 1e30, on the reals and above 0, a fit is that of the same numbers divided by 1e30."""
    data = np.exp(0.3 * RNG.normal(size=(1_000, 2)))
    for support in (None, constraints.positive):
        small, large = (
            fit_density(jax.random.key(0), scale * data, support=support, num_steps=300, progress_bar=False)
            for scale in (1.0, 1e30)
        )
        assert large.fit.held_out.nll - 2 * np.log(1e30) == pytest.approx(small.fit.held_out.nll, abs=0.05)
        own = -np.asarray(large.log_prob(jnp.asarray(1e30 * data, jnp.float32))) - 2 * np.log(1e30)
        assert own.mean() == pytest.approx(-np.asarray(small.log_prob(data)).mean(), abs=0.05)
        assert np.isfinite(np.asarray(large.sample(jax.random.key(1), (100,)))).all()
