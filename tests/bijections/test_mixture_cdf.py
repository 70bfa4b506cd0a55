"""What the laws do not see of mixtures: which function it is, and that both tails are exact."""

from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import log_expit, log_ndtr, logsumexp, ndtri_exp

from numpyro_flows.bijections import MixtureCDF
from numpyro_flows.bijections.normal_tail import normal_tail, normal_tail_inverse
from tests.bijections.common import all_gradients, single_is_slow, with_slope

KINDS = pytest.mark.parametrize("kind", ["normal", "logistic"])
# for what takes long to compile: the laws have logistic components, too
NORMAL_FIRST = pytest.mark.parametrize("kind", ["normal", pytest.param("logistic", marks=pytest.mark.slow)])
WEIGHTS, LOCS, SCALES = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.3, 2.0]), np.array([0.5, 1.0, 0.1])


NUM = 80  # values in most tests, which so share what they compile


def mixture(kind: Any):
    """The map, its inverse, and the parameters of the mixture above, for every value the same."""
    univariate = MixtureCDF(3, kind)
    params = np.broadcast_to(univariate.params_of(WEIGHTS, LOCS, SCALES), (NUM, 9))
    return univariate.transform_and_log_derivative, univariate.inverse_and_log_derivative, params


def on_both_sides(low: float, high: float, num: int = NUM) -> np.ndarray:
    """Values whose logarithms lie evenly, and as many that are negative."""
    return np.outer([-1, 1], np.logspace(low, high, num // 2)).ravel()


@single_is_slow
@KINDS
def test_is_its_formula(kind, dtype):
    x = np.concatenate([on_both_sides(-2, 3, NUM - 2), [0.0, 1.0]]).astype(dtype)
    transform, _, params = mixture(kind)
    got, *_ = with_slope(transform, x, params)
    t = (x.astype(np.float64)[:, None] - LOCS) / SCALES
    log_cdf = log_ndtr if kind == "normal" else log_expit
    sides = [logsumexp(np.log(WEIGHTS) + log_cdf(s), axis=1) for s in (t, -t)]
    below, above = np.asarray(sides)
    log_tail = np.minimum(below, above)
    score = ndtri_exp(log_tail)
    # SciPy's has an error of 1e-12 far out, which a step of Newton's method removes
    score -= (log_ndtr(score) - log_tail) * np.exp(log_tail + 0.5 * (score**2 + np.log(2 * np.pi)))
    expected = np.where(below < above, score, -score)
    # an error of `eps` in x is one of `eps x dy/dx` in y, and of `eps` in a probability of a half one of 2.5 eps
    np.testing.assert_allclose(got, expected, rtol=64 * np.finfo(dtype).eps, atol=256 * np.finfo(dtype).eps)


@single_is_slow
@KINDS
def test_log_derivative_is_that_of_the_value_in_both_tails(kind, dtype):
    transform, _, params = mixture(kind)
    _, log_derivative, slope = with_slope(transform, on_both_sides(-2, 3), params)
    np.testing.assert_allclose(np.log(slope), log_derivative, atol=512 * np.finfo(dtype).eps)


@single_is_slow
def test_equal_normal_components_are_affine_out_to_a_million(dtype):
    transform, *_ = mixture("normal")
    x = on_both_sides(-3, 6).astype(dtype)
    params = np.broadcast_to(MixtureCDF(3).params_of(np.ones(3), np.ones(3), np.full(3, 2.0)), (NUM, 9))
    y, log_derivative, _ = with_slope(transform, x, params)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(y, (x - 1.0) / 2.0, rtol=32 * eps, atol=32 * eps)
    np.testing.assert_allclose(log_derivative, -np.log(2.0), atol=64 * eps)


@single_is_slow
@NORMAL_FIRST
def test_inverse(kind, dtype):
    y = np.concatenate([on_both_sides(-2, 2, NUM - 2), [0.0, 1.0]]).astype(dtype)
    transform, inverse, params = mixture(kind)
    x, log_derivative = jax.jit(inverse)(y, params)
    again, log_slope, _ = with_slope(transform, x, params)
    eps = np.finfo(dtype).eps
    allowed = 64 * eps * (1 + np.abs(y) + np.abs(x) * np.exp(log_slope))
    assert (np.abs(again - y) <= allowed).all()
    np.testing.assert_allclose(log_derivative, -log_slope, atol=64 * eps)


@NORMAL_FIRST
@pytest.mark.parametrize("size", [0.0, 1.0, 100.0])
def test_gradients_are_finite(kind, size):
    values = np.array([-1e3, -30.0, -1.0, 0.0, 1.0, 30.0, 1e3])
    params = size * np.random.default_rng(0).normal(size=(7, 12))
    for gradient in all_gradients(MixtureCDF(4, kind).transform_and_log_derivative, values, params):
        assert np.isfinite(gradient).all()


@KINDS
def test_zeros_give_a_map_near_the_identity(kind, x64):
    x = np.linspace(-3.0, 3.0, NUM)
    y, *_ = with_slope(MixtureCDF(3, kind).transform_and_log_derivative, x, np.zeros((NUM, 9)))
    assert np.abs(y - x).max() < {"normal": 0.1, "logistic": 0.6}[kind]


@NORMAL_FIRST
def test_zeros_give_components_apart(kind):
    """Each goes its own way."""
    x = np.linspace(-3.0, 3.0, 7)
    _, gradient = all_gradients(MixtureCDF(4, kind).transform_and_log_derivative, x, np.zeros((7, 12)))
    of_locs = np.asarray(gradient)[:, 1, 4:8].sum(0)
    assert np.diff(np.sort(of_locs)).min() > 0.01


def test_tail_and_its_inverse(dtype):
    t = np.concatenate([np.linspace(0.0, 12.0, 200), np.logspace(1.0, 6.0, 50)]).astype(dtype)
    eps = np.finfo(dtype).eps

    @jax.jit
    @jax.vmap
    def there_and_back(t):
        log_tail, log_hazard, excess = normal_tail(t)
        back, slope = jax.value_and_grad(normal_tail_inverse)(log_tail)
        return log_tail, log_hazard, excess, back, slope

    log_tail, log_hazard, excess, back, slope = there_and_back(t)
    exact = log_ndtr(-np.float64(t))
    np.testing.assert_allclose(log_tail, exact, rtol=16 * eps, atol=16 * eps)
    near = np.float64(t) < 30  # beyond, the difference of logarithms is only rounding
    log_density = -0.5 * (np.float64(t) ** 2 + np.log(2 * np.pi))
    np.testing.assert_allclose(log_hazard[near], (log_density - exact)[near], rtol=0, atol=64 * eps + 2e-13)
    far = np.asarray(t, np.float64) > 1e3
    np.testing.assert_allclose(excess[far], 1 / np.asarray(t, np.float64)[far], rtol=1e-5)
    np.testing.assert_allclose(back, t, rtol=8 * eps, atol=8 * eps)
    np.testing.assert_allclose(slope, -np.exp(-log_hazard), rtol=64 * eps)


def test_derivatives_of_the_tail_are_finite_differences(x64):
    t, step = np.array([0.0, 0.5, 4.99, 5.01, 8.0, 50.0]), 1e-5
    with_slopes = jax.jit(jax.vmap(lambda t: (normal_tail(t), jax.jacrev(normal_tail)(t))))
    (up, _), (down, _), (_, slopes) = (with_slopes(t + s) for s in (step, -step, 0.0))
    for i, slope in enumerate(slopes):
        np.testing.assert_allclose(slope, (up[i] - down[i]) / (2 * step), rtol=1e-6, atol=1e-8)


def test_params_of_a_mixture_are_exact(x64):
    univariate = MixtureCDF(3)
    weights = np.array([[1.0, 1e-6, 3.0]])
    x = np.full(NUM, 0.3)

    def at_x(weights):
        params = np.broadcast_to(univariate.params_of(weights, LOCS, SCALES), (NUM, 9))
        return with_slope(univariate.transform_and_log_derivative, x, params)

    _, log_derivative, _ = at_x(weights)
    y, *_ = at_x(5 * weights)
    density = np.exp(-0.5 * ((0.3 - LOCS) / SCALES) ** 2) / SCALES @ weights[0] / weights.sum() / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(log_derivative, np.log(density) + 0.5 * (y**2 + np.log(2 * np.pi)), rtol=1e-12)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: MixtureCDF(0), "num_components expected at least 1, got 0"),
        (lambda: MixtureCDF(2, "cauchy"), r"kind expected one of \['normal', 'logistic'\], got 'cauchy'"),  # pyright: ignore[reportArgumentType]
        (lambda: MixtureCDF(3).params_of(np.ones(2), np.ones(2), np.ones(2)), r"3 components, got \(2,\)"),
        (lambda: MixtureCDF(1).params_of(np.zeros(1), np.ones(1), np.ones(1)), "got weights from 0"),
        (lambda: MixtureCDF(1).params_of(np.ones(1), np.ones(1), np.full(1, 1e-4)), "scales of 0.0001 to"),
        (lambda: MixtureCDF(1).params_of(np.ones(1), np.ones(1), np.zeros(1)), "scales of 0 to 0"),
    ],
)
def test_errors(construct, message):
    with pytest.raises(ValueError, match=message):
        construct()
