"""Distributions of independent coordinates with several modes each, on densities whose answers are known."""

import numpy as np
import pytest
import scipy.stats

from numpyro_flows.inference.certificate import certify
from numpyro_flows.inference.mixture import Mixture, adapted, weighted_draws
from numpyro_flows.inference.product import Normals, Product
from numpyro_flows.inference.settings import FlowVISettings

SETTINGS = FlowVISettings()
DIM = 12  # 4,096 modes
NORMALS = Normals(np.array([0.3, 0.7]), np.array([-4.0, 3.0]), np.array([1.0, 0.5]))


def many_modes(x):
    """Each coordinate is `0.3 N(-4, 1) + 0.7 N(3, 0.25)`, all are independent."""
    return np.sum([NORMALS.log_prob(column) for column in x.T], axis=0), np.zeros_like(x)


def test_draws_follow_the_density():
    product = Product((NORMALS, Normals(np.ones(1), np.array([2.0]), np.array([3.0]))))
    x = product.draw(np.random.default_rng(0), 20_000)

    def cdf(t):
        return 0.3 * scipy.stats.norm.cdf(t, -4.0, 1.0) + 0.7 * scipy.stats.norm.cdf(t, 3.0, 0.5)

    assert scipy.stats.kstest(x[:, 0], cdf).pvalue > 0.01
    assert scipy.stats.kstest(x[:, 1], scipy.stats.norm(2.0, 3.0).cdf).pvalue > 0.01
    grid = np.linspace(-15.0, 15.0, 3_001)
    np.testing.assert_allclose(np.trapezoid(np.exp(NORMALS.log_prob(grid)), grid), 1.0, atol=1e-9)
    exact = NORMALS.log_prob(x[:, 0]) + scipy.stats.norm.logpdf(x[:, 1], 2.0, 3.0)
    np.testing.assert_allclose(product.log_prob(x), exact)


def test_points_of_independent_coordinates_are_fitted():
    x = Product((NORMALS, NORMALS)).draw(np.random.default_rng(0), 20_000)
    product = Product.of(x, SETTINGS)
    for _ in range(30):
        product = product.towards(x, np.ones(len(x)), SETTINGS)
    held_out = Product((NORMALS, NORMALS)).draw(np.random.default_rng(1), 20_000)
    lost = many_modes(held_out)[0] - product.log_prob(held_out)
    assert lost.mean() < 0.01  # nats: 34 parameters, worth half of one for each of 20,000 points, and slow last steps


@pytest.mark.parametrize("x", [np.zeros((1, 2)), np.ones((50, 2)), np.repeat([[0.0, 1.0], [5.0, 1.0]], 20, axis=0)])
def test_equal_points_break_nothing(x):
    product = Product.of(x, SETTINGS)
    draws = product.draw(np.random.default_rng(0), 100)
    assert np.isfinite(draws).all()
    assert np.isfinite(product.log_prob(draws)).all()


def test_points_of_single_precision_may_lie_far_out():
    x = np.array([[-1e25], [0.0], [1e25], [2e25]], np.float32)
    product = Product.of(x, SETTINGS)
    assert np.isfinite(product.log_prob(product.draw(np.random.default_rng(0), 100))).all()


def test_weights_that_are_zero_change_nothing():
    product = Product((NORMALS,))
    assert product.towards(np.zeros((5, 1)), np.zeros(5), SETTINGS) is product


def test_thousands_of_modes_are_found_from_a_few_points():
    """From 60 of them, by importance weights, which are poor at first."""
    rng = np.random.default_rng(0)
    product = Product.of(Product((NORMALS,) * DIM).draw(rng, 60), SETTINGS)
    first = certify(weighted_draws(Mixture.even([product]), many_modes, rng, 20_000).log_weight)
    mixture = adapted(Mixture.even([product]), many_modes, rng, SETTINGS)
    certificate = certify(weighted_draws(mixture, many_modes, rng, 20_000).log_weight)
    assert first.ess < 0.5
    assert certificate.ess > 0.8
    assert certificate.log_evidence == pytest.approx(0.0, abs=4 * certificate.log_evidence_se)
