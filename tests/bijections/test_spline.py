"""What the laws do not see: knots, the bound, and parameters at their limits."""

from functools import partial

import jax
import numpy as np
import pytest

from numpyro_flows.bijections import RationalQuadraticSpline
from numpyro_flows.bijections.spline import bin_sizes
from tests.bijections.common import all_gradients, single_is_slow

SPLINE = RationalQuadraticSpline(num_bins=8, bound=5.0)


def draw_params(scale: float, num: int = 50) -> np.ndarray:
    return np.asarray(scale * np.random.default_rng(0).normal(size=(num, SPLINE.num_params)), float_type())


def float_type():
    return jax.dtypes.canonicalize_dtype(float)


@partial(jax.jit, static_argnums=0)
def compiled(method, x, params):
    return jax.vmap(jax.vmap(method, (0, None)))(x, params)


def each(method, x, params):
    """Row `i` of `x` through the spline of row `i` of `params`; padded to one size, so that it is compiled once."""
    num, num_x = x.shape
    x, params = (np.pad(a, [(0, 50 - num), (0, size - a.shape[1])], "edge") for a, size in ((x, 501), (params, 23)))
    return [np.asarray(a)[:num, :num_x] for a in compiled(method, x, params)]


def knots_of(raw):
    """Where the bins begin and end whose sizes `raw` gives."""
    ends = np.cumsum(jax.jit(bin_sizes)(raw), axis=-1)
    return 10.0 * np.pad(ends / ends[:, -1:], [(0, 0), (1, 0)]) - 5.0


def forward(x, params):
    """All of `x` `(num_x,)` through every spline of `params`: `(num, num_x)`."""
    return each(SPLINE.transform_and_log_derivative, np.broadcast_to(x, (len(params), len(x))), params)


def inverse(y, params):
    return each(SPLINE.inverse_and_log_derivative, np.broadcast_to(y, (len(params), len(y))), params)


def test_monotone(x64):
    y, _ = forward(np.linspace(-6, 6, 501), draw_params(2.0))
    assert (np.diff(y) > 0).all()


def test_value_and_derivative_have_no_jump_at_knots_and_bound(x64):
    params = draw_params(1.0)
    knots = knots_of(params[:, :8])
    below, above = (each(SPLINE.transform_and_log_derivative, knots + e, params) for e in (-1e-9, 1e-9))
    for a, b in zip(below, above):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(below[1][:, [0, -1]], 0.0, atol=1e-6)


def test_identity_outside(dtype):
    x = np.array([-1e3, -5.1, -5.0, 5.0, 5.1, 1e3], dtype)
    for y, log_derivative in (forward(x, draw_params(2.0)), inverse(x, draw_params(2.0))):
        np.testing.assert_array_equal(y, np.broadcast_to(x, y.shape))
        np.testing.assert_array_equal(log_derivative, np.zeros_like(y))


def test_inverse_near_the_bound(dtype):
    near = 5.0 * (1 - np.array([1e-1, 1e-3, 1e-5, 4 * np.finfo(dtype).eps]))
    y = np.concatenate([near, -near]).astype(dtype)
    x, log_derivative = inverse(y, draw_params(1.0))
    assert (np.abs(x) <= 5.0 * (1 + 4 * np.finfo(dtype).eps)).all()
    y_back, _ = each(SPLINE.transform_and_log_derivative, x, draw_params(1.0))
    tolerance = 16 * np.finfo(dtype).eps * 5.0 * np.maximum(np.exp(-log_derivative), 1.0)
    assert (np.abs(y_back - y[None]) <= tolerance).all()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_inverse_is_as_exact_as_single_precision_allows(scale):
    y = np.linspace(-4.99, 4.99, 501, dtype="float32")
    x, _ = inverse(y, params := draw_params(scale))
    with jax.enable_x64(True):
        exact, log_derivative = inverse(y.astype("float64"), params.astype("float64"))
    tolerance = 16 * np.finfo("float32").eps * 5.0 * np.maximum(np.exp(log_derivative), 1.0)
    assert (np.abs(x - exact) <= tolerance).all()


def test_derivative_of_the_inverse_at_knots(x64):
    # zero, where data and starts often lie, is a knot of the first spline: a clip there would halve the derivative
    params = np.stack([np.zeros(SPLINE.num_params), draw_params(1.0)[0]])
    knots = knots_of(params[:, 8:16])[:, 1:-1]
    derivative, log_derivative = compiled(jax.grad(SPLINE.inverse_and_log_derivative, has_aux=True), knots, params)
    np.testing.assert_allclose(derivative, np.exp(log_derivative), rtol=1e-9)


@single_is_slow
def test_extreme_parameters(dtype):
    params = np.random.default_rng(0).choice([-20.0, 20.0], size=(50, SPLINE.num_params))
    x = np.r_[np.linspace(-5.5, 5.5, 45), -1e3, 1e3]
    for direction, method in (
        (forward, SPLINE.transform_and_log_derivative),
        (inverse, SPLINE.inverse_and_log_derivative),
    ):
        assert all(np.isfinite(a).all() for a in direction(x, params))
        for gradient in all_gradients(method, np.tile(x, 50), np.repeat(params, len(x), axis=0)):
            assert np.isfinite(gradient).all()


def test_one_bin_is_the_identity(x64):
    spline = RationalQuadraticSpline(num_bins=1)
    x = np.linspace(-6, 6, 13)
    y, log_derivative = jax.jit(spline.transform_and_log_derivative)(x, np.ones((13, spline.num_params)))
    np.testing.assert_allclose(y, x, atol=1e-14)
    np.testing.assert_allclose(log_derivative, 0.0, atol=1e-14)
