"""AutoFlow where NumPyro's own guides go."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from numpyro.contrib.module import eqx_module
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, init_to_value
from numpyro.infer.reparam import NeuTraReparam
from scipy.stats import norm

from numpyro_flows import AutoFlow, FlowDistribution, PathELBO, flows
from numpyro_flows.bijections import Affine
from numpyro_flows.inference.target import Target
from tests.example_models import conjugate, conjugate_posterior, eight_schools

TINY = partial(flows.realnvp, num_layers=2, hidden=(8,))


def fit(model, guide, loss, num_steps, rate: Any = 5e-3):
    svi = SVI(model, guide, numpyro.optim.ClippedAdam(rate), loss)
    init_state = jax.jit(svi.init)(jax.random.key(0))  # `svi.run` would compile operation by operation
    return svi.run(jax.random.key(0), num_steps, progress_bar=False, init_state=init_state)


@pytest.fixture(scope="module")
def schools():
    """Trained a little: what tests say of it holds for every flow."""
    guide = AutoFlow(eight_schools, TINY)
    return guide, fit(eight_schools, guide, Trace_ELBO(num_particles=16), 400)


@pytest.mark.slow
@pytest.mark.optimized
def test_svi_reaches_the_evidence():
    result = fit(eight_schools, AutoFlow(eight_schools), Trace_ELBO(num_particles=32), 1500)
    assert result.losses.shape == (1500,)
    # log evidence -31.31 (10,000 importance weights of a reference fit); the bound may fall short, never exceed it
    tail = np.asarray(result.losses[-300:])
    error = tail.std() / np.sqrt(tail.size)
    assert 31.31 - 4.5 * error < tail.mean() < 31.31 + 0.15 + 4.5 * error


def test_predictive_and_sample_posterior(schools):
    """By keys of either style."""
    guide, result = schools

    @jax.jit
    def evaluate(key, old_key):
        draws = guide.sample_posterior(key, result.params, sample_shape=(6, 2))
        predictive = Predictive(eight_schools, guide=guide, params=result.params, num_samples=5)
        of_guide = Predictive(guide, params=result.params, num_samples=5)
        return draws, predictive(key, y=None), of_guide(old_key)

    draws, predicted, again = evaluate(jax.random.key(1), jax.random.PRNGKey(1))
    assert {name: value.shape for name, value in draws.items()} == {
        "mu": (6, 2),
        "tau": (6, 2),
        "z": (6, 2, 8),
        "theta": (6, 2, 8),
    }
    np.testing.assert_allclose(draws["theta"], draws["mu"][..., None] + draws["tau"][..., None] * draws["z"], rtol=1e-4)
    assert predicted["y"].shape == (5, 8)
    assert again["tau"].shape == (5,)
    assert np.all(again["tau"] > 0)


def test_get_posterior_density_is_normalised_by_the_evidence(schools):
    """`log p(x, data) - log q(x)` averages to the log evidence; -31.31 by a reference fit."""
    guide, result = schools
    target = Target(eight_schools, jax.random.key(0))

    @jax.jit
    def evaluate(key):
        posterior = guide.get_posterior(result.params)
        latent = posterior.sample(key, (4000,))
        assert guide.get_transform(result.params).inv(latent).shape == latent.shape
        return jax.vmap(target.log_density)(latent) - posterior.log_prob(latent)

    weights = np.exp(np.asarray(evaluate(jax.random.PRNGKey(3))) + 31.31)
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / np.sqrt(weights.size)


def test_median_and_quantiles(schools):
    guide, result = schools

    @jax.jit
    def evaluate(key):
        draws = guide.sample_posterior(key, result.params, sample_shape=(10_000,))
        return draws, guide.quantiles(result.params, [0.1, 0.5, 0.9]), guide.median(result.params)

    draws, quantiles, median = evaluate(jax.random.key(4))
    assert quantiles["theta"].shape == (3, 8)
    np.testing.assert_array_equal(median["tau"], quantiles["tau"][1])
    for name in ("mu", "tau", "theta"):
        expected = np.quantile(draws[name], [0.1, 0.5, 0.9], axis=0)
        # a tail quantile of 10,000 draws has a standard error below 0.03 sd, the difference of two below 0.045
        assert np.all(np.abs(quantiles[name] - expected) < 4.5 * 0.045 * np.std(draws[name], axis=0))
    with pytest.raises(ValueError, match=r"values in \[0, 1\], got \[1.5\]"):
        guide.quantiles(result.params, [1.5])


@pytest.mark.slow
@pytest.mark.optimized
def test_neutra():
    """NUTS on the flow's base space: the geometry is nearly Gaussian, the posterior the same."""
    guide = AutoFlow(eight_schools)
    result = fit(eight_schools, guide, Trace_ELBO(num_particles=32), 1500)
    neutra = NeuTraReparam(guide, result.params)
    mcmc = MCMC(NUTS(neutra.reparam(eight_schools)), num_warmup=200, num_samples=800, progress_bar=False)
    mcmc.run(jax.random.key(0))
    draws = neutra.transform_sample(mcmc.get_samples()["auto_shared_latent"])
    assert mcmc.get_extra_fields()["diverging"].sum() <= 8
    # reference: mu has mean 4.4, sd 3.3; at least 200 effective draws give a standard error of 0.23
    assert abs(draws["mu"].mean() - 4.4) < 4.5 * 0.23


