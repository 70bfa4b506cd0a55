"""Fits as ArviZ's data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from arviz_stats.loo import loo
from arviz_stats.summary import summary

from numpyro_flows import FlowVI
from numpyro_flows.inference.to_arviz import to_datatree

Y = np.array([1.0, 2.0, 6.0], np.float32)


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
    return posterior.to_datatree(num_samples=300, rng_key=jax.random.key(1))


def test_groups_and_dimensions(tree):
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "posterior_predictive",
        "log_likelihood",
        "observed_data",
    }
    assert dict(tree.posterior.sizes) == {"chain": 1, "draw": 300, "school": 3}
    assert set(tree.posterior.data_vars) == {"mu", "theta", "doubled"}
    assert tree.posterior["doubled"].dims == ("chain", "draw", "school")
    for group in ("posterior_predictive", "log_likelihood"):
        assert set(tree[group].data_vars) == {"y"}  # not the factor
        assert tree[group]["y"].dims == ("chain", "draw", "school")
    np.testing.assert_array_equal(tree.observed_data["y"], Y)


def test_draws_are_those_of_sample(posterior, tree):
    draws = posterior.sample(jax.random.key(1), 300)
    for name, values in draws.items():
        np.testing.assert_array_equal(tree.posterior[name][0], values)


def test_densities_of_draws(posterior, tree):
    draws = {name: tree.posterior[name].values[0] for name in ("mu", "theta")}
    joint = dist.Normal(0, 5).log_prob(draws["mu"]) - draws["mu"] ** 2 / 50
    joint += dist.Normal(draws["mu"][:, None], 2).log_prob(draws["theta"]).sum(-1)
    likelihood = dist.Normal(draws["theta"], 2).log_prob(Y)
    np.testing.assert_allclose(tree.log_likelihood["y"][0], likelihood, rtol=1e-4)
    np.testing.assert_allclose(tree.sample_stats["lp"][0], joint + likelihood.sum(-1), rtol=1e-4)
    weights = tree.sample_stats["lp"][0] - posterior.log_prob(draws)  # all on one scale: no constraints here
    np.testing.assert_allclose(tree.sample_stats["log_weight"][0], weights, atol=1e-3)


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
    assert list(summary(tree, fmt="wide").index[:2]) == ["doubled[0]", "doubled[1]"]
    assert "elpd_loo" in str(loo(tree))


def test_coordinates(posterior):
    names = ["north", "east", "south"]
    tree = to_datatree(posterior, jax.random.key(1), 10, coords={"school": names})
    for group in ("posterior", "posterior_predictive", "log_likelihood", "observed_data"):
        assert tree[group]["school"].to_numpy().tolist() == names


def test_awkward_names_and_shapes(tmp_path):
    posterior = FlowVI(awkward, num_steps=0, progress_bar=False).run(jax.random.key(0), Y)
    tree = posterior.to_datatree(num_samples=20)
    shapes = {name: array.shape[2:] for name, array in tree.posterior.data_vars.items()}
    assert shapes == {"a.z": (2,), "x": (3,), "wide": (2, 3), "total": ()}
    assert tree.log_likelihood["y"].shape == (1, 20)
    assert "posterior_predictive" not in tree.children  # "unsampled" has no sampler
    tree.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")


def test_model_without_observations():
    def prior():
        numpyro.sample("x", dist.Normal(0, 1))

    tree = FlowVI(prior, num_steps=0, progress_bar=False).run(jax.random.key(0)).to_datatree(num_samples=10)
    assert set(tree.children) == {"posterior", "sample_stats"}


def test_rejects_no_draws(posterior):
    with pytest.raises(ValueError, match="num_samples expected at least 1, got 0"):
        posterior.to_datatree(num_samples=0)


def _bare(dataset):
    """A dataset without attributes: netCDF keeps lists as arrays."""
    return dataset.drop_attrs()
