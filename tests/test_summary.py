"""The table of a posterior: errors of means, moments that do not exist, ArviZ's rows and columns."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from numpyro_flows import FlowVI
from numpyro_flows.inference.certificate import resample
from numpyro_flows.inference.psis import smooth, tail_shape
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.summary import MAX_KHAT_OF_SQUARES, NUM_DRAWS, WeightedDraws, mcse_factors
from tests.example_models import posterior_of

SETTINGS = FlowVISettings()
WITH_MOMENTS = {
    "normal": stats.norm(),
    "gamma": stats.gamma(0.1),
    "lognormal": stats.lognorm(1.0),
    "Student-t 4": stats.t(4),
    "uniform": stats.uniform(),
}
WITHOUT_VARIANCE = {"Student-t 1.5": stats.t(1.5), "inverse gamma": stats.invgamma(1.5)}
WITHOUT_MEAN = {"half-Cauchy": stats.halfcauchy(), "Pareto": stats.pareto(0.2), "Student-t": stats.t(0.1)}


@pytest.mark.parametrize("spread", [1.0, 1.3])
def test_the_error_is_the_spread_of_resampled_means(spread):
    """Draws of `N(0, spread^2)`, with weights for `N(0, 1)`, equal ones too: over 500 sets."""
    rng, num, means, errors = np.random.default_rng(0), 500, [], []
    for _ in range(500):
        x = spread * rng.standard_normal(4 * num)
        log_weights = stats.norm.logpdf(x) - stats.norm.logpdf(x, scale=spread)
        weights = np.exp(smooth(log_weights)[0])
        means.append(x[resample(log_weights, num, rng)].mean())
        errors.append(np.sqrt(mcse_factors(weights, num) @ (x - weights @ x) ** 2))
    assert np.std(means) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=4.5 / np.sqrt(2 * 500))
    if spread == 1:
        np.testing.assert_allclose(errors, 1 / np.sqrt(num), rtol=0.1)


def khats(distribution, seed):
    x = distribution.rvs(NUM_DRAWS, random_state=np.random.default_rng(seed))
    distances = np.abs(x - np.median(x))
    return tail_shape(distances), tail_shape(distances**2)


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_no_false_alarm(name):
    khat, of_squares = np.transpose([khats(WITH_MOMENTS[name], seed) for seed in range(20)])
    assert khat.max() < SETTINGS.max_khat
    assert of_squares.max() < MAX_KHAT_OF_SQUARES


@pytest.mark.parametrize("name", WITHOUT_VARIANCE)
def test_no_variance(name):
    assert min(khats(WITHOUT_VARIANCE[name], seed)[1] for seed in range(20)) >= MAX_KHAT_OF_SQUARES


@pytest.mark.parametrize("name", WITHOUT_MEAN)
def test_no_mean(name):
    """Also with a shape of 10: around the mean of the draws, all but the largest would be equally far from it."""
    assert min(khats(WITHOUT_MEAN[name], seed)[0] for seed in range(20)) >= SETTINGS.max_khat


def test_the_tail_shape_is_the_k_hat_of_weights():
    log_weights = np.random.default_rng(0).normal(0, 1.5, 5000)
    assert tail_shape(np.exp(log_weights)) == pytest.approx(smooth(log_weights)[1], rel=1e-6)
    assert tail_shape(1e100 * np.exp(log_weights)) == pytest.approx(smooth(log_weights)[1], rel=1e-6)


def test_where_there_is_no_tail():
    rng = np.random.default_rng(0)
    for values in (np.zeros(5000), np.ones(5000), rng.uniform(size=5000) < 0.3, np.ones(3)):
        assert np.isnan(tail_shape(values.astype(float)))
    nearly_constant = 1 + 1e-3 * rng.pareto(1.2, 5000)
    assert tail_shape(nearly_constant) > 0.7
    assert np.isnan(tail_shape(nearly_constant, least_share=0.01))
    assert tail_shape(np.array([*rng.uniform(size=5000), np.inf])) == np.inf


def model():
    """Its sites are normal, independent. Functions of them have known distributions."""
    x = jnp.asarray(numpyro.sample("x", dist.Normal(0, 1)))
    with numpyro.plate("row", 2):
        z = jnp.asarray(numpyro.sample("z", dist.Normal(0, 1)))
    uniform = dist.Normal(0, 1).cdf(z)
    numpyro.deterministic("lognormal", jnp.exp(z))
    numpyro.deterministic("half_cauchy", 1 / jnp.tan(jnp.pi / 2 * uniform[0]))  # the tail at the cdf's accurate end
    numpyro.deterministic("no_variance", uniform[1] ** (-1 / 1.5))
    numpyro.deterministic("positive", x > 0.5)
    numpyro.deterministic("constant", 0.1)


ROWS = ["constant", "half_cauchy", "lognormal[0]", "lognormal[1]", "no_variance", "positive", "x", "z[0]", "z[1]"]
COLUMNS = ["mean", "sd", "eti89_lb", "eti89_ub", "median", "iqr", "mcse_mean", "khat"]


@pytest.fixture(
    scope="module",
    params=[pytest.param(1.0, id="exact", marks=pytest.mark.slow), pytest.param(1.05, id="weighted")],
)
def posterior(request):
    return posterior_of(model, loc=0.0, scale=request.param)


@pytest.fixture(scope="module")
def table(posterior):
    return posterior.summary(round_to="none")


def test_rows_and_columns(table):
    assert sorted(table.index) == ROWS
    assert list(table.columns) == COLUMNS


def test_moments_that_exist_are_right(table):
    with_mean = table.drop(index=["half_cauchy", "no_variance", "constant"])
    assert with_mean.notna().drop(columns="khat").all(axis=None)  # of `positive` there is no tail
    mean = {"lognormal[0]": np.exp(0.5), "lognormal[1]": np.exp(0.5), "positive": stats.norm.sf(0.5)}
    sd = {"lognormal[0]": np.sqrt(np.e**2 - np.e), "lognormal[1]": np.sqrt(np.e**2 - np.e), "positive": 0.4617}
    for name, row in with_mean.iterrows():
        assert abs(row["mean"] - mean.get(name, 0.0)) < 4.5 * row["mcse_mean"]
        assert row["sd"] == pytest.approx(sd.get(name, 1.0), rel=0.2 if "log" in str(name) else 0.05)
        assert row["mcse_mean"] == pytest.approx(row["sd"] / np.sqrt(NUM_DRAWS / SETTINGS.pool), rel=0.15)


def test_moments_that_do_not_exist_are_nan(table):
    assert table.loc["half_cauchy", "khat"] >= SETTINGS.max_khat
    assert table.loc["half_cauchy", ["mean", "sd", "mcse_mean"]].isna().all()
    assert table.loc["no_variance", ["sd", "mcse_mean"]].isna().all()
    tolerance = 4.5 * 1.5 / np.sqrt(NUM_DRAWS / SETTINGS.pool)  # generous: sds of quantiles
    assert table.loc["half_cauchy", "median"] == pytest.approx(1.0, rel=tolerance)
    assert table.loc["half_cauchy", "iqr"] == pytest.approx(2.0, rel=2 * tolerance)
    assert table.loc["no_variance", "median"] == pytest.approx(0.5 ** (-1 / 1.5), rel=tolerance)


def test_a_constant_and_an_indicator_have_no_tail(table):
    """Even where the weights differ so little that they look heavy-tailed on their own scale."""
    assert np.isnan(table.loc["constant", "khat"])
    assert not table.loc["positive", "khat"] >= SETTINGS.max_khat
    assert table.loc["constant", "mean"] == pytest.approx(0.1)
    assert table.loc["constant", ["sd", "iqr", "mcse_mean"]].to_numpy() == pytest.approx(np.zeros(3), abs=1e-12)


def test_print_summary_names_the_rows_without_moments(posterior, capsys):
    posterior.print_summary()
    lines = capsys.readouterr().out.splitlines()
    mean = "no mean or standard deviation: the tails are too heavy; use the median and iqr of half_cauchy"
    sd = "no standard deviation: the tails are too heavy; use the median and iqr of no_variance"
    if lines[-1] != mean:  # the mean of `no_variance` may be marked too: it converges slowly
        assert lines[-2:] == [mean, sd] or lines[-1] == f"{mean}, no_variance"


def test_a_bad_fit_has_heavy_weights(capsys):
    """Not a site's tails, and not only them: so says the line below the table."""
    posterior_of(model, loc=0.0, scale=0.2, why="it does not fit").print_summary()
    line = capsys.readouterr().out.splitlines()[-1]
    assert "the tails, or those of this fit's weights, are too heavy; use the median and iqr of half_cauchy" in line
    assert line.endswith("x, z[0], z[1]")


