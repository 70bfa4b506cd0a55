"""Fits against NUTS."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

from numpyro_flows import FlowVI, compare_with_nuts
from numpyro_flows.diagnostics.tables import compare_methods
from numpyro_flows.diagnostics.timed_nuts import run_nuts

Y = np.array([1.0, 2.0, 6.0], np.float32)
SITE_COLUMNS = "flow_mean nuts_mean flow_sd nuts_sd difference_in_mcse difference_in_sd sd_ratio wasserstein"
SITE_COLUMNS += " nuts_ess_bulk nuts_ess_tail nuts_rhat"
METHOD_COLUMNS = "seconds compile_seconds gradient_evaluations draws min_ess_bulk min_ess_tail ess_per_second"
METHOD_COLUMNS += " ess_per_second_compiling divergences max_rhat khat"


def model(y):
    """Conjugate: mu and theta have a Gaussian posterior."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("school", 3):
        theta = numpyro.sample("theta", dist.Normal(mu, 2))
        numpyro.sample("y", dist.Normal(theta, 2), obs=y)
    numpyro.deterministic("doubled", 2 * mu)
    numpyro.deterministic("constant", jnp.array(3.0))
    numpyro.factor("penalty", -(mu**2) / 50)


@pytest.fixture(scope="module")
def posterior():
    return FlowVI(model, num_steps=0, progress_bar=False).run(jax.random.key(0), Y)


@pytest.fixture(scope="module")
def comparison(posterior):
    coords = {"school": ["north", "east", "south"]}
    settings = {"num_warmup": 300, "num_samples": 500, "num_flow_samples": 3000, "progress_bar": False}
    return compare_with_nuts(posterior, jax.random.key(1), coords=coords, **settings)


def test_tables(comparison):
    labels = ["mu", "theta[north]", "theta[east]", "theta[south]", "doubled", "constant"]
    assert sorted(comparison.sites.index) == sorted(labels)
    assert list(comparison.sites.columns) == SITE_COLUMNS.split()
    assert list(comparison.methods.index) == ["flow", "NUTS"]
    assert list(comparison.methods.columns) == METHOD_COLUMNS.split()


def test_means_agree_with_the_exact_posterior(comparison):
    precision = np.zeros((4, 4))  # of mu, then theta
    precision[0, 0] = 1 / 25 + 1 / 25 + 3 / 4  # prior and penalty, and the three thetas
    precision[0, 1:] = precision[1:, 0] = -1 / 4
    precision[range(1, 4), range(1, 4)] = 1 / 4 + 1 / 4
    covariance = np.linalg.inv(precision)
    mean, sd = covariance @ [0, *Y / 4], np.sqrt(np.diag(covariance))
    sites = comparison.sites.loc[["mu", "theta[north]", "theta[east]", "theta[south]"]]
    for method in ("flow", "nuts"):
        np.testing.assert_array_less(np.abs(sites[f"{method}_mean"] - mean) / sd, 0.15)
        np.testing.assert_allclose(sites[f"{method}_sd"], sd, rtol=0.15)


def test_differences_are_chance(comparison):
    sites = comparison.sites.drop(index="constant")
    assert sites["difference_in_mcse"].abs().max() < 4.5
    assert sites["difference_in_sd"].abs().max() < 0.15
    assert sites["wasserstein"].between(0, 0.15).all()
    assert sites["nuts_rhat"].max() < 1.05
    # two estimates of one sd, of 3,000 draws and of more than 100 effective ones
    assert sites["sd_ratio"].between(1 - 4.5 / np.sqrt(200), 1 + 4.5 / np.sqrt(200)).all()


def test_scalars_that_never_change_have_nothing_to_compare(comparison):
    row = comparison.sites.loc["constant"]
    assert row["flow_mean"] == pytest.approx(3)
    assert row["nuts_mean"] == pytest.approx(3)
    assert row[SITE_COLUMNS.split()[4:]].isna().all()


def test_methods(posterior, comparison):
    flow, nuts = comparison.methods.loc["flow"], comparison.methods.loc["NUTS"]
    assert flow["draws"] == 3000
    assert nuts["draws"] == 2000
    assert 0.9 * 3000 < flow["min_ess_bulk"] <= 3000
    assert flow["gradient_evaluations"] == sum(posterior.gradient_evaluations.values())
    assert nuts["gradient_evaluations"] > 4 * (300 + 500)
    assert nuts["min_ess_bulk"] == comparison.sites["nuts_ess_bulk"].min()
    assert nuts["divergences"] == 0
    assert np.isnan(flow["divergences"])
    assert np.isnan(nuts["khat"])
    for row in (flow, nuts):
        assert min(row["seconds"], row["compile_seconds"]) > 0
        assert 0 < row["ess_per_second_compiling"] < row["ess_per_second"]


def test_rates_count_seconds_with_compilation_and_without():
    table = compare_methods({"seconds": 2.0, "compile_seconds": 3.0, "min_ess_bulk": 100.0}, {"draws": 7})
    assert table.loc["flow", "ess_per_second"] == 50
    assert table.loc["flow", "ess_per_second_compiling"] == 20
    assert np.isnan(table.loc["NUTS", "ess_per_second"])


def test_datatrees_have_the_same_layout(comparison):
    for tree in (comparison.flow, comparison.nuts):
        assert dict(tree.posterior.sizes) == {"chain": 4, "draw": 500, "school": 3}
    assert comparison.flow.posterior.attrs["certified"] == 1
    assert set(comparison.nuts.sample_stats.data_vars) == {"diverging", "n_steps", "lp", "energy"}


def test_print_summary(comparison, capsys):
    comparison.print_summary(max_rows=2)
    text = capsys.readouterr().out
    assert text.startswith("flow (certified): means differ from NUTS's by at most")
    assert "the 2 of 6 scalars that differ most" in text
    assert "ess_per_second" in text


def test_plot_writes_an_image(comparison, tmp_path):
    path = tmp_path / "comparison.png"
    comparison.plot(path)
    assert path.read_bytes()[1:4] == b"PNG"
    assert "constant" not in comparison.plot_density(backend="none").data
    forest = comparison.plot_forest(var_names=["mu"], backend="none")
    assert set(forest.data.data_vars) == {"mu"}


@pytest.mark.slow
def test_nuts_is_that_of_mcmc(posterior):
    """Not only in law: draw by draw, for as long as rounding allows."""
    settings = {"num_warmup": 0, "num_samples": 5, "num_chains": 2, "progress_bar": False}
    run = run_nuts(model, (Y,), {}, jax.random.key(3), **settings)
    mcmc = MCMC(NUTS(model), chain_method="vectorized", **settings)
    mcmc.run(jax.random.key(3), Y, extra_fields=("num_steps",))
    np.testing.assert_allclose(run.latents["mu"], mcmc.get_samples(group_by_chain=True)["mu"], rtol=1e-3)
    assert run.gradient_evaluations == mcmc.get_extra_fields()["num_steps"].sum()


def test_rejects_wrong_arguments(posterior):
    with pytest.raises(TypeError, match="posterior expected a FlowPosterior, got a function"):
        compare_with_nuts(model, jax.random.key(0))  # pyright: ignore[reportArgumentType]
    wrongs: list[dict[str, Any]] = [{"num_warmup": -1}, {"num_samples": 3}, {"num_chains": 0}, {"num_flow_samples": 99}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))} expected at least \d+, got .*"):
            compare_with_nuts(posterior, jax.random.key(0), **wrong)
