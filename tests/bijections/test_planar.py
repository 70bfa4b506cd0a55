"""What the laws do not see: the start, parameters at their limits, the centre of a radial map."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.bijections import transform_with_score
from numpyro_flows.bijections.planar import Planar, Radial
from tests.bijections.common import drawn, single_is_slow

KEY = jax.random.PRNGKey(0)
W = np.array([0.6, 0.0, 0.8])


def with_parameters(construct, *values):
    parameters = jnp.asarray(np.concatenate([np.atleast_1d(v) for v in values]), float)
    return eqx.tree_at(lambda b: b.parameters.network.biases[-1], drawn(construct, 1.0), parameters)


def planar(w, u, b=0.3):
    return with_parameters(lambda: Planar(KEY, 3), w, u, b)


def radial(centre, width, push):
    return with_parameters(lambda: Radial(KEY, len(centre)), centre, width, push)


@eqx.filter_jit
def both_ways(bijection, x):
    def one(x):
        def forward(x):
            y, log_det = bijection.transform_and_log_det(x)
            return y, (y, log_det)

        jacobian, (y, log_det) = jax.jacfwd(forward, has_aux=True)(x)
        return jacobian, y, log_det, *bijection.inverse_and_log_det(y)

    return jax.vmap(one)(x)


def check_both_ways(bijection, x, least_slope, dtype):
    """Round trip and log-determinants, to the rounding of a steep inverse; the log-determinants are returned."""
    jacobian, y, log_det, back, log_det_back = both_ways(bijection, x)
    size = 1 + np.abs(x).max() + np.abs(y).max()
    tolerance = 64 * np.finfo(dtype).eps * size / least_slope
    np.testing.assert_allclose(back, x, rtol=0, atol=tolerance)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(np.float64(jacobian))[1], rtol=0, atol=tolerance)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=0, atol=10 * tolerance / least_slope)
    return np.asarray(jacobian, float), np.asarray(log_det, float)


@single_is_slow
@pytest.mark.parametrize("factor", [-60.0, -1.5, 0.0, 30.0])
def test_planar_is_invertible_whatever_u(factor, dtype):
    bijection = planar(W, factor * W + np.array([0.8, 1.0, -0.6]))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)))
    _, log_det = check_both_ways(bijection, x, 0.01, dtype)
    # the part of `u` along `w` is at least -0.99, and that across, which is large, does not count
    assert log_det.min() >= np.log(0.01) - 1e3 * np.finfo(dtype).eps
    assert np.sign(log_det).tolist() == [np.sign(factor)] * 40


@single_is_slow
@pytest.mark.parametrize("push", [-60.0, -1.0, 30.0])
@pytest.mark.parametrize("width", [-60.0, 1.0])
def test_radial_is_invertible_whatever_beta(push, width, dtype):
    bijection = radial([0.2, -0.5], width, push)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 2)))
    jacobian, _ = check_both_ways(bijection, x, 0.01, dtype)
    assert np.linalg.eigvalsh(jacobian).min() >= 0.01 * (1 - 1e3 * np.finfo(dtype).eps)  # it is symmetric


@single_is_slow
def test_a_strong_push_is_undone_to_rounding(dtype):
    bijection = radial([0.0, 0.0], 0.0, 1e4)
    x = jnp.asarray(np.outer(np.resize(np.logspace(-6, 3, 10), 40), [0.6, -0.8]))
    back = both_ways(bijection, x)[3]
    np.testing.assert_allclose(back, x, rtol=32 * np.finfo(dtype).eps)


def outputs(bijection, x):
    return bijection.transform_and_log_det(x), bijection.inverse_and_log_det(x), transform_with_score(bijection, x, x)


@eqx.filter_jit
def outputs_and_jacobians(bijection, x):
    """The Jacobians in both modes, along the parameters and `x`."""
    params, static = eqx.partition(bijection, eqx.is_inexact_array)

    def of(args):
        return outputs(eqx.combine(args[0], static), args[1])

    return outputs(bijection, x), [jacobian(of)((params, x)) for jacobian in (jax.jacfwd, jax.jacrev)]


@single_is_slow
@pytest.mark.parametrize("push", [-0.7, 2.0])
def test_centre_of_a_radial_map(push, dtype):
    bijection, centre = radial([0.2, -0.5], 0.0, push), jnp.array([0.2, -0.5])
    ((y, log_det), (back, log_det_back), (_, _, score)), jacobians = outputs_and_jacobians(bijection, centre)
    np.testing.assert_array_equal(y, centre)
    np.testing.assert_array_equal(back, centre)
    of_y = np.asarray(jacobians[0][0][0][1], float)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(of_y)[1], rtol=16 * np.finfo(dtype).eps)
    assert np.sign(log_det) == np.sign(push)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=8 * np.finfo(dtype).eps)
    np.testing.assert_allclose(score, np.linalg.solve(of_y, centre), rtol=16 * np.finfo(dtype).eps)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jacobians))


@pytest.mark.parametrize("make", [Planar, Radial])
@pytest.mark.parametrize("cond_dim", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_training_can_leave_the_start(make, cond_dim):
    condition = None if cond_dim is None else np.ones(cond_dim)
    x = np.array([0.5, -1.0, 2.0], "float32")

    def loss(bijection):
        y, log_det = bijection.transform_and_log_det(x, condition)
        return 0.5 * y @ y - log_det, y

    @eqx.filter_jit
    def gradient_at_the_start(key):
        return eqx.filter_grad(loss, has_aux=True)(make(key, 3, cond_dim=cond_dim))

    gradient, y = gradient_at_the_start(KEY)
    np.testing.assert_array_equal(y, x)
    assert np.abs(gradient.parameters.network.biases[-1]).max() > 0.1
    assert cond_dim is None or np.abs(gradient.parameters.network.weights[-1]).max() > 0.1


def test_planar_starts_with_a_random_direction_of_length_one():
    trained = jax.jit(jax.vmap(lambda key: Planar(key, 3).parameters(None)))(jax.random.split(KEY, 2))
    directions, others = np.split(np.asarray(trained), [3], axis=1)
    np.testing.assert_array_equal(others, 0.0)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1.0, rtol=1e-6)
    assert np.abs(directions[0] - directions[1]).max() > 0.1


@single_is_slow
def test_planar_without_a_direction_has_gradients(dtype):
    bijection = planar(np.zeros(3), np.zeros(3))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda b: b.transform_and_log_det(np.ones(3))[0].sum()))(bijection)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("make", [Planar, Radial])
def test_errors(make):
    with pytest.raises(ValueError, match="dim expected at least 1, got 0"):
        make(KEY, 0)
