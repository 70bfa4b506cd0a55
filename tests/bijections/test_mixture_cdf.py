"""What the laws do not see of mixtures: which function it is, and that both tails are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_expit, log_ndtr, logsumexp, ndtri_exp

from numpyro_flows.bijections import MixtureCDF
from numpyro_flows.bijections.normal_tail import normal_tail, normal_tail_inverse

KINDS = pytest.mark.parametrize("kind", ["normal", "logistic"])
WEIGHTS, LOCS, SCALES = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.3, 2.0]), np.array([0.5, 1.0, 0.1])


def mixture(kind: str, x):
    """The map, jitted, and the parameters of the mixture above for every `x`."""
    univariate = MixtureCDF(3, kind)
    params = jnp.broadcast_to(univariate.params_of(WEIGHTS, LOCS, SCALES), (len(x), 9))
    return univariate, params


@KINDS
def test_is_its_formula(kind, dtype):
    x = np.concatenate([-np.logspace(3, -2, 40), [0.0], np.logspace(-2, 3, 40)]).astype(dtype)
    univariate, params = mixture(kind, x)
    got, _ = jax.jit(univariate.transform_and_log_derivative)(jnp.asarray(x), params)
    t = (np.float64(x)[:, None] - LOCS) / SCALES
    log_cdf = log_ndtr if kind == "normal" else log_expit
    below, above = (logsumexp(np.log(WEIGHTS) + log_cdf(s), axis=1) for s in (t, -t))
    log_tail = np.minimum(below, above)
    score = ndtri_exp(log_tail)
    # SciPy's has an error of 1e-12 far out, which a step of Newton's method removes
    score -= (log_ndtr(score) - log_tail) * np.exp(log_tail + 0.5 * (score**2 + np.log(2 * np.pi)))
    expected = np.where(below < above, score, -score)
    # an error of `eps` in x is one of `eps x dy/dx` in y, and of `eps` in a probability of a half one of 2.5 eps
    np.testing.assert_allclose(got, expected, rtol=64 * np.finfo(dtype).eps, atol=256 * np.finfo(dtype).eps)


@KINDS
def test_log_derivative_is_that_of_the_value_in_both_tails(kind, dtype):
    x = jnp.concatenate([-jnp.logspace(3.0, -2.0, 40), jnp.logspace(-2.0, 3.0, 40)])
    univariate, params = mixture(kind, x)
    _, log_derivative = jax.jit(univariate.transform_and_log_derivative)(x, params)
    slope = jax.jit(jax.vmap(jax.grad(lambda x, p: univariate.transform_and_log_derivative(x, p)[0])))(x, params)
    np.testing.assert_allclose(np.log(slope), log_derivative, atol=512 * np.finfo(dtype).eps)


def test_one_normal_component_is_affine_out_to_a_million(dtype):
    univariate = MixtureCDF(1)
    x = jnp.concatenate([-jnp.logspace(6.0, -3.0, 50), jnp.logspace(-3.0, 6.0, 50)])
    params = jnp.broadcast_to(univariate.params_of(np.ones(1), np.ones(1), np.full(1, 2.0)), (100, 3))
    y, log_derivative = jax.jit(univariate.transform_and_log_derivative)(x, params)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(y, (x - 1.0) / 2.0, rtol=32 * eps, atol=32 * eps)
    np.testing.assert_allclose(log_derivative, -np.log(2.0), atol=64 * eps)


@KINDS
def test_inverse(kind, dtype):
    y = jnp.concatenate([-jnp.logspace(2.0, -2.0, 30), jnp.zeros(1), jnp.logspace(-2.0, 2.0, 30)])
    univariate, params = mixture(kind, y)
    x, log_derivative = jax.jit(univariate.inverse_and_log_derivative)(y, params)
    again, log_slope = jax.jit(univariate.transform_and_log_derivative)(x, params)
    eps = np.finfo(dtype).eps
    allowed = 64 * eps * (1 + np.abs(y) + np.abs(x) * np.exp(log_slope))
    assert (np.abs(again - y) <= allowed).all()
    np.testing.assert_allclose(log_derivative, -log_slope, atol=64 * eps)


@KINDS
@pytest.mark.parametrize("size", [0.0, 1.0, 100.0])
def test_gradients_are_finite(kind, size, dtype):
    values = jnp.array([-1e3, -30.0, -1.0, 0.0, 1.0, 30.0, 1e3])
    univariate = MixtureCDF(4, kind)
    params = size * jax.random.normal(jax.random.key(0), (7, 12))
    for out in (0, 1):
        gradient = jax.grad(lambda v, p, i=out: univariate.transform_and_log_derivative(v, p)[i].sum(), (0, 1))
        gradients = jax.jit(gradient)(values, params)
        assert all(np.isfinite(g).all() for g in gradients)


def test_zeros_give_components_apart_and_a_map_near_the_identity(x64):
    x = jnp.linspace(-3.0, 3.0, 61)
    for kind, most in (("normal", 0.1), ("logistic", 0.6)):
        univariate = MixtureCDF(8, kind)
        y, _ = univariate.transform_and_log_derivative(x, jnp.zeros((61, 24)))
        assert np.abs(y - x).max() < most
        gradient = jax.grad(lambda p, u=univariate: u.transform_and_log_derivative(x, p)[1].sum())(jnp.zeros((61, 24)))
        assert len(np.unique(np.round(gradient.sum(0)[8:16], 9))) == 8  # each component goes its own way


def test_tail_and_its_inverse(dtype):
    t = jnp.concatenate([jnp.linspace(0.0, 12.0, 200), jnp.logspace(1.0, 6.0, 50)])
    eps = np.finfo(dtype).eps
    log_tail, log_hazard, excess = jax.jit(normal_tail)(t)
    exact = log_ndtr(-np.float64(t))
    np.testing.assert_allclose(log_tail, exact, rtol=16 * eps, atol=16 * eps)
    near = np.float64(t) < 30  # beyond, the difference of logarithms is only rounding
    log_density = -0.5 * (np.float64(t) ** 2 + np.log(2 * np.pi))
    np.testing.assert_allclose(log_hazard[near], (log_density - exact)[near], rtol=0, atol=64 * eps + 2e-13)
    far = np.float64(t) > 1e3
    np.testing.assert_allclose(excess[far], 1 / np.float64(t)[far], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(normal_tail_inverse)(log_tail), t, rtol=8 * eps, atol=8 * eps)
    slope = jax.jit(jax.vmap(jax.grad(normal_tail_inverse)))(log_tail)
    np.testing.assert_allclose(slope, -np.exp(-log_hazard), rtol=64 * eps)


def test_derivatives_of_the_tail_are_finite_differences(x64):
    t = jnp.array([0.0, 0.5, 4.99, 5.01, 8.0, 50.0])
    step = 1e-5
    for out in range(3):
        up, down = normal_tail(t + step)[out], normal_tail(t - step)[out]
        slope = jax.vmap(jax.grad(lambda t, i=out: normal_tail(t)[i]))(t)
        np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-6, atol=1e-8)


def test_params_of_a_mixture_are_exact(x64):
    univariate = MixtureCDF(3)
    weights = np.array([[1.0, 1e-6, 3.0]])
    x = jnp.array([0.3])
    _, log_derivative = univariate.transform_and_log_derivative(x, univariate.params_of(weights, LOCS, SCALES))
    y, _ = univariate.transform_and_log_derivative(x, univariate.params_of(5 * weights, LOCS, SCALES))
    density = np.exp(-0.5 * ((0.3 - LOCS) / SCALES) ** 2) / SCALES @ weights[0] / weights.sum() / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(log_derivative, np.log(density) + 0.5 * (y**2 + np.log(2 * np.pi)), rtol=1e-12)


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: MixtureCDF(0), "num_components >= 1, got 0"),
        (lambda: MixtureCDF(2, "cauchy"), "kind 'normal' or 'logistic', got 'cauchy'"),
        (lambda: MixtureCDF(3).params_of(np.ones(2), np.ones(2), np.ones(2)), r"3 components, got \(2,\)"),
        (lambda: MixtureCDF(1).params_of(np.zeros(1), np.ones(1), np.ones(1)), "got weights from 0"),
        (lambda: MixtureCDF(1).params_of(np.ones(1), np.ones(1), np.full(1, 1e-4)), "scales of 0.0001 to"),
        (lambda: MixtureCDF(1).params_of(np.ones(1), np.ones(1), np.zeros(1)), "scales of 0 to 0"),
    ],
)
def test_errors(construct, message):
    with pytest.raises(ValueError, match=message):
        construct()
