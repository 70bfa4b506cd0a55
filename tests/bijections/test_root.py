"""Numerical inverses: they find the root wherever it is, know their derivatives, and say when they failed."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.bijections import Bernstein
from numpyro_flows.bijections.root import invert_increasing


def kinked(x, slope=0.05):
    """Nearly flat, then steep, then nearly flat: Newton's method alone jumps to and fro."""
    return slope * x + jnp.tanh(10 * x), jnp.log(slope + 10 / jnp.cosh(10 * x) ** 2)


def test_the_root_is_found_from_far_and_near(dtype):
    y = jnp.asarray([-1e4, -30.0, -1.02, -1e-6, 0.0, 1e-3, 0.5, 1.0001, 7.0, 1e6])
    x, log_derivative = jax.jit(lambda y: invert_increasing(kinked, y, "kinked"))(y)
    value, expected = kinked(x)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(value, y, rtol=16 * eps, atol=16 * eps)
    np.testing.assert_array_equal(log_derivative, -expected)


def test_gradients_of_any_order_in_both_modes(x64):
    def inverse(y, slope):
        return invert_increasing(lambda x: kinked(x, slope), y, "kinked")[0]

    y, slope, step = jnp.array(0.3), jnp.array(0.05), 1e-5
    for order in (jax.grad, jax.jacfwd):
        in_y, in_slope = order(inverse, (0, 1))(y, slope)
        np.testing.assert_allclose(in_y, (inverse(y + step, slope) - inverse(y - step, slope)) / 2e-5, rtol=1e-6)
        numerical = (inverse(y, slope + step) - inverse(y, slope - step)) / 2e-5
        np.testing.assert_allclose(in_slope, numerical, rtol=1e-6)
        second = jax.grad(order(inverse))(y, slope)
        numerical = (order(inverse)(y + step, slope) - order(inverse)(y - step, slope)) / 2e-5
        np.testing.assert_allclose(second, numerical, rtol=1e-6)


def test_nan_is_handed_on_and_does_not_stop_others():
    x, _ = invert_increasing(kinked, jnp.array([jnp.nan, 0.5]), "kinked")
    assert np.isnan(x[0])
    np.testing.assert_allclose(kinked(x[1])[0], 0.5, rtol=1e-6)


def test_what_has_no_root_is_an_error():
    def bounded(x):
        return jnp.tanh(x), jnp.log1p(-(jnp.tanh(x) ** 2))

    with pytest.raises(RuntimeError, match="the numerical inverse of bounded did not converge"):
        eqx.filter_jit(lambda y: invert_increasing(bounded, y, "bounded"))(jnp.array([0.5, 3.0]))


def test_steep_maps_of_many_sizes_side_by_side():
    """Rounding near a root, while others are still being bracketed, once sent a bracket to infinity."""
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e2, 1e4, 1e6):
        params = jnp.asarray(scale * rng.normal(size=(2000, Bernstein().num_params)))
        y = jnp.asarray(rng.normal(size=2000) * rng.choice([1e-3, 1.0, 1e3], 2000))
        x, log_derivative = Bernstein().inverse_and_log_derivative(y, params)
        value, expected = Bernstein().transform_and_log_derivative(x, params)
        size = np.abs(params).sum(-1) + np.abs(y) + np.abs(x * np.exp(expected))
        assert (np.abs(value - y) <= 64 * np.finfo("float32").eps * size).all()
        np.testing.assert_array_equal(log_derivative, -expected)
