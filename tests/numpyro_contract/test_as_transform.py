"""What NumPyro asks of its transforms, asked of a flow's: shapes, inverses, equality, trees, compositions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions.transforms import ComposeTransform, ExpTransform, IndependentTransform

from numpyro_flows import FlowTransform
from numpyro_flows.bijections import Affine, TriangularAffine

SLOW = pytest.mark.slow
LOWER = jnp.array([[1.0, 0.0], [0.4, 2.0]])
TRANSFORMS = {
    "vectors": FlowTransform(TriangularAffine(jnp.ones(2), LOWER)),
    "scalars": FlowTransform(Affine(1.0, 2.0)),
    "matrices": FlowTransform(Affine(jnp.ones((3, 2)), 2.0)),
}


@pytest.mark.parametrize("batch", [pytest.param((), marks=SLOW), pytest.param((4,), marks=SLOW), (2, 4)])
@pytest.mark.parametrize("name", ["vectors", pytest.param("scalars", marks=SLOW), pytest.param("matrices", marks=SLOW)])
def test_there_and_back(name, batch):
    transform = TRANSFORMS[name]
    shape = (*batch, *transform.event_shape)

    @jax.jit
    def there_and_back(x):
        y, intermediates = transform.call_with_intermediates(x)
        log_dets = (
            transform.log_abs_det_jacobian(x, y),
            transform.log_abs_det_jacobian(x, y, intermediates),
            -transform.inv.log_abs_det_jacobian(y, x),
        )
        one = x.reshape(-1, *transform.event_shape)[0]
        return y, transform.inv(y), log_dets, jax.jacfwd(transform)(one).reshape(one.size, one.size)

    x = jax.random.normal(jax.random.key(0), shape)
    y, back, log_dets, jacobian = there_and_back(x)
    assert transform.forward_shape(shape) == transform.inverse_shape(shape) == y.shape == shape
    assert transform.domain.event_dim == transform.codomain.event_dim == len(transform.event_shape)
    assert np.all(transform.codomain(y))
    np.testing.assert_allclose(back, x, atol=1e-5)
    for log_det in log_dets:
        assert log_det.shape == batch
        np.testing.assert_allclose(log_det.ravel()[0], np.linalg.slogdet(jacobian)[1], rtol=1e-5)
        np.testing.assert_allclose(log_det, log_dets[0], rtol=1e-5)


def test_shapes_that_are_too_short():
    transform = TRANSFORMS["vectors"]
    for shape_of in (transform.forward_shape, transform.inverse_shape):
        with pytest.raises(ValueError, match=r"ends with \(2,\), got \(\)"):
            shape_of(())


def test_domains_are_the_same_objects():
    """NumPyro compares constraints by identity."""
    for transform in TRANSFORMS.values():
        assert transform.domain is transform.inv.codomain
        assert transform.codomain is transform.inv.domain


def test_equality():
    transform = TRANSFORMS["vectors"]
    other = jax.tree.map(lambda leaf: leaf + 1, transform)
    assert transform.inv.inv is transform
    assert transform == FlowTransform(TriangularAffine(jnp.ones(2), LOWER))
    assert transform.inv == jax.jit(lambda transform: transform.inv)(transform)
    for different in (other, TRANSFORMS["scalars"], ExpTransform(), transform.inv, 1.0):
        assert transform != different
    same, not_same = jax.jit(lambda a, b: (a.eq(a), a.eq(b)))(transform, other)
    assert same
    assert not not_same


def test_made_under_vmap():
    """Two nested `vmap`s over locations make the transforms that a loop over the locations makes."""
    locs = jnp.arange(12.0).reshape(2, 3, 2)

    def of(loc):
        return FlowTransform(TriangularAffine(loc, LOWER))

    many = jax.jit(jax.vmap(jax.vmap(of)))(locs)
    equal = jax.vmap(jax.vmap(lambda one, loc: jnp.asarray(one.eq(of(loc)))))(many, locs)
    assert equal.shape == (2, 3)
    assert equal.all()
    x = jnp.ones(2)
    np.testing.assert_allclose(jax.vmap(jax.vmap(lambda one: one(x)))(many), locs + LOWER.sum(1), rtol=1e-6)


def test_composed():
    flow = TRANSFORMS["vectors"]
    composed = ComposeTransform([flow, ExpTransform(), flow.inv])
    assert (composed.domain.event_dim, composed.codomain.event_dim) == (1, 1)
    x = jnp.array([[0.1, 0.2], [0.3, -0.4]])

    @jax.jit
    def computed(x):
        y = composed(x)
        rows = IndependentTransform(flow, 1)
        log_dets = composed.log_abs_det_jacobian(x, y), rows.log_abs_det_jacobian(x, rows(x))
        return composed.inv(y), log_dets, jax.vmap(jax.jacfwd(composed))(x)

    back, (log_det, of_rows), jacobian = computed(x)
    np.testing.assert_allclose(back, x, atol=1e-4)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_rows, 2 * np.log(2.0), rtol=1e-5)
