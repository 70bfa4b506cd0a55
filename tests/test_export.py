"""Fits as ArviZ's data."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from arviz_stats.loo import loo
from arviz_stats.summary import summary
from scipy import stats

from numpyro_flows import FlowVI
from numpyro_flows.inference.to_arviz import to_datatree
from tests.example_models import posterior_of

Y = np.array([1.0, 2.0, 6.0], np.float32)
NUM_CHAINS = 16


def model(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("school", 3):
        theta = numpyro.sample("theta", dist.Normal(mu, 2))
        numpyro.deterministic("doubled", 2 * theta)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
    numpyro.factor("penalty", -(mu**2) / 50)


def awkward(y):
    """Names and shapes that ArviZ's own conversion does not take."""
    with numpyro.handlers.scope(prefix="a"):
        numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("row", 3):
        x = jnp.asarray(numpyro.sample("x", dist.Normal(0, 1)))
        numpyro.sample("wide", dist.Normal(0, 1).expand([2, 3]))  # a batch dimension left of the plate
        numpyro.deterministic("total", x.sum())
        numpyro.factor("penalty", -(x**2))
    numpyro.sample("y", dist.MultivariateNormal(x, jnp.eye(3)), obs=y)
    numpyro.sample("unsampled", dist.ImproperUniform(dist.constraints.real, (), ()), obs=1.0)
    with numpyro.handlers.mask(mask=jnp.array(False)):
        numpyro.factor("masked", x.sum())


@pytest.fixture(scope="module")
def posterior():
    return FlowVI(model, num_steps=0, progress_bar=False).run(jax.random.key(0), 2.0, y=Y)


@pytest.fixture(scope="module")
def tree(posterior):
    return posterior.to_datatree(num_samples=100, num_chains=NUM_CHAINS, rng_key=jax.random.key(1))


def test_groups_and_dimensions(tree):
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "posterior_predictive",
        "log_likelihood",
        "observed_data",
        "prior",
        "prior_predictive",
    }
    assert dict(tree.posterior.sizes) == {"chain": NUM_CHAINS, "draw": 100, "school": 3}
    assert dict(tree.prior.sizes) == {"chain": 1, "draw": 100, "school": 3}
    assert set(tree.posterior.data_vars) == {"mu", "theta", "doubled"}
    assert tree.posterior["doubled"].dims == ("chain", "draw", "school")
    assert set(tree.prior.data_vars) == set(tree.posterior.data_vars)
    for group in ("posterior_predictive", "prior_predictive", "log_likelihood"):
        assert set(tree[group].data_vars) == {"y"}  # not the factor
        assert tree[group]["y"].dims == ("chain", "draw", "school")
    np.testing.assert_array_equal(tree.observed_data["y"], Y)


def test_chains_are_independent(tree):
    """Each of draws of its own, so that the spread of their means is that of means of independent draws."""
    mu = tree.posterior["mu"].to_numpy()
    assert len(np.unique(mu)) > 0.9 * mu.size  # systematic resampling takes few draws twice, and none in two chains
    assert all(np.intersect1d(mu[0], chain).size == 0 for chain in mu[1:])
    statistic = mu.mean(1).var(ddof=1) / (mu.var() / 100) * (NUM_CHAINS - 1)
    assert 1e-4 < stats.chi2(NUM_CHAINS - 1).cdf(statistic) < 1 - 1e-4


def test_draws_of_the_prior(tree):
    prior = {name: tree.prior[name].to_numpy()[0] for name in tree.prior.data_vars}
    y = tree.prior_predictive["y"].to_numpy()[0]
    np.testing.assert_array_equal(prior["doubled"], 2 * prior["theta"])
    for sample in (prior["mu"] / 5, (prior["theta"] - prior["mu"][:, None]) / 2, (y - prior["theta"]) / 2):
        assert stats.kstest(sample.ravel(), stats.norm().cdf).pvalue > 1e-4


def test_densities_of_draws(posterior, tree):
    draws = {name: tree.posterior[name].to_numpy() for name in ("mu", "theta")}
    joint = dist.Normal(0, 5).log_prob(draws["mu"]) - draws["mu"] ** 2 / 50
    joint += dist.Normal(draws["mu"][..., None], 2).log_prob(draws["theta"]).sum(-1)
    likelihood = dist.Normal(draws["theta"], 2).log_prob(Y)
    np.testing.assert_allclose(tree.log_likelihood["y"], likelihood, rtol=1e-4)
    np.testing.assert_allclose(tree.sample_stats["lp"], joint + likelihood.sum(-1), rtol=1e-4)
    weights = tree.sample_stats["lp"] - posterior.log_prob(draws)  # all on one scale: no constraints here
    np.testing.assert_allclose(tree.sample_stats["log_weight"], weights, atol=1e-3)


def test_predictions_scatter_around_theta(tree):
    residuals = (tree.posterior_predictive["y"] - tree.posterior["theta"]).values
    assert abs(residuals.mean()) < 0.3
    assert abs(residuals.std() / 2 - 1) < 0.1


def test_certificate_is_in_the_attributes(posterior, tree):
    attributes = tree.posterior.attrs
    assert attributes["inference_library"] == "numpyro_flows"
    assert attributes["certified"] == 1
    assert attributes["why"] == ""
    assert attributes["reason"] == posterior.reason
    assert attributes["looser_settings"] == ""
    assert attributes["log_evidence"] == posterior.log_evidence
    assert attributes["ess"] == posterior.ess


