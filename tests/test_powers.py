"""Power transforms of skewed columns, which a density is fitted behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows import FlowDistribution, fit_density
from numpyro_flows.bijections import Chain, YeoJohnson
from numpyro_flows.density.powers import Powers

RNG = np.random.default_rng(0)
SKEWED = np.exp(RNG.normal(size=(600, 2)) @ np.array([[1.0, 0.4], [0.0, 0.7]]))


def powers_of(x, weights=None):
    return Powers.of(x, np.ones(len(x)) if weights is None else weights, np.random.default_rng(1))


def test_rows_and_their_volume(x64):
    """As by the bijections that are folded into the flow, also beyond the data."""
    powers = powers_of(SKEWED)
    assert powers is not None
    x = np.concatenate([SKEWED[:5], [[-3.0, 0.1], [500.0, 200.0]]])
    y, log_det = powers.rows(x)
    whole = Chain(list(powers.bijections))
    base, of_base = jax.vmap(whole.inverse_and_log_det)(jnp.asarray(x))
    np.testing.assert_allclose(base, y, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(of_base, log_det, rtol=1e-9)
    back, log_det_back = jax.vmap(whole.transform_and_log_det)(base)
    np.testing.assert_allclose(back, x, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-7)


def test_columns_that_gain_nothing_stay():
    normal, two_modes = RNG.normal(size=1_000), RNG.choice([-2.0, 2.0], 1_000) + 0.3 * RNG.normal(size=1_000)
    assert powers_of(np.stack([normal, two_modes], axis=1)) is None
    mixed = powers_of(np.stack([normal, np.exp(normal)], axis=1))
    assert mixed is not None
    assert mixed.power[0] == 1.0
    assert mixed.power[1] < 0.5


def test_weights_count():
    """Of two parts, one skewed to the right and one to the left, the weighted one decides."""
    x = np.concatenate([np.exp(RNG.normal(size=(500, 1))), -np.exp(RNG.normal(size=(500, 1)))])
    right = powers_of(x, np.repeat([1.0, 1e-6], 500))
    left = powers_of(x, np.repeat([1e-6, 1.0], 500))
    assert right is not None
    assert left is not None
    assert right.power[0] < 1.0 < left.power[0]


@pytest.mark.parametrize("wrong", [(0.5, 1.0), (-1.0, 0.0)])
def test_ends_on_both_sides_of_zero(wrong):
    with pytest.raises(ValueError, match="expected low < 0 < high"):
        YeoJohnson(np.zeros(1), *wrong)


@pytest.mark.slow
def test_a_skewed_density_needs_no_training(tmp_path):
    """After one step the density of lognormal columns is right, in its tail too, and a file keeps it."""
    flow = fit_density(jax.random.key(0), SKEWED, num_steps=1, progress_bar=False)
    root = np.array([[1.0, 0.4], [0.0, 0.7]])
    fresh = np.exp(np.random.default_rng(2).normal(size=(4_000, 2)) @ root)
    log = np.log(fresh)
    precision = np.linalg.inv(root.T @ root)
    squares = np.einsum("ni,ij,nj->n", log, precision, log)
    truth = -0.5 * squares - np.log(2 * np.pi) - np.log(0.7) - log.sum(1)
    lost = truth - np.asarray(flow.log_prob(jnp.asarray(fresh, np.float32)))
    gaussian = -0.5 * np.linalg.slogdet(np.cov(fresh.T))[1] - np.log(2 * np.pi) - 1.0
    # the transform has no shift of its own, so it is not the logarithm; the best Gaussian loses 1.3 nats
    assert 0.0 < lost.mean() < 0.2 * (truth.mean() - gaussian)
    draws = np.asarray(flow.sample(jax.random.key(1), (4_000,)))
    np.testing.assert_allclose(np.median(draws, axis=0), np.median(fresh, axis=0), rtol=0.15)
    np.testing.assert_allclose(np.quantile(draws, 0.95, axis=0), np.quantile(fresh, 0.95, axis=0), rtol=0.25)
    flow.save(tmp_path / "flow")
    loaded = FlowDistribution.load(tmp_path / "flow")
    np.testing.assert_allclose(loaded.log_prob(fresh[:10]), flow.log_prob(fresh[:10]), rtol=1e-5)


def test_outliers_keep_their_digits():
    """One row far out: draws and scores there agree in single precision."""
    x = np.concatenate([RNG.exponential(size=(2_000, 1)), [[1e4]]])
    powers = powers_of(x)
    assert powers is not None
    flow = Chain(list(powers.bijections))
    far = jnp.asarray([[1e4], [3e3], [100.0], [1.0]], jnp.float32)
    base, _ = jax.vmap(flow.inverse_and_log_det)(far)
    np.testing.assert_allclose(jax.vmap(flow.transform)(base), far, rtol=2e-2)
