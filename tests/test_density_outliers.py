"""Rows so far away that whitening by them would squash the others: `fit_density` leaves them out and says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows import fit_density, flows
from numpyro_flows.density.observations import observe
from numpyro_flows.density.outliers import far_rows, near_rows
from tests.test_density import fit

RNG = np.random.default_rng(0)
CLEAN = RNG.normal(size=(1_000, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
FEW = np.arange(50, 1_000, 100)  # 1% of the rows


def spoilt(rows, column, values):
    data = CLEAN.copy()
    data[rows, column] = values
    return data


def num_far(x, weights=None):
    return int(far_rows(x, np.ones(len(x)) if weights is None else weights).rows.sum())


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (spoilt(17, 0, 1e8), [17]),
        (spoilt(17, 0, 5e3), [17]),
        (spoilt(17, 0, -1e30), [17]),
        (spoilt([17, 33], [0, 1], [1e8, -1e6]), [17, 33]),
        (spoilt([17, 33], 0, [1e8, 1e4]), [17, 33]),
        (spoilt(FEW, 0, 1e8 * RNG.normal(size=10)), FEW),
        (spoilt(FEW, 1, -9999.0), FEW),
        (spoilt(FEW, slice(None), 1e6), FEW),
    ],
    ids=["one", "nearer", "below", "two columns", "two sizes", "both ends", "a code", "rows"],
)
def test_rows_that_are_far(data, rows):
    np.testing.assert_array_equal(np.flatnonzero(far_rows(data, np.ones(1_000)).rows), rows)


@pytest.mark.parametrize("num", [100, 1_000])
@pytest.mark.parametrize(
    "draw",
    [
        lambda num: RNG.normal(size=num),
        lambda num: RNG.standard_t(2, size=num),
        lambda num: RNG.standard_cauchy(size=num),
        lambda num: np.exp(RNG.normal(size=num)),
        lambda num: np.exp(5 * RNG.normal(size=num)),
        lambda num: RNG.gamma(0.1, size=num),
        lambda num: np.where(RNG.random(num) < 0.9, 0.01 * RNG.normal(size=num), 100 + RNG.normal(size=num)),
        lambda num: (RNG.random(num) < 0.05) * RNG.normal(size=num),
        lambda num: np.where(RNG.random(num) < 0.97, RNG.normal(size=num), 500.0),
    ],
    ids=["normal", "t", "cauchy", "lognormal", "wide lognormal", "gamma", "two modes", "zeros", "a rare mode"],
)
def test_tails_have_none(draw, num):
    x = np.stack([draw(num) for _ in range(50)], axis=1)
    assert num_far(x) == 0


def test_weights_say_what_is_rare():
    data = spoilt(FEW, 0, 1e4)
    weights = np.ones(1_000)
    weights[FEW] = 20.0
    assert num_far(data) == 10
    assert num_far(data, weights) == 0


def test_a_fit_is_that_of_the_other_rows():
    """With weights and a condition, to rounding: one row is far in a column, one in the condition."""
    rng = np.random.default_rng(1)
    data, condition, weights = spoilt(17, 1, 1e8), rng.normal(size=(1_000, 1)), rng.uniform(1.0, 2.0, 1_000)
    condition[33] = -1e7
    kept = np.delete(np.arange(1_000), [17, 33])

    def conditional(key, dim, *, cond_dim):
        return flows.realnvp(key, dim, cond_dim=cond_dim, num_layers=1, hidden=(4,))

    with pytest.warns(
        UserWarning, match=r"2 of 1000 rows are left out .* row 17 \(column 1: .*row 33 \(column 0 of co"
    ):
        spoilt_fit = fit(jax.random.key(0), data, condition=condition, weights=weights, flow=conditional, num_steps=20)
    clean_fit = fit(
        jax.random.key(0), data[kept], condition=condition[kept], weights=weights[kept], flow=conditional, num_steps=20
    )
    np.testing.assert_allclose(spoilt_fit.fit.losses, clean_fit.fit.losses, rtol=1e-5)
    np.testing.assert_allclose(spoilt_fit.fit.held_out, clean_fit.fit.held_out, rtol=1e-5)


def test_sites_are_named():
    with pytest.warns(UserWarning, match=r"row 3 \(theta: .*\)\. Correct or remove"):
        fit(jax.random.key(0), {"mu": CLEAN[:, 0], "theta": spoilt(3, 1, 1e6)[:, 1]}, num_steps=1)


def test_many_stay():
    """Of columns of which each has 1% of the rows, but other ones."""
    x = RNG.normal(size=(1_000, 8))
    for column in range(8):
        x[column::100, column] = 1e6
    observations = observe(x)
    with pytest.warns(UserWarning, match="80 of 1000 rows stay in the fit, as they are many"):
        assert near_rows(observations, None, np.ones(1_000)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [spoilt(17, 0, 1e8), spoilt([17, 33], [0, 1], [1e8, -1e6]), spoilt(FEW, 0, 1e8 * RNG.normal(size=10))],
    ids=["one", "two columns", "one in 100"],
)
def test_the_others_are_fitted_as_well_as_without(data):
    fresh = np.random.default_rng(2).normal(size=(5_000, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    entropy = 1.0 + np.log(2 * np.pi) + np.log(0.6)
    with pytest.warns(UserWarning, match="left out"):
        flow = fit_density(jax.random.key(0), data, progress_bar=False)
    assert -np.asarray(flow.log_prob(jnp.asarray(fresh, jnp.float32))).mean() == pytest.approx(entropy, abs=0.05)
    assert flow.fit.num_skipped == 0
