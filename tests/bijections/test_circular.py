"""What the laws do not see: the seam of the circle, and that all of it is covered once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.bijections.circular import CircularSpline, wrap
from tests.bijections.common import all_gradients, single_is_slow, with_slope

SPLINE = CircularSpline(num_bins=5)
TURN = 2 * np.pi


def draw_params(scale: float, num: int = 20) -> np.ndarray:
    return scale * np.random.default_rng(0).normal(size=(num, SPLINE.num_params))


@jax.jit
def compiled(x, params):
    return jax.vmap(jax.vmap(SPLINE.transform_and_log_derivative, (0, None)), (None, 0))(x, params)


def forward(x, params):
    """All of `x` `(num_x,)` through every map of `params`: `(num, num_x)`; padded, so that it is compiled once."""
    num, num_x = len(params), len(x)
    outputs = compiled(np.pad(x, (0, 4000 - num_x), "edge"), np.pad(params, [(0, 20 - num), (0, 0)], "edge"))
    return [np.asarray(a)[:num, :num_x] for a in outputs]


@jax.jit
def inverse(y, params):
    """Row `i` of `y` back through the map of row `i` of `params`."""
    return jax.vmap(jax.vmap(SPLINE.inverse_and_log_derivative, (0, None)))(y, params)


def distance(a, b):
    """On the circle."""
    return np.abs((np.asarray(a) - np.asarray(b) + np.pi) % TURN - np.pi)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_covers_the_circle_once(scale, x64):
    x = np.linspace(-np.pi, np.pi, 4001)[:-1]
    y, log_derivative = forward(x, draw_params(scale))
    steps = (np.roll(y, -1, axis=1) - y) % TURN
    assert (steps > 0).all()
    np.testing.assert_allclose(steps.sum(1), TURN, rtol=1e-10)
    assert ((y >= -np.pi) & (y < np.pi)).all()
    assert np.isfinite(log_derivative).all()


def test_round_trip(dtype):
    x = np.random.default_rng(1).uniform(-np.pi, np.pi, size=200).astype(dtype)
    y, log_derivative = forward(x, params := draw_params(1.0))
    back, log_derivative_back = inverse(y, params)
    tolerance = 64 * np.finfo(dtype).eps * np.exp(np.abs(log_derivative))
    assert (distance(back, x[None]) <= tolerance).all()
    assert ((back >= -np.pi) & (back < np.pi)).all()
    np.testing.assert_allclose(log_derivative_back, -log_derivative, atol=tolerance.max() * 10)


def test_value_and_derivative_have_no_jump_at_the_seam(x64):
    params = draw_params(1.0)
    y, log_derivative = forward(np.array([np.pi - 1e-9, -np.pi, -np.pi + 1e-9]), params)
    assert distance(y, y[:, 1:2]).max() < 1e-7
    np.testing.assert_allclose(log_derivative - log_derivative[:, 1:2], 0.0, atol=1e-6)
    assert np.abs(log_derivative).max() > 0.1  # slopes that had to be made equal, not 1 anyway


def test_log_derivative_is_that_of_automatic_differentiation(x64):
    x = np.linspace(-9.0, 9.0, 50)
    params = np.tile(draw_params(1.0)[:1], (50, 1))
    _, log_derivative, slope = with_slope(SPLINE.transform_and_log_derivative, x, params)
    np.testing.assert_allclose(np.log(slope), log_derivative, rtol=1e-12, atol=1e-12)


def test_all_turns_are_one(x64):
    x = np.linspace(-3.0, 3.0, 13)
    params = draw_params(1.0)
    for got, expected in zip(forward(x + 3 * TURN, params), forward(x, params)):
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_zeros_are_the_identity_and_the_phase_turns(dtype):
    x = np.r_[-np.pi, np.linspace(-3.1, 3.1, 21)].astype(dtype)
    params = np.zeros((3, SPLINE.num_params))
    params[:, -1] = 0.0, 1.5, 1.5 - 4 * np.pi
    y, log_derivative = forward(x, params)
    tolerance = 16 * np.finfo(dtype).eps
    assert (distance(y, x + np.array([[0.0], [1.5], [1.5]])) <= tolerance * TURN).all()
    np.testing.assert_allclose(log_derivative, 0.0, atol=tolerance)


def test_angles_next_to_the_seam_stay_on_the_circle(dtype):
    seam = ((2 * np.arange(-3000, 3000) + 1) * np.pi).astype(dtype)
    x = np.r_[[np.nextafter(seam, end) for end in np.array([-np.inf, np.inf], dtype)], [seam]].ravel()
    for wrapped in (wrap(jnp.asarray(x)), jax.jit(wrap)(x)):
        assert ((wrapped >= -np.asarray(np.pi, dtype)) & (wrapped < np.asarray(np.pi, dtype))).all()
        assert (distance(wrapped, x) <= 4 * np.finfo(dtype).eps * np.abs(x)).all()
    for some in np.split(x, 5):
        y, log_derivative = forward(some, np.zeros((1, SPLINE.num_params)))
        assert (distance(y, some[None]) <= 4 * np.finfo(dtype).eps * np.abs(some)).all()
        np.testing.assert_allclose(log_derivative, 0.0, atol=16 * np.finfo(dtype).eps)


@single_is_slow
def test_extreme_parameters(dtype):
    params = np.random.default_rng(0).choice([-20.0, 20.0], size=(50, SPLINE.num_params))
    x = np.r_[np.linspace(-4.0, 4.0, 33), -1e3, 1e3]
    x, params = np.tile(x, 50), np.repeat(params, len(x), axis=0)
    y, *_ = with_slope(SPLINE.transform_and_log_derivative, x, params)
    for method, values in ((SPLINE.transform_and_log_derivative, x), (SPLINE.inverse_and_log_derivative, y)):
        for gradient in all_gradients(method, values, params):
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("num_bins", [0, 1000])
def test_errors(num_bins):
    with pytest.raises(ValueError, match=f"num_bins expected from 1 to 999, got {num_bins}"):
        CircularSpline(num_bins)
