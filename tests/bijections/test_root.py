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


@jax.jit
def there_and_back(y):
    x, log_derivative = invert_increasing(kinked, y, "kinked")
    return x, log_derivative, *kinked(x)


def test_the_root_is_found_from_far_and_near(dtype):
    y = np.array([-1e4, -30.0, -1.02, -1e-6, 0.0, 1e-3, 0.5, 1.0001, 7.0, 1e6], dtype)
    _, log_derivative, value, expected = there_and_back(y)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(value, y, rtol=16 * eps, atol=16 * eps)
    np.testing.assert_array_equal(log_derivative, -expected)


def test_gradients_of_any_order_in_both_modes(x64):
    def inverse(y, slope):
        return invert_increasing(lambda x: kinked(x, slope), y, "kinked")[0]

    @jax.jit
    @jax.vmap
    def derivatives(y, slope):
        first = [order(inverse, (0, 1))(y, slope) for order in (jax.grad, jax.jacfwd)]
        return inverse(y, slope), first, [jax.grad(order(inverse))(y, slope) for order in (jax.grad, jax.jacfwd)]

    step = 1e-5
    x, first, second = derivatives(
        *np.array([[0.3, 0.05]] + [[0.3 + s, 0.05] for s in (step, -step)] + [[0.3, 0.05 + s] for s in (step, -step)]).T
    )
    for (in_y, in_slope), curvature in zip(first, second):
        np.testing.assert_allclose(in_y[0], (x[1] - x[2]) / (2 * step), rtol=1e-6)
        np.testing.assert_allclose(in_slope[0], (x[3] - x[4]) / (2 * step), rtol=1e-6)
        np.testing.assert_allclose(curvature[0], (in_y[1] - in_y[2]) / (2 * step), rtol=1e-6)


def test_nan_is_handed_on_and_does_not_stop_others():
    x, _, value, _ = there_and_back(np.r_[np.nan, np.full(9, 0.5)])
    assert np.isnan(x[0])
    np.testing.assert_allclose(value[1:], 0.5, rtol=1e-6)


def test_what_has_no_root_is_an_error():
    def bounded(x):
        return jnp.tanh(x), jnp.log1p(-(jnp.tanh(x) ** 2))

    with pytest.raises(RuntimeError, match="the numerical inverse of bounded did not converge"):
        eqx.filter_jit(lambda y: invert_increasing(bounded, y, "bounded"))(jnp.array([0.5, 3.0]))


def test_steep_maps_of_many_sizes_side_by_side():
    """Rounding near a root, while others are still being bracketed, once sent a bracket to infinity."""
    rng = np.random.default_rng(0)

    @jax.jit
    def both_ways(y, params):
        x, log_derivative = Bernstein().inverse_and_log_derivative(y, params)
        return x, log_derivative, *Bernstein().transform_and_log_derivative(x, params)

    for scale in (1.0, 1e2, 1e4, 1e6):
        params = (scale * rng.normal(size=(2000, Bernstein().num_params))).astype("float32")
        y = (rng.normal(size=2000) * rng.choice([1e-3, 1.0, 1e3], 2000)).astype("float32")
        x, log_derivative, value, expected = both_ways(y, params)
        size = np.abs(params).sum(-1) + np.abs(y) + np.abs(x * np.exp(expected))
        assert (np.abs(value - y) <= 64 * np.finfo("float32").eps * size).all()
        np.testing.assert_array_equal(log_derivative, -expected)
