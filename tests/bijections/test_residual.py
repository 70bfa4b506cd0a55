"""What the laws do not see: the bound on the Lipschitz constant, the random log-determinant, an inverse that fails."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from numpyro_flows.bijections import transform_with_score
from numpyro_flows.bijections.residual import Residual, spectral_norm_bound
from tests.bijections.common import drawn, single_is_slow

KEY = jax.random.PRNGKey(0)
NUM_SEEDS = 5_000


def strong(scale: float = 0.3, **options) -> Residual:
    """A map of three coordinates whose `g` is as steep as it may be, its Jacobian near `-max_lipschitz I`."""
    # by this seed no slope is near 0
    bijection = drawn(lambda: Residual(KEY, 3, hidden=(8,), **options), scale, seed=5)
    first, last = (np.asarray(weight) for weight in bijection.network.weights)
    steepest = np.full(8, 2.4)  # of the SiLU
    new = (2 * np.eye(3, 8) + scale * first, last - 3 * np.eye(8, 3), steepest)
    return eqx.tree_at(
        lambda b: (*b.network.weights, b.network.biases[0]), bijection, tuple(jnp.asarray(a, float) for a in new)
    )


bound_and_gradient = jax.jit(jax.value_and_grad(spectral_norm_bound))


@pytest.mark.parametrize("shape", [(1, 5), (32, 16)])
def test_spectral_norm_bound(shape, dtype):
    for size in (1e-3, 1.0, 1e15):
        weight = size * np.random.default_rng(0).normal(size=shape)
        expected = np.linalg.norm(weight, 2)
        bound, gradient = bound_and_gradient(jnp.asarray(weight))
        rounding = 64 * np.finfo(dtype).eps * (1 + 1 / size**2)
        assert expected * (1 - rounding) <= bound <= expected * min(shape) ** (1 / 64) * (1 + rounding)
        # homogeneous: the gradient along the weight is the bound
        np.testing.assert_allclose((gradient * weight).sum(), bound, rtol=rounding)


def test_spectral_norm_bound_is_sharp_where_it_can_be(x64):
    """All singular values equal: no bound of this kind is further off."""
    np.testing.assert_allclose(bound_and_gradient(3 * np.eye(32, 16))[0], 3 * 16 ** (1 / 64), rtol=1e-12)


def test_spectral_norm_bound_of_zero(dtype):
    bound, gradient = bound_and_gradient(np.zeros((32, 16)))
    assert 0 < bound < 1e-3
    assert np.isfinite(gradient).all()


@eqx.filter_jit
def both_ways(bijection, x, condition):
    def forward(x):
        y = bijection.transform(x, condition)
        return y, y

    jacobian, y = jax.vmap(jax.jacfwd(forward, has_aux=True))(x)
    back = jax.vmap(bijection.inverse, (0, None))(y, condition)
    return jacobian, y, back


@single_is_slow
@pytest.mark.parametrize("scale", [3.0, 1e6])
def test_contracts_whatever_the_parameters(scale, dtype):
    bijection = drawn(lambda: Residual(KEY, 3, cond_dim=2, hidden=(16, 16), max_lipschitz=0.8), scale)
    rng = np.random.default_rng(0)
    x, condition = rng.normal(size=(30, 3)).astype(dtype), rng.normal(size=2).astype(dtype)
    jacobian, y, back = both_ways(bijection, x, condition)
    assert np.linalg.norm(np.float64(jacobian) - np.eye(3), 2, axis=(-2, -1)).max() <= 0.8 * (1 + 1e-5)
    biases = max(np.abs(leaf).max() for leaf in bijection.network.biases)
    size = 1 + np.abs(y).max() + biases + scale * np.abs(condition).max()  # the condition has become a bias
    np.testing.assert_allclose(back, x, rtol=0, atol=64 * np.finfo(dtype).eps * size / 0.2)


def test_small_weights_are_left_as_they_are(x64):
    """By NumPy: a perceptron of the SiLU over the largest slope that it has, 1.1."""
    bijection = drawn(lambda: Residual(KEY, 3, hidden=(16, 16)), scale=0.01)
    x = np.array([0.5, -1.0, 2.0])
    *hidden, (weight, bias) = zip(map(np.asarray, bijection.network.weights), map(np.asarray, bijection.network.biases))
    value = x
    for w, b in hidden:
        inner = value @ w + b
        value = inner / (1 + np.exp(-inner)) / 1.1
    got = eqx.filter_jit(lambda bijection: bijection.transform(x))(bijection)
    np.testing.assert_allclose(got, x + value @ weight + bias, rtol=1e-14)
    assert np.abs(got - x).max() > 1e-3


def test_large_weights_are_not_divided_by_more_than_needed(x64):
    bijection = strong(scale=0.0, max_lipschitz=0.8)
    jacobian = eqx.filter_jit(lambda bijection, x: jax.jacfwd(bijection.transform)(x))(bijection, np.zeros(3))
    norm = np.linalg.norm(jacobian - np.eye(3), 2)
    assert 0.999 * 0.8 / 3 ** (2 / 64) <= norm <= 0.8


def test_an_inverse_that_does_not_converge_is_an_error(x64):
    """Near x = 0, where `g` is as steep as it may be: a step takes off 2e-4 of what is wrong."""
    bijection = drawn(lambda: Residual(KEY, 1, hidden=(1,), max_lipschitz=1 - 1e-5), 1.0)
    steepest = jnp.full(1, 2.4)  # of the SiLU
    weights = jnp.full((1, 1), 2.0), jnp.full((1, 1), -2.0)  # of the largest norm allowed, after their division
    at_zero = 2.4 / (1 + np.exp(-2.4)) / 1.1 * (1 - 0.5e-5)
    new = (*weights, steepest, jnp.full(1, at_zero + 0.01))
    bijection = eqx.tree_at(lambda b: (*b.network.weights, *b.network.biases), bijection, new)
    inverse = eqx.filter_jit(bijection.inverse_and_log_det)
    with pytest.raises(RuntimeError, match="the inverse of Residual did not converge: max_lipschitz is too near to 1"):
        inverse(np.full(1, 0.01))
    x, log_det = inverse(np.full(1, np.nan))
    assert np.isnan(x).all()
    assert np.isnan(log_det)


@pytest.mark.slow
def test_log_det_estimate_and_its_gradients_are_unbiased():
    """At a contraction of 0.9, of which the series has much left where the roulette begins."""
    x, way = np.array([0.5, -1.0, 0.3], "float32"), np.array([1.0, 2.0, -1.0], "float32")

    @eqx.filter_jit
    @eqx.filter_vmap(in_axes=(None, 0))
    def numbers(bijection, seed):
        """The log-determinant, and its slopes along the parameters and along `x`, the latter in both modes."""
        params, static = eqx.partition(eqx.tree_at(lambda b: b.noise.seed, bijection, seed), eqx.is_inexact_array)

        def log_det(params, x):
            return eqx.combine(params, static).transform_and_log_det(x)[1]

        value, (slope, slope_x) = jax.value_and_grad(log_det, (0, 1))(params, x)
        slope = ravel_pytree(slope)[0]
        forward = jax.jvp(lambda x: log_det(params, x), (x,), (way,))[1]
        return jnp.stack([value, jnp.cos(jnp.arange(float(slope.size))) @ slope, slope_x @ way, forward])

    seeds = np.random.default_rng(1).integers(2**32, size=(NUM_SEEDS, 2), dtype="uint32")
    draws = np.asarray(numbers(strong(exact_dim=2), seeds), np.float64)
    exact = np.float64(numbers(strong(), seeds[:1])[0])
    errors = draws.std(0) / np.sqrt(NUM_SEEDS)
    assert (np.abs(draws.mean(0) - exact) <= 4 * errors).all()
    assert (errors < 0.03 * np.abs(exact)).all()  # the law says something
    np.testing.assert_allclose(draws[:, 2], draws[:, 3], rtol=1e-3, atol=1e-3)


@single_is_slow
def test_noise_of_the_estimate_is_that_of_the_event_and_the_layer(dtype):
    bijection = strong(exact_dim=2)
    x = np.array([0.5, -1.0, 0.3], dtype)
    signs = np.array([[-1, -1, 1], [1, -1, -1], [-1, 1, -1]], dtype)
    events = [x, *(x * signs), np.nextafter(x, np.ones(3, dtype))]
    key = eqx.filter_jit(lambda noise, x: jax.random.key_data(noise.key(x)))
    other_seed = eqx.tree_at(lambda n: n.seed, bijection.noise, np.asarray(bijection.noise.seed) + np.uint32(1))
    keys = [*(key(bijection.noise, event) for event in events), key(other_seed, x)]
    assert len({tuple(np.asarray(key)) for key in keys}) == len(keys)
    transform = eqx.filter_jit(bijection.transform_and_log_det)
    first, again, other = (transform(event)[1] for event in (x, x, events[-1]))
    np.testing.assert_array_equal(first, again)
    assert abs(first - other) > 1e-3


def test_estimated_score_solves_its_equation(x64):
    bijection = strong(exact_dim=2)
    score = np.array([1.0, 2.0, -1.0])

    @eqx.filter_jit
    def both_ways(bijection, x):
        def forward(x):
            outputs = bijection.transform_and_log_det(x)
            return outputs, outputs

        return transform_with_score(bijection, x, score), jax.jacrev(forward, has_aux=True)(x)

    (y, log_det, got), ((jacobian, slope), outputs) = both_ways(bijection, np.array([0.5, -1.0, 0.3]))
    np.testing.assert_allclose(np.asarray(jacobian).T @ got, score - slope, atol=1e-13)
    for a, b in zip((y, log_det), outputs):
        np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim expected at least 1, got 0"),
        ({"dim": 2, "max_lipschitz": 1.0}, r"max_lipschitz expected a number in \(0, 1\), got 1.0"),
        ({"dim": 2, "max_lipschitz": 0.0}, r"max_lipschitz expected a number in \(0, 1\), got 0.0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Residual(KEY, **options)
