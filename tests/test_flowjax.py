"""A FlowJAX bijection stands wherever one of ours does."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow

from numpyro_flows.bijections import Chain, Coupling, Invert, RationalQuadraticSpline, transform_with_score
from tests.bijections.cases import perturbed

DIM, COND_DIM = 3, 2
X, CONDITION = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.3, -0.7])


@pytest.fixture(scope="module")
def theirs():
    flow = coupling_flow(jax.random.key(0), base_dist=Normal(jnp.zeros(DIM)), cond_dim=COND_DIM, flow_layers=2)
    return flow.bijection


@pytest.fixture(params=["theirs", "inverted", "chained"])
def bijection(request, theirs):
    ours = perturbed(Coupling(jax.random.key(1), DIM, RationalQuadraticSpline()), scale=0.2)
    return {"theirs": theirs, "inverted": Invert(theirs), "chained": Chain([ours, theirs, ours])}[request.param]


def test_shapes(bijection):
    assert bijection.shape == (DIM,)
    assert bijection.cond_shape == (COND_DIM,)


def test_round_trip_and_log_det(bijection):
    y, log_det = eqx.filter_jit(bijection.transform_and_log_det)(X, CONDITION)
    x, log_det_back = eqx.filter_jit(bijection.inverse_and_log_det)(y, CONDITION)
    jacobian = jax.jit(jax.jacfwd(lambda x: bijection.transform_and_log_det(x, CONDITION)[0]))(X)
    np.testing.assert_allclose(x, X, atol=1e-5)
    np.testing.assert_allclose(log_det, jnp.linalg.slogdet(jacobian)[1], atol=1e-5)
    np.testing.assert_allclose(log_det + log_det_back, 0.0, atol=1e-5)
    assert abs(log_det) > 0.01


def test_score_is_the_gradient_of_the_log_density(bijection):
    def log_density(y):
        x, log_det = bijection.inverse_and_log_det(y, CONDITION)
        return -0.5 * jnp.sum(x**2) + log_det

    y, log_det, score = jax.jit(lambda x: transform_with_score(bijection, x, -x, CONDITION))(X)
    expected_y, expected_log_det = eqx.filter_jit(bijection.transform_and_log_det)(X, CONDITION)
    np.testing.assert_allclose(y, expected_y, atol=1e-6)
    np.testing.assert_allclose(log_det, expected_log_det, atol=1e-6)
    np.testing.assert_allclose(score, jax.jit(jax.grad(log_density))(y), rtol=1e-4, atol=1e-4)
