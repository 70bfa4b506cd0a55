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


def perturbed(bijection, key, sd=0.1):
    params, static = eqx.partition(bijection, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    leaves = [leaf + sd * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys)]
    return eqx.combine(jax.tree.unflatten(structure, leaves), static)


@pytest.fixture(scope="module")
def conditional():
    flow = eqx.filter_jit(flows.realnvp)(jax.random.key(0), 3, cond_dim=2, num_layers=2, hidden=(8,))
    return perturbed(flow, jax.random.key(1))


@pytest.fixture(scope="module")
def plain():
    flow = eqx.filter_jit(flows.nsf_coupling)(jax.random.key(0), 3, num_layers=2, hidden=(8,))
    return perturbed(flow, jax.random.key(1))


def test_batches_agree_with_single_events(plain):
    x = jax.random.normal(jax.random.key(2), (4, 5, 3))
    y, log_det = FlowTransform(plain).call_with_intermediates(x)
    y0, log_det0 = plain.transform_and_log_det(x[1, 2])
    assert y.shape == x.shape
    assert log_det.shape == (4, 5)
    np.testing.assert_allclose(y[1, 2], y0, rtol=1e-5)
    np.testing.assert_allclose(log_det[1, 2], log_det0, rtol=1e-5)


def test_intermediates_are_used_and_agree(plain):
    transform = FlowTransform(plain)
    x = jax.random.normal(jax.random.key(2), (6, 3))
    y, log_det = transform.call_with_intermediates(x)
    np.testing.assert_allclose(transform.log_abs_det_jacobian(x, y), log_det, rtol=1e-5)
    assert transform.log_abs_det_jacobian(x, y, log_det) is log_det
    np.testing.assert_allclose(transform.inv(y), x, atol=1e-4)
    np.testing.assert_allclose(transform.inverse_and_log_det(y)[1], -log_det, atol=1e-4)


def test_condition_and_value_broadcast(conditional):
    condition = jax.random.normal(jax.random.key(3), (4, 1, 2))
    x = jax.random.normal(jax.random.key(2), (5, 3))
    transform = FlowTransform(conditional, condition)
    y = transform(x)
    assert y.shape == (4, 5, 3)
    assert transform.forward_shape(x.shape) == (4, 5, 3)
    expected, _ = conditional.transform_and_log_det(x[2], condition[1, 0])
    np.testing.assert_allclose(y[1, 2], expected, rtol=1e-5)


def test_gradient_flows_through_the_condition(conditional):
    x = jnp.ones(3)
    gradient = jax.grad(lambda c: FlowTransform(conditional, c)(x).sum())(jnp.ones(2))
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
    np.testing.assert_allclose(calls(transform, jnp.ones(3)), transform(jnp.ones(3)), rtol=1e-6)
    calls(jax.tree.map(lambda a: a, transform), jnp.ones(3))
    assert calls._cache_size() == 1


def test_numpyro_finds_the_constraint(plain):
    transform = FlowTransform(plain)
    assert transform.codomain == constraints.real_vector
    biject_to(transform.codomain)
    base = dist.Normal(jnp.zeros(3), 1).to_event(1)
    composed = dist.TransformedDistribution(base, [transform, dist.transforms.ExpTransform()])
    x = composed.sample(jax.random.PRNGKey(0), (7,))
    assert composed.log_prob(x).shape == (7,)


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
