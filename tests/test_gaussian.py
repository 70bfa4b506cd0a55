import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.inference.certificate import certify
from numpyro_flows.inference.gaussian import draw_gaussian, fit_gaussian
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import weigh
from tests.densities import groups

SETTINGS = FlowVISettings()


def on_host(log_density) -> Density:
    evaluate = jax.jit(jax.vmap(jax.value_and_grad(log_density)))

    def density(x):  # in batches of one size: each other one would be compiled anew
        batches = np.resize(x, (-(-len(x) // SETTINGS.batch), SETTINGS.batch, x.shape[1]))
        values, gradients = (np.concatenate(parts)[: len(x)] for parts in zip(*map(evaluate, batches)))
        return values, gradients

    return density


def fit(log_density, starts, seed=0):
    return fit_gaussian(on_host(log_density), np.random.default_rng(seed), np.asarray(starts), SETTINGS)


def uniform_starts(dim, num=8):
    return jax.random.uniform(jax.random.key(9), (num, dim), minval=-2.0, maxval=2.0)


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1e-3, 1.0, 1e4)])
def test_a_gaussian_is_found_exactly(scales, x64):
    tril = jnp.array([[1.0, 0.0, 0.0], [0.9, 0.5, 0.0], [-0.7, 0.3, 0.2]]) * jnp.asarray(scales)[:, None]
    loc = 30.0 * jnp.asarray(scales)
    precision = jnp.linalg.inv(tril @ tril.T)
    result = fit(lambda x: -0.5 * (x - loc) @ precision @ (x - loc), uniform_starts(3))
    np.testing.assert_allclose(result.loc / np.asarray(scales), loc / np.asarray(scales), rtol=1e-4)
    np.testing.assert_allclose(
        result.scale / np.asarray(scales)[:, None], tril / np.asarray(scales)[:, None], atol=1e-4
    )
    assert np.all(np.diagonal(result.scale) > 0)


def test_the_best_of_two_modes():
    """Newton's method ends in both modes; the heavier one wins."""

    def log_density(x):
        return jnp.logaddexp(jnp.log(0.99) - 0.5 * jnp.sum((x - 6) ** 2), jnp.log(0.01) - 0.5 * jnp.sum((x + 6) ** 2))

    result = fit(log_density, 4 * uniform_starts(2, 16))
    np.testing.assert_allclose(result.loc, 6.0, atol=1e-2)


def test_no_mode(x64):
    """A funnel has none: log p grows without bound as v falls, and curvature there says nothing."""

    def log_density(x):
        v, rest = x[0], x[1:]
        return -0.5 * v**2 / 9 - 0.5 * jnp.sum(rest**2) * jnp.exp(-v) - 0.5 * rest.size * v

    result = fit(log_density, uniform_starts(5))
    elbo = (
        np.mean(
            [
                jax.vmap(log_density)(result.loc + u @ result.scale.T).mean()
                for u in jax.random.normal(jax.random.key(1), (10, 1000, 5))
            ]
        )
        + np.log(np.diagonal(result.scale)).sum()
    )
    # log Z is 0 up to the constants 2.5 log 2 pi + log 3, of which the entropy has 2.5 log 2 pi e
    assert -3.0 < elbo + 2.5 - np.log(3.0) < 0.0


def test_gradients_whose_squares_overflow():
    """Deep in the neck of a centred hierarchical model, where the first Gaussian of unit scale may be."""
    y = np.random.default_rng(1).normal(size=20)
    density = groups(lambda t: 0.1 * t - 0.1 * np.exp(t), lambda t: 0.1 - 0.1 * np.exp(t), y)
    starts = np.random.default_rng(1).uniform(-2, 2, (8, 22))
    result = fit_gaussian(density, np.random.default_rng(0), starts, SETTINGS)
    assert np.isfinite(result.loc).all()
    assert np.isfinite(result.scale).all()


@pytest.mark.slow
def test_no_mode_in_many_dimensions(x64):
    """A centred hierarchical model with 60 groups: its density has no bound, and a full Gaussian gets lost at once."""
    y = np.random.default_rng(0).normal(1.0, 0.5, size=(60, 8))

    def log_density(x):
        mu, log_tau, theta = x[0], x[1], x[2:]
        prior = -0.5 * (mu / 10) ** 2 - 0.5 * log_tau**2 - 0.5 * jnp.sum((theta - mu) ** 2) * jnp.exp(-2 * log_tau)
        return prior - theta.size * log_tau - 0.5 * jnp.sum((y - theta[:, None]) ** 2) / 0.25

    result = fit(log_density, np.concatenate([uniform_starts(62), 3 * uniform_starts(62)]))
    assert not result.climbs.converged.any()
    draws = weigh(draw_gaussian(on_host(log_density), result, np.random.default_rng(0), SETTINGS), SETTINGS)
    certificate = certify(draws.log_weight)
    assert certificate.log_evidence - certificate.elbo < 2.0  # nats


def test_many_dimensions_go_diagonal():
    dim = SETTINGS.max_full_dim + 1
    scales = jnp.exp(jnp.linspace(-2.0, 2.0, dim))
    result = fit(lambda x: -0.5 * jnp.sum(((x - 1) / scales) ** 2), uniform_starts(dim))
    assert result.scale.shape == (dim,)
    np.testing.assert_allclose(result.scale, scales, rtol=0.05)
    np.testing.assert_allclose((result.loc - 1) / scales, 0.0, atol=0.05)


def test_nowhere_finite():
    assert fit(lambda x: jnp.nan * x.sum(), uniform_starts(2)).elbo == -jnp.inf


def test_draws_have_the_weights_of_the_gaussian(x64):
    """A Gaussian that is off: the mean weight is still the normalising constant."""

    def log_density(x):
        return -0.5 * jnp.sum(x**2) - 0.1 * jnp.sum(x**4)

    result = fit(log_density, uniform_starts(2))
    draws = weigh(draw_gaussian(on_host(log_density), result, np.random.default_rng(0), SETTINGS), SETTINGS)
    grid = np.linspace(-6, 6, 2001)
    log_z = 2 * np.log(np.trapezoid(np.exp(-0.5 * grid**2 - 0.1 * grid**4), grid))
    certificate = certify(draws.log_weight)
    assert abs(certificate.log_evidence - log_z) < 4.5 * certificate.log_evidence_se
    assert abs(certificate.elbo - result.elbo) < 0.05


def test_the_draws_of_a_verdict_are_not_kept():
    """In memory there is a block of them at a time: 20,000 of 1,000 dimensions would take 160 MB."""
    dim, rng = 1000, np.random.default_rng(0)
    density = lambda x: (-0.5 * (x**2).sum(1), -x)  # noqa: E731
    gaussian = fit_gaussian(density, rng, np.zeros((1, dim)), SETTINGS)
    uneven = lambda x: (-0.5 * (x**2).sum(1) + np.sin(x[:, 0]), -x)  # noqa: E731 - fewer draws do not decide
    tracemalloc.start()
    try:
        draws = weigh(draw_gaussian(uneven, gaussian, rng, SETTINGS), SETTINGS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert draws.log_weight.shape == (SETTINGS.certificate_draws,)
    assert peak < SETTINGS.certificate_draws * dim * 8 / 3
