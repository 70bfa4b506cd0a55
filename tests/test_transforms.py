from typing import Any

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints

from numpyro_flows import FlowTransform, flows
from numpyro_flows.bijections import TriangularAffine
from tests.bijections.common import made


@pytest.fixture(scope="module")
def conditional():
    return made(lambda: flows.realnvp(jax.random.key(0), 3, cond_dim=2, num_layers=2, hidden=(8,)), scale=0.1)


@pytest.fixture(scope="module")
def plain():
    return made(lambda: flows.realnvp(jax.random.key(0), 3, num_layers=2, hidden=(8,)), scale=0.1)


def normal(*shape):
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def test_batches_agree_with_single_events(plain):
    x = normal(4, 5, 3)

    @jax.jit
    def evaluate(x):
        return *FlowTransform(plain).call_with_intermediates(x), *plain.transform_and_log_det(x[1, 2])

    y, log_det, y0, log_det0 = evaluate(x)
    assert y.shape == x.shape
    assert log_det.shape == (4, 5)
    np.testing.assert_allclose(y[1, 2], y0, rtol=1e-5)
    np.testing.assert_allclose(log_det[1, 2], log_det0, rtol=1e-5)


def test_intermediates_are_used_and_agree(plain):
    x = normal(6, 3)

    @jax.jit
    def evaluate(x):
        transform = FlowTransform(plain)
        y, log_det = transform.call_with_intermediates(x)
        assert transform.log_abs_det_jacobian(x, y, log_det) is log_det
        return log_det, transform.log_abs_det_jacobian(x, y), transform.inv(y), transform.inverse_and_log_det(y)[1]

    log_det, again, inverse, of_inverse = evaluate(x)
    np.testing.assert_allclose(again, log_det, rtol=1e-5)
    np.testing.assert_allclose(inverse, x, atol=1e-4)
    np.testing.assert_allclose(of_inverse, -log_det, atol=1e-4)


def test_condition_and_value_broadcast(conditional):
    condition, x = normal(4, 1, 2), normal(5, 3)

    @jax.jit
    def evaluate(condition, x):
        transform = FlowTransform(conditional, condition)
        assert transform.forward_shape(x.shape) == (4, 5, 3)
        return transform(x), conditional.transform_and_log_det(x[2], condition[1, 0])[0]

    y, expected = evaluate(condition, x)
    assert y.shape == (4, 5, 3)
    np.testing.assert_allclose(y[1, 2], expected, rtol=1e-5)


def test_gradient_flows_through_the_condition(conditional):
    x = jnp.ones(3)
    gradient = jax.jit(jax.grad(lambda c: FlowTransform(conditional, c)(x).sum()))(jnp.ones(2))
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


def test_it_is_a_pytree(conditional):
    transform = FlowTransform(conditional, jnp.ones(2))
    leaves, structure = jax.tree.flatten(transform)
    assert all(eqx.is_array(leaf) for leaf in leaves)
    again = jax.tree.unflatten(structure, leaves)
    assert again == transform
    assert again != FlowTransform(conditional, jnp.zeros(2))
    calls: Any = jax.jit(lambda t, x: t(x))
    expected = jax.jit(lambda x: conditional.transform_and_log_det(x, jnp.ones(2))[0])(jnp.ones(3))
    np.testing.assert_allclose(calls(transform, jnp.ones(3)), expected, rtol=1e-6)
    calls(jax.tree.map(lambda a: a, transform), jnp.ones(3))
    assert calls._cache_size() == 1


def test_numpyro_finds_the_constraint(plain):
    transform = FlowTransform(plain)
    assert transform.codomain == constraints.real_vector
    biject_to(transform.codomain)
    base = dist.Normal(jnp.zeros(3), 1).to_event(1)
    composed = dist.TransformedDistribution(base, [transform, dist.transforms.ExpTransform()])
    log_prob = jax.jit(lambda key: composed.log_prob(composed.sample(key, (7,))))(jax.random.PRNGKey(0))
    assert log_prob.shape == (7,)
    assert np.isfinite(log_prob).all()


@pytest.mark.unchecked
def test_a_flowjax_bijection_plugs_in():
    x = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    affine: Any = fb.TriangularAffine(jnp.ones(2), jnp.array([[2.0, 0.0], [1.0, 3.0]]))
    theirs = FlowTransform(affine)
    ours = FlowTransform(TriangularAffine(jnp.ones(2), jnp.array([[2.0, 0.0], [1.0, 3.0]])))
    for a, b in zip(theirs.call_with_intermediates(x), ours.call_with_intermediates(x)):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.unchecked
def test_scalar_events():
    affine: Any = fb.Affine(1.0, 2.0)
    transform = FlowTransform(affine)
    assert transform.domain == constraints.real
    np.testing.assert_allclose(transform(jnp.arange(3.0)), [1.0, 3.0, 5.0])


def test_errors(plain, conditional):
    with pytest.raises(TypeError, match="expected a bijection, got int"):
        FlowTransform(3)  # pyright: ignore
    with pytest.raises(ValueError, match="expected a condition of shape"):
        FlowTransform(conditional)(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"ends with \(2,\), got \(3,\)"):
        FlowTransform(conditional, jnp.ones(3))
    with pytest.raises(ValueError, match=r"ends with \(3,\), got \(4,\)"):
        FlowTransform(plain)(jnp.ones(4))
