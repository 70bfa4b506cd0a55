import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from numpyro.infer.util import log_density

from numpyro_flows import FlowDistribution, flows
from numpyro_flows.bijections import Affine
from tests.bijections.common import made


@pytest.fixture(scope="module")
def flow():
    return FlowDistribution(made(lambda: flows.realnvp(jax.random.key(0), 2, num_layers=4, hidden=(8,)), scale=0.3))


@pytest.fixture(scope="module")
def conditional():
    return made(lambda: flows.realnvp(jax.random.key(0), 2, cond_dim=1, num_layers=2, hidden=(8,)), scale=0.3)


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)])
def test_shapes_and_intermediates(flow, key):
    @jax.jit
    def evaluate(key):
        x, intermediates = flow.sample_with_intermediates(key, (5, 3))
        assert x.shape == (5, 3, 2)
        return flow.log_prob(x), flow.log_prob(x, intermediates)

    assert (flow.batch_shape, flow.event_shape) == ((), (2,))
    log_prob, with_intermediates = evaluate(key)
    np.testing.assert_allclose(log_prob, with_intermediates, atol=1e-4)


def test_density_is_that_of_the_samples(flow):
    """E_q[grad_x log q] = 0 and E_q[1/q] over a set is its volume: both within Monte Carlo error."""

    @jax.jit
    def evaluate(key):
        x = flow.sample(key, (20_000,))
        return x, *jax.vmap(jax.value_and_grad(flow.log_prob))(x)

    x, log_prob, score = map(np.asarray, evaluate(jax.random.key(2)))
    error = score.std(0) / np.sqrt(x.shape[0])
    assert np.all(np.abs(score.mean(0)) < 4.5 * error)
    inside = np.all(np.abs(x) < 0.5, axis=1) * np.exp(-log_prob)
    assert abs(inside.mean() - 1.0) < 4.5 * inside.std() / np.sqrt(x.shape[0])


def test_a_batched_condition_is_a_batch(conditional):
    q = FlowDistribution(conditional, condition=jnp.arange(4.0)[:, None])
    assert q.batch_shape == (4,)
    one = FlowDistribution(conditional, condition=jnp.array([2.0]))

    @jax.jit
    def evaluate(key):
        x = q.sample(key, (6,))
        assert x.shape == (6, 4, 2)
        return q.log_prob(x), one.log_prob(x[:, 2])

    of_all, of_one = evaluate(jax.random.key(0))
    assert of_all.shape == (6, 4)
    np.testing.assert_allclose(of_all[:, 2], of_one, rtol=1e-4)


def test_gradient_through_the_condition_in_a_model(conditional, x64):
    """In a model `x ~ flow(. | theta)` the force on theta agrees with finite differences."""
    bijection = jax.tree.map(lambda a: np.asarray(a, float) if eqx.is_inexact_array(a) else a, conditional)
    value = np.array([0.3, -0.7])

    def model():
        theta = numpyro.sample("theta", dist.Normal(0, 1))
        numpyro.sample("x", FlowDistribution(bijection, condition=jnp.reshape(theta, 1)), obs=value)

    @jax.jit
    @jax.value_and_grad
    def joint(theta):
        return log_density(model, (), {}, {"theta": theta})[0]

    step = 1e-5
    difference = (joint(0.4 + step)[0] - joint(0.4 - step)[0]) / (2 * step)
    prior_alone = -0.4
    np.testing.assert_allclose(joint(0.4)[1], difference, rtol=1e-6)
    assert abs(difference - prior_alone) > 1e-2


def test_as_a_prior_and_under_jit_and_vmap(flow):
    def model():
        with numpyro.plate("n", 3):
            numpyro.sample("x", flow)

    @jax.jit
    def evaluate(flow, xs):
        trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
        assert trace["x"]["value"].shape == (3, 2)
        return jax.vmap(flow.log_prob)(xs)

    x = np.array([[0.1, -0.2], [1.0, 0.5]], np.float32)
    np.testing.assert_allclose(evaluate(flow, x), flow.log_prob(x), rtol=1e-5)


@pytest.mark.unchecked
def test_a_flowjax_bijection_plugs_in():
    theirs = coupling_flow(jax.random.key(0), base_dist=Normal(jnp.zeros(2)), flow_layers=2)
    q = FlowDistribution(theirs.bijection)
    x = jnp.array([[0.1, 0.2], [1.0, -1.0]])
    ours, expected = jax.jit(lambda x: (q.log_prob(x), theirs.log_prob(x)))(x)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_save_and_load(flow, tmp_path):
    path = tmp_path / "flow"
    flow.save(path)
    again = FlowDistribution.load(path)
    x = np.array([[0.1, 0.2], [1.0, -1.0]], np.float32)
    log_prob = jax.jit(lambda flow, x: flow.log_prob(x))
    np.testing.assert_array_equal(log_prob(again, x), log_prob(flow, x))
    based = FlowDistribution(Affine(jnp.zeros(2)), dist.StudentT(5.0, jnp.zeros(2), 1.0).to_event(1))
    based.save(path)
    np.testing.assert_array_equal(log_prob(FlowDistribution.load(path), x), log_prob(based, x))


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"event shape \(2,\), got \(3,\)"):
        FlowDistribution(Affine(jnp.zeros(2)), dist.Normal(jnp.zeros(3), 1).to_event(1))
    (tmp_path / "other").write_text("hello")
    with pytest.raises(ValueError, match="expected a whole file saved by numpyro_flows"):
        FlowDistribution.load(tmp_path / "other")
