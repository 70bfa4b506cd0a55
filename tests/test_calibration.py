"""`benchmarks.calibration`: ranks and bands by known answers, evidences computed in another way, and real fits."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from benchmarks.calibration import conjugate, fits, models
from benchmarks.calibration.report import FALSE_ALARM, summarised_evidence, summarised_ranks
from numpyro_flows.diagnostics.ranks import band, normalised_ranks

FIT = {"certified": "True", "by": "weights", "ess": "0.97", "seconds": "4.0"}


def test_a_rank_lies_between_those_of_its_neighbours():
    draws = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    ranks = [normalised_ranks(np.array([2.5, 5.0]), draws, np.random.default_rng(i)) for i in range(1000)]
    below, equal = np.transpose(ranks)
    assert 0.5 <= below.min() <= below.max() <= 0.75  # two of three draws are smaller
    assert scipy.stats.kstest(equal, "uniform").pvalue > 0.01  # none is smaller, and all are equal


def test_ranks_among_draws_of_the_same_distribution_are_uniform():
    rng = np.random.default_rng(0)
    ranks = [normalised_ranks(rng.poisson(2.0, 3), rng.poisson(2.0, (9, 3)), rng) for _ in range(1000)]
    assert scipy.stats.kstest(np.ravel(ranks), "uniform").pvalue > 0.01


def test_a_band_contains_uniform_values_with_its_probability():
    limits, rng = band(200, 1 - FALSE_ALARM / 10), np.random.default_rng(1)
    outside = np.mean([not limits.contains(rng.uniform(size=200)) for _ in range(4000)])
    assert 0.002 < outside < 0.01  # 0.005 by the definition, with a standard error of 0.001


def test_too_small_sds_are_caught():
    """Ten independent scalars as a model has them, with ranks that follow exactly from normal draws."""
    z = np.random.default_rng(0).normal(size=(200, 10))
    columns = {f"x[{i}]": scipy.stats.norm.cdf(z[:, i]) for i in range(10)}
    columns |= {f"x[{i}] shrunk": scipy.stats.norm.cdf(z[:, i] / 0.8) for i in range(10)}
    rows = [FIT | {"number": n} | {name: str(value[n]) for name, value in columns.items()} for n in range(200)]
    summary = summarised_ranks("normal", rows)
    assert [row["quantity"] for row in summary] == [f"x[{i}]" for i in range(10)]
    assert all(row["fit_in_band"] for row in summary)
    assert sum(row["shrunk_in_band"] for row in summary) <= 6


def test_refused_fits_stay_in_the_scores_and_are_named():
    rows = [FIT | {"number": n, "error": error, "se": 2.0, "monte_carlo_se": 1.0} for n, error in enumerate((-2, 2, 6))]
    rows[1]["certified"] = "False"
    summary = summarised_evidence("model", rows)
    assert (summary["certified"], summary["refused"]) == (2, "1")
    assert (summary["z_mean"], summary["z_sd"]) == ("1.000", "2.000")
    assert (summary["z_monte_carlo_mean"], summary["z_monte_carlo_sd"]) == ("2.000", "4.000")


def test_exact_evidence_of_counts():
    y = np.array([0, 2, 5])

    def joint(rate):
        prior = scipy.stats.gamma.pdf(rate, conjugate.SHAPE, scale=1 / conjugate.RATE)
        return prior * scipy.stats.poisson.pmf(y, rate).prod()

    expected = np.log(scipy.integrate.quad(joint, 0, 50, epsabs=0)[0])
    np.testing.assert_allclose(conjugate.gamma_poisson_log_evidence(y), expected, rtol=1e-8)


def test_exact_evidence_of_an_unknown_variance():
    """Given these priors `y` has a multivariate Student-t distribution."""
    y = np.array([0.3, -1.2, 2.0, 0.7, 0.1])
    shape = np.eye(5) + 1 / conjugate.PRIOR_ROWS
    scale = conjugate.VARIANCE_SCALE / conjugate.VARIANCE_SHAPE
    student: Any = scipy.stats.multivariate_t  # its stub expects integers
    expected = student(np.zeros(5), scale * shape, df=2 * conjugate.VARIANCE_SHAPE).logpdf(y)
    np.testing.assert_allclose(conjugate.normal_inverse_gamma_log_evidence(y), expected, rtol=1e-10)


def test_draws_shrink_on_the_unconstrained_scale(x64):
    rng = np.random.default_rng(0)
    draws = {"mu": rng.normal(size=50), "tau": rng.gamma(2.0, size=50), "theta": rng.normal(size=(50, 8))}
    draws = {name: jnp.asarray(x) for name, x in draws.items()}
    shrunk = fits.shrunk(models.MODELS["eight_schools"], jnp.zeros(8), draws)
    for name, unconstrained in {"mu": jnp.asarray, "tau": jnp.log, "theta": jnp.asarray}.items():
        before, after = unconstrained(draws[name]), unconstrained(shrunk[name])
        np.testing.assert_allclose(after.mean(0), before.mean(0), atol=1e-12)
        np.testing.assert_allclose(after.std(0), 0.8 * before.std(0), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.optimized
def test_a_data_set_is_fitted_and_ranked(x64):
    fit, ranks = fits.ranks(models.MODELS["logistic"], 0)
    assert fit.certified
    assert ranks.names == ["intercept", *(f"slope[{i}]" for i in range(4)), "log density"]
    assert np.all((ranks.fit > 0) & (ranks.fit < 1))
    # shrinkage keeps the side of the mean, and draws the truth's rank outwards
    outwards = np.abs(ranks.shrunk - 0.5) - np.abs(ranks.fit - 0.5)
    assert outwards[:-1].mean() > 0
    _, again = fits.ranks(models.MODELS["logistic"], 0)
    np.testing.assert_array_equal(again.fit, ranks.fit)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("name", list(conjugate.MODELS))
def test_log_evidence_is_within_its_error(x64, name):
    fit, evidence = fits.evidence(conjugate.MODELS[name], 0)
    assert fit.certified
    assert 0 < evidence.monte_carlo_se <= evidence.se < 0.01
    assert abs(evidence.error) < 4 * evidence.se
