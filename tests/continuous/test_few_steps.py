"""Flows distilled into few steps: known answers for linear fields, what a step costs, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.linalg import expm

from numpyro_flows import FlowDistribution, few_steps, fit_density, flows
from numpyro_flows.bijections import Affine, Chain, ConditionLayout, EmbeddedCondition, StandardizedCondition
from numpyro_flows.bijections.noise import estimates
from numpyro_flows.continuous import AbstractField, ContinuousFlow, FewSteps
from tests.continuous.common import COARSE, CONDITION, KEY, X, linear_field, trained_field, with_random_parameters

WEIGHT, SHIFT = np.array([[0.5, -0.6], [0.4, -0.3]]), np.array([1.0, -2.0])


class Counting(AbstractField):
    """A field that counts how often it is evaluated."""

    count: list[int] = eqx.field(static=True)
    dim, cond_dim = 2, None

    def __init__(self, count: list[int]):
        self.count = count

    def __call__(self, t, x, condition=None):
        jax.debug.callback(lambda: self.count.append(1))
        return jnp.sin(x + t)


@pytest.fixture(scope="module")
def linear():
    """Distilled from `dx/dt = W x`, shifted behind it: a Gaussian of covariance `exp(W) exp(W)^T`."""
    flow = FlowDistribution(Chain([ContinuousFlow(linear_field(WEIGHT)), Affine(SHIFT)]))
    options = {"num_draws": 1000, "num_training_steps": 750, "learning_rate": 1e-2, "progress_bar": False}
    return few_steps(KEY, flow, **options)


def test_a_linear_flow_is_recovered(linear):
    root = expm(jnp.asarray(WEIGHT))
    exact = dist.MultivariateNormal(jnp.asarray(SHIFT), root @ root.T)
    x = exact.sample(jax.random.key(1), (200,))
    np.testing.assert_allclose(linear.log_prob(x), exact.log_prob(x), atol=0.02)
    base = jax.random.normal(jax.random.key(2), (200, 2))
    np.testing.assert_allclose(jax.vmap(linear.bijection.transform)(base), base @ root.T + SHIFT, atol=0.02)


def test_the_fit_says_how_large_the_errors_are(linear):
    base = jax.random.normal(jax.random.key(3), (2000, 2))
    again = jax.vmap(lambda x: linear.bijection.inverse(linear.bijection.transform(x)))(base)
    assert linear.fit.round_trip_error < 0.01
    np.testing.assert_allclose(jnp.sqrt(jnp.mean((again - base) ** 2)), linear.fit.round_trip_error, rtol=0.2)
    assert abs(linear.fit.kl.nll) <= linear.fit.log_prob_error < 0.01
    assert "log_prob_error" in repr(linear)
    assert estimates(linear.bijection) == ["4 distilled steps, which are undone only nearly"]


def test_file(linear, tmp_path):
    linear.save(tmp_path / "flow")
    again = FlowDistribution.load(tmp_path / "flow")
    assert again.fit == linear.fit
    np.testing.assert_array_equal(again.log_prob(X[:2]), linear.log_prob(X[:2]))


@pytest.mark.parametrize("method", ["transform_and_log_det", "inverse_and_log_det"])
def test_a_step_is_one_evaluation(method):
    count: list[int] = []
    steps = FewSteps(ContinuousFlow(Counting(count)), num_steps=4)
    getattr(steps, method)(X[:2])
    jax.effects_barrier()
    assert len(count) == 4


def test_log_determinants_are_those_of_the_steps():
    steps = with_random_parameters(lambda key: FewSteps(ContinuousFlow(trained_field(cond_dim=2)), num_steps=3))
    for move, value in ((steps.transform, steps.transform_and_log_det), (steps.inverse, steps.inverse_and_log_det)):
        jacobian = jax.jacfwd(move)(jnp.asarray(X), CONDITION)
        np.testing.assert_allclose(value(X, CONDITION)[1], jnp.linalg.slogdet(jacobian)[1], atol=1e-5)


@pytest.mark.slow
def test_conditions_go_through():
    """Those of the flow's own units: standardised in front of the field."""
    field = jax.tree.map(lambda leaf: 0.5 * leaf, trained_field(cond_dim=2))
    flow = FlowDistribution(
        StandardizedCondition(ContinuousFlow(field, **COARSE), np.array([10.0, 20.0]), np.array([2.0, 3.0]))
    )
    condition = jnp.array([10.0, 20.0]) + jnp.array([2.0, 3.0]) * jax.random.normal(KEY, (50, 2))
    options = {"num_draws": 16, "num_training_steps": 1, "learning_rate": 1e-6, "progress_bar": False}
    fast = few_steps(KEY, flow, condition=condition, **options)
    assert fast.fit.log_prob_error < 0.05  # as Euler's steps at the middle of the intervals
    given, exact = fast.given(condition[:5]), flow.given(condition[:5])
    x = exact.sample(jax.random.key(1))
    np.testing.assert_allclose(given.log_prob(x), exact.log_prob(x), atol=0.2)


@pytest.mark.slow
def test_an_embedding_stays():
    """Conditions are a dict, of which the embedding makes a vector."""

    class First(eqx.Module):
        def __call__(self, condition):
            return condition["s"][:2]

    values = {"s": np.random.default_rng(0).normal(size=(40, 3))}
    layout = ConditionLayout.of(values, 1)
    field = jax.tree.map(lambda leaf: 0.5 * leaf, trained_field(cond_dim=2))
    flow = FlowDistribution(EmbeddedCondition(ContinuousFlow(field, **COARSE), First(), layout))
    options = {"num_draws": 16, "num_training_steps": 1, "learning_rate": 1e-6, "progress_bar": False}
    fast = few_steps(KEY, flow, condition=values, **options)
    some = {"s": values["s"][:5]}
    x = flow.given(some).sample(jax.random.key(1))
    np.testing.assert_allclose(fast.given(some).log_prob(x), flow.given(some).log_prob(x), atol=0.2)


def test_errors(linear):
    with pytest.raises(ValueError, match="expected one ContinuousFlow"):
        few_steps(KEY, FlowDistribution(flows.realnvp(KEY, 2)))
    with pytest.raises(ValueError, match="expected one ContinuousFlow"):
        few_steps(KEY, linear)
    two = Chain([ContinuousFlow(linear_field(WEIGHT))] * 2)
    with pytest.raises(ValueError, match="got 2"):
        few_steps(KEY, FlowDistribution(two))
    with pytest.raises(ValueError, match="condition expected None"):
        few_steps(KEY, linear, condition=np.ones((3, 1)))
    conditional = FlowDistribution(ContinuousFlow(trained_field(cond_dim=2)))
    with pytest.raises(ValueError, match="distillation trains on them"):
        few_steps(KEY, conditional)
    with pytest.raises(ValueError, match="shape ends with"):
        few_steps(KEY, conditional, condition=np.ones((3, 1)))
    with pytest.raises(TypeError, match="flow expected"):
        few_steps(KEY, linear.bijection)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="distil that again"):
        fit_density(KEY, np.random.default_rng(0).normal(size=(100, 2)), flow=linear)
