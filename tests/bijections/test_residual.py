"""What the laws do not see: the bound on the Lipschitz constant, the random log-determinant, an inverse that fails."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from numpyro_flows.bijections import residual, transform_with_score
from numpyro_flows.bijections.residual import Residual, spectral_norm_bound
from tests.bijections.cases import perturbed

KEY = jax.random.PRNGKey(0)
NUM_SEEDS = 20_000


def strong(scale: float = 0.3, **options) -> Residual:
    """A map of three coordinates whose `g` is as steep as it may be, its Jacobian near `-max_lipschitz I`."""
    bijection = perturbed(Residual(KEY, 3, hidden=(8,), **options), scale=scale)
    there, back = np.eye(3, 8), -np.eye(8, 3)
    return eqx.tree_at(
        lambda b: (b.network.weights, b.network.biases[0]),
        bijection,
        (
            (2 * there + scale * bijection.network.weights[0], 3 * back + bijection.network.weights[1]),
            jnp.full(8, 2.4),  # where the SiLU is steepest
        ),
    )


@pytest.mark.parametrize("shape", [(1, 5), (3, 64), (32, 16)])
def test_spectral_norm_bound(shape, dtype):
    bound_and_gradient = jax.jit(jax.value_and_grad(spectral_norm_bound))
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
    np.testing.assert_allclose(jax.jit(spectral_norm_bound)(3 * jnp.eye(32)), 3 * 32 ** (1 / 64), rtol=1e-12)


def test_spectral_norm_bound_of_zero(dtype):
    bound, gradient = jax.jit(jax.value_and_grad(spectral_norm_bound))(jnp.zeros((4, 3)))
    assert 0 < bound < 1e-3
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [3.0, 1e6])
def test_contracts_whatever_the_parameters(scale, dtype):
    bijection = perturbed(Residual(KEY, 3, cond_dim=2, max_lipschitz=0.8), scale=scale)
    rng = np.random.default_rng(0)
    x, condition = jnp.asarray(rng.normal(size=(30, 3))), jnp.asarray(rng.normal(size=2))

    @eqx.filter_jit
    def both_ways(bijection, x):
        def forward(x):
            y, _ = bijection.transform_and_log_det(x, condition)
            return y, y

        jacobian, y = jax.vmap(jax.jacfwd(forward, has_aux=True))(x)
        back, _ = jax.vmap(bijection.inverse_and_log_det, (0, None))(y, condition)
        return jacobian, y, back

    jacobian, y, back = both_ways(bijection, x)
    assert np.linalg.norm(np.float64(jacobian) - np.eye(3), 2, axis=(-2, -1)).max() <= 0.8 * (1 + 1e-5)
    size = 1 + np.abs(y).max() + np.abs(ravel_pytree(bijection._layers(condition))[0]).max()
    np.testing.assert_allclose(back, x, rtol=0, atol=64 * np.finfo(dtype).eps * size / 0.2)


def test_small_weights_are_left_as_they_are():
    bijection = perturbed(Residual(KEY, 3))
    bijection = eqx.tree_at(lambda b: b.network, bijection, jax.tree.map(lambda leaf: 0.1 * leaf, bijection.network))
    for (weight, bias), own_weight, own_bias in zip(
        bijection._layers(None), bijection.network.weights, bijection.network.biases
    ):
        np.testing.assert_array_equal(weight, own_weight)
        np.testing.assert_array_equal(bias, own_bias)


def test_large_weights_are_not_divided_by_more_than_needed(x64):
    bijection = strong(scale=0.0, max_lipschitz=0.8)
    jacobian = jax.jit(jax.jacfwd(lambda x: bijection.transform_and_log_det(x)[0]))(jnp.zeros(3))
    norm = np.linalg.norm(jacobian - np.eye(3), 2)
    assert 0.999 * 0.8 / 3 ** (2 / 64) <= norm <= 0.8


def test_an_inverse_that_does_not_converge_is_an_error(monkeypatch):
    bijection = strong()
    monkeypatch.setattr(residual, "_MAX_STEPS", 3)
    inverse = eqx.filter_jit(bijection.inverse_and_log_det)
    with pytest.raises(RuntimeError, match="the inverse of Residual did not converge: max_lipschitz is too near to 1"):
        inverse(jnp.ones(3))
    x, log_det = inverse(jnp.full(3, jnp.nan))
    assert np.isnan(x).all()
    assert np.isnan(log_det)


def test_log_det_estimate_and_its_gradients_are_unbiased(monkeypatch):
    monkeypatch.setattr(residual, "_NUM_CERTAIN", 2)  # so that the roulette has weight
    x, way = jnp.array([0.5, -1.0, 0.3]), jnp.array([1.0, 2.0, -1.0])

    def numbers(bijection, seed):
        """The log-determinant, and its slopes along the parameters and along `x`, the latter in both modes."""
        params, static = eqx.partition(eqx.tree_at(lambda b: b.noise.seed, bijection, seed), eqx.is_inexact_array)

        def log_det(params, x):
            return eqx.combine(params, static).transform_and_log_det(x)[1]

        value, (slope, slope_x) = jax.value_and_grad(log_det, (0, 1))(params, x)
        slope = ravel_pytree(slope)[0]
        forward = jax.jvp(lambda x: log_det(params, x), (x,), (way,))[1]
        return jnp.stack([value, jnp.cos(jnp.arange(float(slope.size))) @ slope, slope_x @ way, forward])

    seeds = jax.random.bits(jax.random.PRNGKey(1), (NUM_SEEDS, 2), "uint32")
    draws = np.float64(jax.jit(jax.vmap(lambda seed: numbers(strong(max_lipschitz=0.7, exact_dim=2), seed)))(seeds))
    exact = np.float64(numbers(strong(max_lipschitz=0.7), seeds[0]))
    errors = draws.std(0) / np.sqrt(NUM_SEEDS)
    assert (np.abs(draws.mean(0) - exact) <= 4 * errors).all()
    assert (errors < 0.01 * np.abs(exact)).all()  # the law says something
    np.testing.assert_allclose(draws[:, 2], draws[:, 3], rtol=1e-3, atol=1e-3)


def test_noise_of_the_estimate_is_that_of_the_event_and_the_layer(dtype):
    bijection = strong(exact_dim=2)
    x = jnp.array([0.5, -1.0, 0.3])
    events = [x, *(x * jnp.array(signs) for signs in ([-1, -1, 1], [1, -1, -1], [-1, 1, -1])), jnp.nextafter(x, 1.0)]
    key = jax.jit(lambda seed, x: jax.random.key_data(eqx.tree_at(lambda n: n.seed, bijection.noise, seed).key(x)))
    keys = [*(key(bijection.noise.seed, event) for event in events), key(bijection.noise.seed + jnp.uint32(1), x)]
    assert len({tuple(np.asarray(key)) for key in keys}) == len(keys)
    transform = eqx.filter_jit(bijection.transform_and_log_det)
    first, again, other = (transform(event)[1] for event in (x, x, events[-1]))
    np.testing.assert_array_equal(first, again)
    assert abs(first - other) > 1e-3


def test_estimated_score_solves_its_equation(x64):
    bijection = strong(exact_dim=2)
    x, score = jnp.array([0.5, -1.0, 0.3]), jnp.array([1.0, 2.0, -1.0])
    y, log_det, got = jax.jit(lambda x: transform_with_score(bijection, x, score))(x)
    jacobian, slope = jax.jit(jax.jacrev(bijection.transform_and_log_det))(x)
    np.testing.assert_allclose(jacobian.T @ got, score - slope, atol=1e-13)
    for a, b in zip((y, log_det), bijection.transform_and_log_det(x)):
        np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "Residual expected dim >= 1, got 0"),
        ({"dim": 2, "max_lipschitz": 1.0}, "Residual expected 0 < max_lipschitz < 1, got 1.0"),
        ({"dim": 2, "max_lipschitz": 0.0}, "Residual expected 0 < max_lipschitz < 1, got 0.0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Residual(KEY, **options)
