"""What the laws do not see: how fast tails grow, and parameters at their limits."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.bijections import SinhArcsinh
from numpyro_flows.bijections.tails import TailTransform
from tests.bijections.common import all_gradients, single_is_slow, with_slope

TRANSFORM, INVERSE = TailTransform().transform_and_log_derivative, TailTransform().inverse_and_log_derivative


NUM = 306  # values in most tests, which so share what they compile


@partial(jax.jit, static_argnums=0)
def there_and_back(univariate, x, params):
    there = univariate.transform_and_log_derivative(x, params)
    return there, univariate.inverse_and_log_derivative(there[0], params)


def test_powers_of_the_tails(x64):
    """`|y|` grows like `|x|^l` on the left and `|x|^r` on the right."""
    params = np.broadcast_to(np.arctanh(np.log([2.0, 0.5]) / 1.1) * 1.1, (NUM, 2))
    x = np.array([-1e9, -1e8, 1e8, 1e9])
    (y, _), _ = there_and_back(SinhArcsinh(), np.resize(x, NUM), params)
    # p(t) goes to its asymptote like 1 / t: at |t| = 20 the slopes are right to a few per mille
    np.testing.assert_allclose(np.log10(y[0] / y[1]), 2.0, rtol=5e-3)
    np.testing.assert_allclose(np.log10(y[3] / y[2]), 0.5, rtol=5e-3)


@pytest.mark.parametrize("params", [[0.0, 0.0], [20.0, -20.0], [-20.0, 20.0], [20.0, 20.0], [1e-9, -1e-9]])
def test_inverse_at_the_limits(params, x64):
    x = np.linspace(-30.0, 30.0, NUM)
    there, back = there_and_back(SinhArcsinh(), x, np.broadcast_to(params, (NUM, 2)))
    (y, log_derivative), (back, log_derivative_back) = there, back
    assert (np.diff(y) > 0).all()
    np.testing.assert_allclose(back, x, atol=1e-9)
    np.testing.assert_allclose(log_derivative_back, -log_derivative, atol=1e-9)


def raw_index(index: float) -> float:
    """What `TailTransform` makes this tail index of."""
    share, start = ((i - 1e-3) / (2.0 - 1e-3) for i in (index, 0.1))
    return math.log(share / (1 - share)) - math.log(start / (1 - start))


def tail_params(left: float, right: float, num: int = NUM) -> jax.Array:
    return jnp.asarray(np.broadcast_to([raw_index(left), raw_index(right)], (num, 2)), float)


@pytest.mark.parametrize("index", [0.002, 0.1, 1.0])
def test_tail_transform_is_its_formula(index, dtype):
    x = np.concatenate([np.logspace(-6, 0, 106), np.linspace(1.1, 8.5, 200)]).astype(dtype)
    z = [v / math.sqrt(2) for v in x.tolist()]
    log_erfc = [math.log1p(-math.erf(v)) if v < 0.5 else math.log(math.erfc(v)) for v in z]
    expected = np.array([math.expm1(-index * v) / index for v in log_erfc])
    y, *_ = with_slope(TRANSFORM, jnp.asarray(-x), tail_params(index, 1.5))
    # an error of `eps` in x is one of `eps x dy/dx` in y, and x dy/dx / y is up to x^2
    np.testing.assert_allclose(y, -expected, rtol=64 * np.finfo(dtype).eps * (1 + index * 40), atol=0)


def test_zeros_give_an_index_of_a_tenth(x64):
    x = np.linspace(-2.0, 2.0, NUM)
    for got, expected in zip(
        with_slope(TRANSFORM, x, np.zeros((NUM, 2))), with_slope(TRANSFORM, x, tail_params(0.1, 0.1))
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_tail_index_far_out(x64):
    """`P(|y| > t)` falls like `t^(-1 / lam)`, with a `lam` for each side."""
    x = np.array([-6.5, -6.4, 6.4, 6.5])
    y = with_slope(TRANSFORM, np.resize(x, NUM), tail_params(1.5, 0.5))[0][:4]
    log_p = np.log([math.erfc(v / math.sqrt(2)) for v in np.abs(x).tolist()])
    np.testing.assert_allclose(np.log(y[0] / y[1]) / (log_p[1] - log_p[0]), 1.5, rtol=1e-12)
    np.testing.assert_allclose(np.log(y[3] / y[2]) / (log_p[2] - log_p[3]), 0.5, rtol=1e-4)


@pytest.mark.parametrize("index", [0.001001, 0.1, 1.9])
def test_tail_transform_both_ways(index, dtype):
    eps = np.finfo(dtype).eps
    x = jnp.asarray(np.r_[np.linspace(-30.0, 30.0, NUM - 5), -1e-6, 0.0, 1e-6, -1e3, 1e3])
    params = tail_params(index, 2.0 - index)
    y, log_derivative, slope = with_slope(TRANSFORM, x, params)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(np.log(slope), log_derivative, atol=128 * eps, rtol=8 * eps)
    back, log_derivative_back, _ = with_slope(INVERSE, y, params)
    np.testing.assert_allclose(back, x, rtol=128 * eps, atol=8 * eps)
    # where the power is, an error `eps x` in x is one of `eps lam x^2` in its logarithm
    np.testing.assert_allclose(log_derivative_back, -log_derivative, atol=128 * eps, rtol=64 * eps)
    y = jnp.asarray(np.outer([-1, 1], np.logspace(-6, 3, NUM // 2)).ravel())
    back, log_derivative_back, slope = with_slope(INVERSE, y, params)
    again, *_ = with_slope(TRANSFORM, back, params)
    np.testing.assert_allclose(again, y, rtol=256 * eps)
    np.testing.assert_allclose(np.log(slope), log_derivative_back, atol=128 * eps)


@partial(jax.jit, static_argnums=0)
def all_derivatives(method, x, params):
    """Value, log-derivative, slope and curvature, the latter two by automatic differentiation."""

    def of_one(x, params):
        ((value, log_derivative), slope), (_, curvature) = jax.jvp(
            lambda x: jax.value_and_grad(method, has_aux=True)(x, params), (x,), (1.0,)
        )
        return value, log_derivative, slope, curvature

    return jax.vmap(of_one)(x, params)


@pytest.mark.parametrize(("method", "sign"), [(TRANSFORM, 1), (INVERSE, -1)])
def test_tail_transform_is_c1_at_zero(method, sign, x64):
    x = np.array([-1e-9, 0.0, 1e-9])
    value, log_derivative, slope, _ = all_derivatives(method, x, tail_params(0.01, 1.9, 3))
    np.testing.assert_allclose(slope, (2 / np.pi) ** (sign / 2), rtol=1e-8)
    np.testing.assert_allclose(np.exp(log_derivative), slope, rtol=1e-12)
    np.testing.assert_allclose(value, x * slope, rtol=1e-8)


def test_second_derivatives_of_the_inverse_tail_transform(x64):
    """The rule of its root's derivative holds for derivatives of the derivative."""
    y = np.array([-3.0, 2.0, 50.0])
    params = tail_params(0.3, 0.8, 3)
    (_, _, below, _), (_, _, above, _), (*_, curvature) = (
        all_derivatives(INVERSE, y + e, params) for e in (-1e-4, 1e-4, 0.0)
    )
    np.testing.assert_allclose(curvature, (above - below) / 2e-4, rtol=1e-6)


@single_is_slow
@pytest.mark.parametrize("raw", [[-50.0, -50.0], [0.0, 0.0], [50.0, 50.0]])
def test_tail_transform_has_finite_gradients(raw, dtype):
    values = jnp.array([-1e3, -30.0, -1.0, -1e-20, 0.0, 1e-20, 1.0, 30.0, 1e3])
    for method in (TRANSFORM, INVERSE):
        for gradient in all_gradients(method, values, jnp.asarray(np.broadcast_to(raw, (9, 2)))):
            assert np.isfinite(gradient).all()


def test_errors():
    with pytest.raises(ValueError, match=r"max_log_power expected a number in \(0, inf\), got 0"):
        SinhArcsinh(0.0)
    with pytest.raises(ValueError, match=r"max_index expected a number in \(0.1, inf\), got 0.1"):
        TailTransform(0.1)