@pytest.mark.slow
def test_one_latent_dimension():
    guide = AutoFlow(conjugate, TINY)
    result = fit(conjugate, guide, PathELBO(num_particles=16), 1000, rate=1e-2)
    assert result.losses.shape == (1000,)
    mean, sd, log_evidence = conjugate_posterior()
    posterior = guide.get_posterior(result.params)
    assert posterior.event_shape == (1,)
    # the family holds the posterior and the path gradient's noise vanishes there: only the optimiser's error remains
    assert abs(result.losses[-100:].mean() + log_evidence) < 0.01
    draws = np.asarray(jax.jit(lambda key: posterior.sample(key, (20_000,)))(jax.random.key(0)))
    assert abs(draws.mean() - mean) < 4.5 * sd / np.sqrt(20_000) + 0.03 * sd
    assert abs(draws.std() / sd - 1) < 0.05


def test_init_loc_fn_is_honoured():
    values = {"mu": jnp.array(3.0), "tau": jnp.array(2.0), "z": jnp.linspace(-1, 1, 8)}
    at_values: Any = init_to_value(values=values)
    guide = AutoFlow(eight_schools, lambda key, dim: Affine(jnp.zeros(dim)), init_loc_fn=at_values, init_scale=1e-3)
    svi = SVI(eight_schools, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    params = svi.get_params(jax.jit(svi.init)(jax.random.key(0)))
    median = jax.jit(guide.median)(params)
    for name, value in values.items():
        np.testing.assert_allclose(median[name], value, atol=3e-3 * 3)


@pytest.mark.slow
@pytest.mark.optimized
def test_plates_and_subsampled_data():
    """Stochastic gradients of a subsampled regression find the least-squares line."""
    x = jax.random.normal(jax.random.key(0), (500,))
    y = 1.0 + 2.0 * x + 0.3 * jax.random.normal(jax.random.key(1), (500,))

    def model():
        slope = numpyro.sample("slope", dist.Normal(0, 5))
        with numpyro.plate("groups", 2):
            offset = jnp.asarray(numpyro.sample("offset", dist.Normal(0, 5)))
        with numpyro.plate("n", 500, subsample_size=100) as index:
            numpyro.sample("y", dist.Normal(offset.sum() + slope * x[index], 0.3), obs=y[index])

    guide = AutoFlow(model)
    # falls to 0: at a constant rate the noise of subsampling stays in the last iterate
    result = fit(model, guide, Trace_ELBO(num_particles=16), 2500, rate=lambda step: 4e-3 * (1 - step / 2500))
    median = guide.median(result.params)
    posterior_sd = 0.3 / np.sqrt(500)
    slope = np.polyfit(x, y, 1)[0]
    assert abs(median["slope"] - slope) < 3 * posterior_sd
    assert median["offset"].shape == (2,)


@pytest.mark.slow
@pytest.mark.optimized
def test_constrained_and_multivariate_sites():
    def model():
        numpyro.sample("weights", dist.Dirichlet(jnp.array([2.0, 3.0, 5.0])))
        numpyro.sample("lkj", dist.LKJCholesky(2, 2.0))

    guide = AutoFlow(model)
    result = fit(model, guide, PathELBO(num_particles=16), 1200, rate=3e-3)
    draws = guide.sample_posterior(jax.random.key(0), result.params, sample_shape=(4000,))
    np.testing.assert_allclose(draws["weights"].sum(-1), 1.0, atol=1e-5)
    sd = np.sqrt(0.2 * 0.8 / 11)
    assert abs(draws["weights"][:, 0].mean() - 0.2) < 0.1 * sd


@pytest.mark.unchecked
@pytest.mark.slow
@pytest.mark.optimized
def test_a_flowjax_flow_as_guide():
    def theirs(key, dim) -> Any:
        return coupling_flow(key, base_dist=Normal(jnp.zeros(dim)), flow_layers=2, nn_width=16).bijection

    guide = AutoFlow(eight_schools, theirs)
    result = fit(eight_schools, guide, PathELBO(num_particles=16), 1000)
    assert result.losses[-200:].mean() < 32.0
    assert guide.median(result.params)["theta"].shape == (8,)


@pytest.mark.slow  # `fit` above does the same
def test_traced_initialisation():
    """`SVI.init` under `jit` leaves nothing of its trace behind."""
    svi = SVI(eight_schools, AutoFlow(eight_schools, TINY), numpyro.optim.Adam(1e-3), Trace_ELBO())
    state = jax.jit(svi.init)(jax.random.key(0))
    state, loss = jax.jit(svi.update)(state)
    assert np.isfinite(loss)


def test_prior_learned_in_the_model():
    """`eqx_module` registers a bijection's arrays as parameters: SVI finds the normal of largest likelihood."""
    data = 3.0 + 2.0 * np.random.default_rng(0).normal(size=(50, 1))

    def model():
        prior = FlowDistribution(eqx_module("prior", Affine(jnp.zeros(1))))
        with numpyro.plate("n", len(data)):
            numpyro.sample("x", prior, obs=data)

    svi = SVI(model, lambda: None, numpyro.optim.Adam(0.05), Trace_ELBO())
    result = svi.run(jax.random.key(0), 500, progress_bar=False)
    learned = FlowDistribution(result.params["prior$params"])
    expected = norm.logpdf(data[:, 0], data.mean(), data.std())
    np.testing.assert_allclose(jax.jit(learned.log_prob)(data), expected, atol=0.01)


def test_errors():
    with pytest.raises(ValueError, match=r"init_scale expected a number in \(0, inf\), got 0"):
        AutoFlow(conjugate, init_scale=0)

    def wrong(key, dim):
        return Affine(jnp.zeros(dim + 1))

    guide = AutoFlow(eight_schools, wrong)
    with pytest.raises(ValueError, match=r"bijection of shape \(10,\), got shape \(11,\)"):
        guide.get_posterior(fit(eight_schools, guide, Trace_ELBO(), 1).params)
