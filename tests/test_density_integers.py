"""Whole numbers beside continuous ones: `fit_density` warns of them, and adds noise to the columns that one names."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_flows import fit_density
from numpyro_flows.density.observations import observe
from tests.test_density import fit

RNG = np.random.default_rng(0)
NORMAL, COUNTS = RNG.normal(size=2_000), RNG.binomial(10, 0.4, size=2_000)
MIXED = np.stack([NORMAL, COUNTS], axis=1)
SITES = {"x": NORMAL, "k": COUNTS, "y": np.stack([NORMAL, -NORMAL], axis=1)}


@pytest.mark.filterwarnings("ignore:.*linear functions of others")  # as they are
def test_one_column_of_whole_numbers_is_named():
    with pytest.warns(UserWarning, match="whole numbers in 1, on .* True for these and False for others"):
        observe(MIXED)
    with pytest.warns(UserWarning, match="whole numbers in k, on"):
        observe(SITES)
    columns = RNG.poisson(1e4, size=(2_000, 3))
    with pytest.warns(UserWarning, match="whole numbers in 0, 2, on .* dequantize=True"):
        observe(columns, dequantize=[False, True, False])


@pytest.mark.filterwarnings("ignore:.*linear functions of others")  # as they are
@pytest.mark.parametrize("values", [1e6 * NORMAL.round(6), 1e30 * NORMAL, np.arange(2_000.0)])
def test_numbers_that_happen_to_be_whole(values):
    """No warning where they do not repeat."""
    observe(np.stack([values, NORMAL], axis=1))


@pytest.mark.parametrize(
    ("data", "dequantize"),
    [(MIXED, [False, True]), (MIXED, np.array([False, True])), ({"x": NORMAL, "k": COUNTS}, {"k": True})],
)
def test_noise_is_added_only_there(data, dequantize):
    observations = observe(data, dequantize=dequantize)
    x, _ = observations.rows(np.arange(2_000), np.random.default_rng(1))
    noise = np.random.default_rng(1).uniform(size=(2_000, 2))
    np.testing.assert_allclose(x, MIXED + noise * [0, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("data", "dequantize", "error", "message"),
    [
        (MIXED, [True, True], ValueError, "expected whole numbers, got other numbers in 0: leave dequantize out there"),
        (MIXED, [True], ValueError, r"one for each column, of shape \(2,\), got \(1,\)"),
        (MIXED, [0, 1], TypeError, "expected True or False for each column"),
        (MIXED, 1, TypeError, "dequantize expected True or False, got 1"),
        (MIXED, "yes", TypeError, "dequantize expected True or False"),
        (MIXED, {"k": True}, ValueError, "expected True or False for an array"),
        (COUNTS, [True], ValueError, r"of shape \(\), got \(1,\)"),
        (SITES, {"z": True}, ValueError, r"of some of \['x', 'k', 'y'\], got \['z'\]"),
        (SITES, {"k": 1}, TypeError, r"dequantize\['k'\] expected True or False"),
        (SITES, {"y": True}, ValueError, "got other numbers in y"),
        (SITES, [False, True, False, False], ValueError, "a dict by site for a dict of sites"),
    ],
)
def test_errors(data, dequantize, error, message):
    with pytest.raises(error, match=message):
        observe(data, dequantize=dequantize)


def test_a_gaussian_of_mixed_columns():
    """Its score is that of the moments; the noise adds 1/12 to the variance of the counts alone."""
    flow = fit(jax.random.key(0), MIXED, dequantize=[False, True])
    variances = np.array([1.0, 10 * 0.4 * 0.6 + 1 / 12])
    gaussian = 0.5 * np.log(2 * np.pi * np.e * variances).sum()
    assert flow.fit.held_out.nll == pytest.approx(gaussian, abs=0.02 + 4 * flow.fit.held_out.se)


@pytest.mark.slow
def test_the_score_is_a_bound():
    """Of the entropy of normal and binomial numbers, which a spline flow nearly reaches."""
    flow = fit_density(jax.random.key(0), MIXED, dequantize=[False, True], test=0.2, progress_bar=False)
    log_pmf = np.asarray(dist.Binomial(10, 0.4).log_prob(np.arange(11)))
    entropy = 0.5 * np.log(2 * np.pi * np.e) - (np.exp(log_pmf) * log_pmf).sum()
    assert entropy - 4 * flow.fit.test.se < flow.fit.test.nll < entropy + 0.3 + 4 * flow.fit.test.se
