"""What the laws do not see: how fast tails grow, and parameters at their limits."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.bijections import SinhArcsinh
from numpyro_flows.bijections.tails import TailTransform


def test_powers_of_the_tails(x64):
    """`|y|` grows like `|x|^l` on the left and `|x|^r` on the right."""
    params = jnp.arctanh(jnp.log(jnp.array([2.0, 0.5])) / 1.1) * 1.1
    x = jnp.array([-1e9, -1e8, 1e8, 1e9])
    y, _ = SinhArcsinh().transform_and_log_derivative(x, jnp.broadcast_to(params, (4, 2)))
    # p(t) goes to its asymptote like 1 / t: at |t| = 20 the slopes are right to a few per mille
    np.testing.assert_allclose(np.log10(y[0] / y[1]), 2.0, rtol=5e-3)
    np.testing.assert_allclose(np.log10(y[3] / y[2]), 0.5, rtol=5e-3)


@pytest.mark.parametrize("params", [[0.0, 0.0], [20.0, -20.0], [-20.0, 20.0], [20.0, 20.0], [1e-9, -1e-9]])
def test_inverse_at_the_limits(params, x64):
    x = jnp.linspace(-30.0, 30.0, 601)
    params = jnp.broadcast_to(jnp.array(params), (601, 2))
    y, log_derivative = SinhArcsinh().transform_and_log_derivative(x, params)
    assert (np.diff(y) > 0).all()
    back, log_derivative_back = SinhArcsinh().inverse_and_log_derivative(y, params)
    np.testing.assert_allclose(back, x, atol=1e-9)
    np.testing.assert_allclose(log_derivative_back, -log_derivative, atol=1e-9)


def raw_index(index: float) -> float:
    """What `TailTransform` makes this tail index of."""
    share, start = ((i - 1e-3) / (2.0 - 1e-3) for i in (index, 0.1))
    return math.log(share / (1 - share)) - math.log(start / (1 - start))


def tail_params(left: float, right: float, num: int) -> jax.Array:
    return jnp.broadcast_to(jnp.array([raw_index(left), raw_index(right)]), (num, 2))


@pytest.mark.parametrize("index", [0.002, 0.1, 1.0])
def test_tail_transform_is_its_formula(index, dtype):
    x = np.concatenate([np.logspace(-6, 0, 13), np.linspace(1.1, 8.5, 30)]).astype(dtype)
    z = [v / math.sqrt(2) for v in x.tolist()]
    log_erfc = [math.log1p(-math.erf(v)) if v < 0.5 else math.log(math.erfc(v)) for v in z]
    expected = np.array([math.expm1(-index * v) / index for v in log_erfc])
    params = tail_params(index, 1.5, len(x))
    y, _ = TailTransform().transform_and_log_derivative(jnp.asarray(-x), params)
    # an error of `eps` in x is one of `eps x dy/dx` in y, and x dy/dx / y is up to x^2
    np.testing.assert_allclose(y, -expected, rtol=64 * np.finfo(dtype).eps * (1 + index * 40), atol=0)


def test_zeros_give_an_index_of_a_tenth(x64):
    x = jnp.array([-2.0, 2.0])
    for got, expected in zip(
        TailTransform().transform_and_log_derivative(x, jnp.zeros((2, 2))),
        TailTransform().transform_and_log_derivative(x, tail_params(0.1, 0.1, 2)),
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_tail_index_far_out(x64):
    """`P(|y| > t)` falls like `t^(-1 / lam)`, with a `lam` for each side."""
    x = jnp.array([-6.5, -6.4, 6.4, 6.5])
    y, _ = TailTransform().transform_and_log_derivative(x, tail_params(1.5, 0.5, 4))
    log_p = np.log([math.erfc(v / math.sqrt(2)) for v in np.abs(x).tolist()])
    np.testing.assert_allclose(np.log(y[0] / y[1]) / (log_p[1] - log_p[0]), 1.5, rtol=1e-12)
    np.testing.assert_allclose(np.log(y[3] / y[2]) / (log_p[2] - log_p[3]), 0.5, rtol=1e-4)


@pytest.mark.parametrize("index", [0.001001, 0.1, 1.9])
def test_tail_transform_both_ways(index, dtype):
    eps = np.finfo(dtype).eps
    transform, inverse = TailTransform().transform_and_log_derivative, TailTransform().inverse_and_log_derivative
    x = jnp.concatenate([jnp.linspace(-30.0, 30.0, 301), jnp.array([-1e-6, 0.0, 1e-6, -1e3, 1e3])])
    params = tail_params(index, 2.0 - index, len(x))
    y, log_derivative = jax.jit(transform)(x, params)
    slope = jax.jit(jax.vmap(jax.grad(lambda x, p: transform(x, p)[0])))(x, params)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(np.log(slope), log_derivative, atol=128 * eps, rtol=8 * eps)
    back, log_derivative_back = jax.jit(inverse)(y, params)
    np.testing.assert_allclose(back, x, rtol=128 * eps, atol=8 * eps)
    # where the power is, an error `eps x` in x is one of `eps lam x^2` in its logarithm
    np.testing.assert_allclose(log_derivative_back, -log_derivative, atol=128 * eps, rtol=64 * eps)
    y = jnp.concatenate([-jnp.logspace(-6, 3, 40), jnp.logspace(-6, 3, 40)])
    params = tail_params(index, 2.0 - index, len(y))
    back, log_derivative_back = jax.jit(inverse)(y, params)
    again, _ = jax.jit(transform)(back, params)
    np.testing.assert_allclose(again, y, rtol=256 * eps)
    slope = jax.jit(jax.vmap(jax.grad(lambda y, p: inverse(y, p)[0])))(y, params)
    np.testing.assert_allclose(np.log(slope), log_derivative_back, atol=128 * eps)


@partial(jax.jit, static_argnums=0)
def value_slope_curvature(method, x, params):
    def value_and_slope(x, params):
        return jax.value_and_grad(lambda x: method(x, params)[0])(x)

    (value, slope), (_, curvature) = jax.vmap(lambda x, p: jax.jvp(lambda x: value_and_slope(x, p), (x,), (1.0,)))(
        x, params
    )
    return value, slope, curvature


@pytest.mark.parametrize(("name", "sign"), [("transform_and_log_derivative", 1), ("inverse_and_log_derivative", -1)])
def test_tail_transform_is_c1_at_zero(name, sign, x64):
    method = getattr(TailTransform(), name)
    x = jnp.array([-1e-9, 0.0, 1e-9])
    params = tail_params(0.01, 1.9, 3)
    value, slope, _ = value_slope_curvature(method, x, params)
    np.testing.assert_allclose(slope, (2 / np.pi) ** (sign / 2), rtol=1e-8)
    np.testing.assert_allclose(np.exp(method(x, params)[1]), slope, rtol=1e-12)
    np.testing.assert_allclose(value, x * slope, rtol=1e-8)


def test_second_derivatives_of_the_inverse_tail_transform(x64):
    """The rule of its root's derivative holds for derivatives of the derivative."""
    method = TailTransform().inverse_and_log_derivative
    y = jnp.array([-3.0, 2.0, 50.0])
    params = tail_params(0.3, 0.8, 3)
    below, above = (value_slope_curvature(method, y + e, params)[1] for e in (-1e-4, 1e-4))
    numerical = (above - below) / 2e-4
    np.testing.assert_allclose(value_slope_curvature(method, y, params)[2], numerical, rtol=1e-6)


@pytest.mark.parametrize("raw", [[-50.0, -50.0], [0.0, 0.0], [50.0, 50.0]])
def test_tail_transform_has_finite_gradients(raw, dtype):
    values = jnp.array([-1e3, -30.0, -1.0, -1e-20, 0.0, 1e-20, 1.0, 30.0, 1e3])
    params = jnp.broadcast_to(jnp.array(raw), (9, 2))
    for method in (TailTransform().transform_and_log_derivative, TailTransform().inverse_and_log_derivative):
        for out in (0, 1):
            gradients = jax.jit(jax.grad(lambda v, p, f=method, i=out: f(v, p)[i].sum(), (0, 1)))(values, params)
            assert all(np.isfinite(g).all() for g in gradients)


def test_errors():
    with pytest.raises(ValueError, match="SinhArcsinh expected max_log_power > 0, got 0"):
        SinhArcsinh(0.0)
    with pytest.raises(ValueError, match=r"TailTransform expected max_index > 0.1, got 0.1"):
        TailTransform(0.1)
