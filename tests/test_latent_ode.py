"""The latent ODE as NumPyro's model and guide, and its path against SciPy."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.util import log_density
from numpyro.optim import Adam
from scipy.integrate import solve_ivp
from scipy.stats import norm

from numpyro_flows import FlowDistribution, LatentODE
from numpyro_flows.latent_ode.fit import negative_elbo
from numpyro_flows.latent_ode.networks import thinned
from numpyro_flows.latent_ode.programs import PARAM_NAME
from tests.bijections.common import made
from tests.latent_odes import DOSES, eps, params_of, perturbed, realnvp, small, untrained, untrained_with_doses, waves


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)], indirect=True)
def test_masked_entries_change_nothing(dtype):
    times, values = waves(length=9)
    latent_ode = perturbed(untrained())
    some = np.isin(np.arange(9), [1, 3, 4, 6, 7])  # a gap before, one within, and padding behind
    mask = np.broadcast_to(some, (6, 9))

    def hidden(mask):
        return np.where(mask, times, np.nan), np.where(mask[..., None], values, np.nan), mask

    plain, padded = latent_ode.encode(times[:, some], values[:, some]), latent_ode.encode(*hidden(mask))
    mean = np.asarray(plain.mean)
    assert mean.dtype == dtype
    np.testing.assert_allclose(padded.mean, mean, rtol=0, atol=100 * eps(dtype))
    np.testing.assert_allclose(padded.variance, plain.variance, rtol=100 * eps(dtype))

    @jax.jit
    def density(*series):
        conditioned = partial(latent_ode.model, *series)
        return log_density(conditioned, (), {}, {"z0": mean, PARAM_NAME: params_of(latent_ode)})[0]

    # given z0, what two masks let through has the log densities that add up to that of all
    prior = norm.logpdf(mean).sum()
    by_feature = np.random.default_rng(0).uniform(size=values.shape) < 0.5
    by_feature[:, 0] = [True, False]  # either mask lets something of each series through
    for one in (np.repeat(mask[..., None], 2, axis=-1), by_feature):
        parts = [float(density(times, np.where(there, values, np.nan), there)) - prior for there in (one, ~one)]
        whole = float(density(times, values, np.ones(values.shape, bool))) - prior
        np.testing.assert_allclose(sum(parts), whole, rtol=1e3 * eps(dtype))


def test_masked_features_change_nothing():
    times, values = waves()
    mask = np.random.default_rng(0).uniform(size=values.shape) < 0.6
    mask[:, 0, 0] = True
    latent_ode = perturbed(untrained())

    def encoded(elsewhere, mask=mask):
        q = latent_ode.encode(times, np.where(mask, values, elsewhere), mask)
        return np.stack([q.mean, q.variance])

    found = encoded(np.nan)
    assert np.isfinite(found).all()
    for elsewhere in (0.0, np.inf, 1e30):
        np.testing.assert_array_equal(encoded(elsewhere), found)
    # a gap is not a zero, nor the center of the feature
    assert np.abs(encoded(0.0, np.ones_like(mask)) - found).max() > 1e-3
    # a mask of times is the mask of all features there
    whole = np.arange(5) < np.array([5, 4, 3, 5, 2, 1])[:, None]
    np.testing.assert_array_equal(encoded(0.0, whole[..., None] & [True, True]), encoded_times(latent_ode, whole))


def encoded_times(latent_ode, mask):
    times, values = waves()
    q = latent_ode.encode(times, values, mask)
    return np.stack([q.mean, q.variance])


def test_path_is_the_solution_of_the_field(x64):
    latent_ode, dose = perturbed(untrained_with_doses()), np.array([[0.7]])
    z0, times = np.array([[0.5, -1.0]]), np.array([1.0, 1.7, 2.5, 4.0])
    found = np.asarray(eqx.filter_jit(latent_ode.path)(jnp.asarray(z0), jnp.asarray(times)[None], dose)[0])
    field = eqx.filter_jit(partial(latent_ode.field, covariates=dose[0]))
    # the window's length, 2, is the unit of time
    exact = solve_ivp(
        lambda t, z: np.asarray(field(z)), (0, 1.5), z0[0], t_eval=(times - 1) / 2, rtol=1e-10, atol=1e-10
    )
    # between steps the solver interpolates, of an order less than its steps
    np.testing.assert_allclose(found, exact.y.T, rtol=0, atol=1e-3 * np.abs(exact.y).max())
    np.testing.assert_allclose(found[-1], exact.y[:, -1], rtol=0, atol=1e-4 * np.abs(exact.y).max())
    np.testing.assert_allclose(found[0], z0[0], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_solver_error_falls_with_the_steps(x64):
    times, values = waves()
    errors = [
        perturbed(small(jax.random.key(0), 2, num_steps=num_steps)).solver_error(times, values).max()
        for num_steps in (2, 8, 32)
    ]
    assert errors[0] > 4 * errors[1] > 4 * errors[2]  # of third order, but for the tolerance of the other


@pytest.mark.slow
@pytest.mark.parametrize("covariates", [None, DOSES], ids=["alone", "doses"])
def test_elbo_of_model_and_guide(x64, covariates):
    times, values = waves()
    mask = np.random.default_rng(0).uniform(size=values.shape) < 0.6
    mask[:, 0, 1] = True
    series = times, values, mask, covariates
    scales = {} if covariates is None else {"cov_dim": 1, "cov_center": [0.5], "cov_spread": [2.0]}
    latent_ode = perturbed(small(jax.random.key(0), 2, **scales))
    svi = SVI(latent_ode.model, latent_ode.guide, Adam(1e-3), Trace_ELBO(num_particles=400))
    state = svi.init(jax.random.key(1), *series)
    loss = svi.evaluate(state, *series) / 6

    # the same by hand, of other draws
    q = latent_ode.encode(*series)
    z0 = q.sample(jax.random.key(2), (400,))
    path = jax.vmap(lambda z: latent_ode.path(z, jnp.asarray(times), covariates, in_training=True))(z0)
    log_prob = jnp.where(mask, dist.Normal(latent_ode.decode(path), latent_ode.noise).log_prob(values), 0)
    condition = None if covariates is None else (covariates - 0.5) / 2.0
    log_prior = FlowDistribution(latent_ode.flow, condition=condition).log_prob(z0)
    terms = (log_prob.sum((-1, -2)) + log_prior - q.log_prob(z0)).sum(1) / 6
    standard_error = terms.std() / np.sqrt(400)
    assert abs(-terms.mean() - loss) < 4 * np.sqrt(2) * standard_error

    filled = jax.tree.map(jnp.asarray, latent_ode.observe(*series))
    ours = negative_elbo(params_of(latent_ode), latent_ode, filled, jax.random.key(3), batch_size=None, num_draws=400)
    assert abs(ours - loss) < 4 * np.sqrt(2) * standard_error


@pytest.mark.slow
def test_minibatches_estimate_the_loss_of_all(x64):
    times, values = waves()
    latent_ode = perturbed(small(jax.random.key(0), 2, flow=None))
    series = jax.tree.map(jnp.asarray, latent_ode.observe(times, values))

    @partial(jax.jit, static_argnums=1)
    def losses(keys, batch_size):
        loss = partial(negative_elbo, params_of(latent_ode), latent_ode, series, batch_size=batch_size)
        return jax.vmap(lambda key: loss(key))(keys)

    some, full = (np.asarray(losses(jax.random.split(jax.random.key(1), 2000), size)) for size in (2, None))
    standard_error = np.sqrt((some.var() + full.var()) / 2000)
    assert abs(some.mean() - full.mean()) < 4 * standard_error


@pytest.mark.slow
def test_gradient_against_differences(x64):
    times, values = waves(num=3)
    latent_ode = perturbed(small(jax.random.key(0), 2))
    params = params_of(latent_ode)
    series = jax.tree.map(jnp.asarray, latent_ode.observe(times, values))

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return negative_elbo(params, latent_ode, series, jax.random.key(1), batch_size=None)

    direction = params_of(perturbed(jax.tree.map(jnp.zeros_like, params), seed=5, scale=1.0))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), loss(params)[1], direction)))
    step = 1e-5
    ahead, behind = (loss(jax.tree.map(lambda p, d, by=by: p + by * d, params, direction))[0] for by in (step, -step))
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-5)


def test_thinning_keeps_something_of_every_series():
    mask = np.random.default_rng(0).uniform(size=(1000, 3, 2)) < 0.7
    mask[:, 0] = True
    kept = np.asarray(jax.jit(thinned)(jax.random.key(0), mask, 0.9))
    assert kept.any((1, 2)).all()
    assert not kept[~mask].any()  # nothing is added
    assert kept.sum() < mask.sum()
    np.testing.assert_array_equal(kept, mask & kept.any(-1, keepdims=True))  # whole times are left out


def test_parts_of_one_key_are_the_same_with_other_parts():
    def parts(**options):
        latent_ode = LatentODE(jax.random.key(0), 2, latent_dim=2, width=8, **options)
        networks = latent_ode.encoder.cell, latent_ode.encoder.head.network, latent_ode.field.network.network
        return jax.tree.leaves((networks, latent_ode.field.linear, latent_ode.decoder))

    plain = parts(flow=None)
    for other in (parts(flow=realnvp), parts(flow=None, cov_dim=3)):
        for one, same in zip(plain, other, strict=True):
            np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize("cov_dim", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_base_coordinates_of_the_prior_are_standard_normal(cov_dim):
    latent_ode = perturbed(made(lambda: small(jax.random.key(0), 1, cov_dim=cov_dim)), scale=0.1)
    known = None if cov_dim is None else np.random.default_rng(0).normal(size=(4000, cov_dim))

    @jax.jit
    def draw(key):
        prior = latent_ode.prior_given(known, 4000)
        return prior.sample(key, () if prior.batch_shape else (4000,))

    base = np.asarray(latent_ode.to_base(draw(jax.random.key(1)), known))
    np.testing.assert_allclose(np.mean(base, 0), 0, atol=4 / np.sqrt(4000))
    np.testing.assert_allclose(np.cov(base.T), np.eye(2), atol=4 * np.sqrt(2 / 4000))