def test_digits_are_rounded_below_the_error(posterior, table):
    rounded = posterior.summary()
    columns = [name for name in COLUMNS if name != "khat"]
    difference = (rounded[columns] - table[columns]).abs().max(axis=1)
    assert (difference <= 0.000501 * table["iqr"].where(table["iqr"] > 0, 1)).all()
    assert rounded.loc["x", "khat"] == round(table.loc["x", "khat"], 2)
    assert posterior.summary(round_to=1).loc["x", "iqr"] == round(table.loc["x", "iqr"], 1)


def test_keywords_go_to_arviz(posterior, table):
    some = posterior.summary(var_names=["z"], coords={"row": [1]}, round_to="none", ci_prob=0.5)
    assert list(some.index) == ["z[1]"]
    assert some.loc["z[1]", "mcse_mean"] == table.loc["z[1]", "mcse_mean"]
    assert "eti50_lb" in some
    every = posterior.summary(kind="all", round_to="none")
    assert {"ess_bulk", "r_hat", "mcse_sd", "median", "iqr", "khat"} <= set(every)
    assert every["mcse_mean"].equals(table["mcse_mean"])  # ours, which knows of the weights
    assert every.loc[["half_cauchy", "no_variance"], "mcse_sd"].isna().all()
    median = posterior.summary(kind="all_median", round_to="none")
    assert list(median.columns).count("median") == 1