def test_netcdf_round_trip(tree, tmp_path):
    path = tmp_path / "fit.nc"
    tree.to_netcdf(path, engine="h5netcdf")
    with xr.open_datatree(path, engine="h5netcdf") as again:
        again = again.load()
    xr.testing.assert_identical(again.map_over_datasets(_bare), tree.map_over_datasets(_bare))
    assert again.posterior.attrs["log_evidence"] == tree.posterior.attrs["log_evidence"]


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")  # each school has a theta of its own
def test_arviz_reads_it(tree):
    table = summary(tree, fmt="wide", round_to="none")
    assert list(table.index[:2]) == ["doubled[0]", "doubled[1]"]
    num = NUM_CHAINS * 100
    assert table["r_hat"].to_numpy().max() < 1.03
    assert np.abs(table["ess_bulk"].to_numpy() / num - 1).max() < 0.3
    assert "elpd_loo" in str(loo(tree))


@pytest.mark.parametrize("plot", ["plot_rank", "plot_prior_posterior", "plot_ppc_dist"])
@pytest.mark.slow  # `arviz_plots` takes seconds to import
def test_arviz_draws_it(tree, plot):
    import arviz_plots

    options = {"group": "prior_predictive"} if plot == "plot_ppc_dist" else {"var_names": ["mu"]}
    assert getattr(arviz_plots, plot)(tree, backend="none", **options).viz


def test_coordinates(posterior):
    names = ["north", "east", "south"]
    tree = to_datatree(posterior, jax.random.key(1), 10, coords={"school": names})
    for group in ("posterior", "posterior_predictive", "log_likelihood", "observed_data", "prior", "prior_predictive"):
        assert tree[group]["school"].to_numpy().tolist() == names


def test_awkward_names_and_shapes(tmp_path):
    tree = posterior_of(awkward, Y).to_datatree(num_samples=20)
    shapes = {name: array.shape[2:] for name, array in tree.posterior.data_vars.items()}
    assert shapes == {"a.z": (2,), "x": (3,), "wide": (2, 3), "total": ()}
    assert tree.log_likelihood["y"].shape == (4, 20)
    assert set(tree.prior.data_vars) == set(shapes)
    assert not {"posterior_predictive", "prior_predictive"} & set(tree.children)  # "unsampled" has no sampler
    tree.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")


def test_model_without_observations():
    def prior():
        numpyro.sample("x", dist.Normal(0, 1))

    tree = posterior_of(prior).to_datatree(num_samples=10, num_chains=2)
    assert set(tree.children) == {"posterior", "sample_stats", "prior"}
    assert tree.posterior["x"].shape == (2, 10)


def test_prior_without_sampler():
    def improper():
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(x, 1), obs=0.5)

    tree = posterior_of(improper).to_datatree(num_samples=10)
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "posterior_predictive",
        "log_likelihood",
        "observed_data",
    }


@pytest.mark.slow  # Poisson draws take seconds to compile
def test_counts():
    """JAX has Poisson draws by one of its generators only."""

    def counts():
        rate = numpyro.sample("rate", dist.Gamma(4, 2))
        numpyro.sample("y", dist.Poisson(rate), obs=3)

    tree = posterior_of(counts).to_datatree(num_samples=500)
    for draws, predictions in ((tree.posterior, tree.posterior_predictive), (tree.prior, tree.prior_predictive)):
        y, rate = predictions["y"].to_numpy(), draws["rate"].to_numpy()
        assert np.issubdtype(y.dtype, np.integer)
        assert abs((y - rate).mean()) < 4.5 * np.sqrt(rate.mean() / y.size)


@pytest.mark.slow  # a process of its own imports everything
def test_arviz_imported_before_numpyro():
    # then NumPyro is loaded lazily, and `numpyro.infer` lacks the modules that ArviZ reads
    script = """
import arviz_base
from numpyro.infer import MCMC
import numpyro, numpyro.distributions as dist
from arviz_base.io_numpyro import infer_dims
from numpyro_flows.inference.to_arviz import _complete_numpyro
_complete_numpyro()
print(infer_dims(lambda: numpyro.sample("x", dist.Normal())))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "{}", result.stderr


def test_rejects_no_draws(posterior):
    with pytest.raises(ValueError, match="num_samples expected at least 1, got 0"):
        posterior.to_datatree(num_samples=0)
    with pytest.raises(ValueError, match="num_chains expected at least 1, got 0"):
        posterior.to_datatree(num_chains=0)


def _bare(dataset):
    """A dataset without attributes: netCDF keeps lists as arrays."""
    return dataset.drop_attrs()


def test_shown_in_a_notebook(posterior):
    html = posterior._repr_html_()
    first = posterior.verdict().split("\n")[0]
    assert f">{first}</strong>" in html
    assert html.count("<div") == html.count("</div>") == 1


@pytest.mark.parametrize("name", ["plot_density", "plot_forest", "plot_pair", "plot_predictive"])
def test_pictures(posterior, name):
    """Each scalar of `theta` is drawn; keywords reach ArviZ."""
    options = {} if name == "plot_predictive" else {"var_names": ["theta"]}
    plot = getattr(posterior, name)(**options)
    assert plot.viz["figure"].item() is not None
    plt.close("all")


def test_a_predictive_picture_needs_data():
    alone = posterior_of(lambda: numpyro.sample("x", dist.Normal()))
    with pytest.raises(ValueError, match="an observed site that it can draw, got none"):
        alone.plot_predictive()