def test_formats_of_arviz(posterior, table):
    long = posterior.summary(fmt="long", var_names=["x", "half_cauchy"], round_to="none")
    pd.testing.assert_frame_equal(long, table.loc[list(long)].T, check_names=False)
    dataset: xr.Dataset = posterior.summary(fmt="xarray", round_to="none")  # pyright: ignore[reportAssignmentType]
    assert float(dataset["z"].sel(summary="khat", row=1)) == table.loc["z[1]", "khat"]


def test_many_scalars_get_fewer_draws(posterior, monkeypatch):
    monkeypatch.setattr("numpyro_flows.inference.summary._MOST_NUMBERS", 9 * 5_000)
    draws = WeightedDraws.of(posterior, jax.random.key(0))
    assert draws.sites["z"].shape == (5_000, 2)
    assert len(draws.kept) == 1_248  # four chains of them


@pytest.mark.slow
def test_the_error_is_the_spread_over_keys():
    posterior = posterior_of(model, loc=0.0, scale=1.3)
    means, errors = [], []
    for seed in range(50):
        draws = WeightedDraws.of(posterior, jax.random.key(seed))
        x = draws.sites["x"].astype(np.float64)
        means.append(x[draws.kept].mean())
        errors.append(np.sqrt(draws.mcse_factors @ (x - draws.smoothed @ x) ** 2))
    assert np.std(means) == pytest.approx(np.mean(errors), rel=4.5 / np.sqrt(2 * 50))


@pytest.mark.slow
@pytest.mark.optimized
def test_of_a_fit():
    """A certified fit does not say that its sites have moments: here the prior is the posterior."""

    def prior():
        numpyro.sample("half_cauchy", dist.HalfCauchy(1))
        numpyro.sample("lognormal", dist.LogNormal(0, 1))
        numpyro.sample("gamma", dist.Gamma(2, 1))

    for seed in range(3):
        posterior = FlowVI(prior, progress_bar=False).run(jax.random.key(seed))
        assert posterior.certified
        table = posterior.summary()
        assert [name for name, sd in table["sd"].items() if np.isnan(sd)] == ["half_cauchy"]
        assert np.isnan(table.loc["half_cauchy", "mean"])
        assert table.loc["half_cauchy", "median"] == pytest.approx(1.0, rel=0.15)
