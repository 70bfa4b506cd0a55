"""Continuous flows as bijections: against autodiff, against SciPy, against themselves the other way."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from numpyro_flows import FlowDistribution, flows
from numpyro_flows.bijections import Invert, Reshape, transform_with_score
from numpyro_flows.continuous import ContinuousFlow, Hutchinson, adaptive
from tests.bijections.cases import perturbed
from tests.continuous.common import (
    COND_DIM,
    CONDITION,
    DIM,
    FIELDS,
    KEY,
    X,
    linear_field,
    quick_to_compile,
    trained_field,
)

TIGHT = 1e-10
POINTS = np.random.default_rng(0).normal(size=(8, DIM))


@quick_to_compile
def there_and_back(flow, x, condition=None):
    y, log_det = flow.transform_and_log_det(x, condition)
    return y, log_det, *flow.inverse_and_log_det(y, condition)


def flow_of(name: str = "mlp", cond_dim: int | None = None, tolerance: float = TIGHT, **options) -> ContinuousFlow:
    return ContinuousFlow(trained_field(name, cond_dim=cond_dim), stepsize_controller=adaptive(tolerance), **options)


@pytest.mark.parametrize("name", ["mlp", "potential"])
@pytest.mark.parametrize("key_style", [jax.random.PRNGKey, jax.random.key], ids=["raw", "typed"])
def test_it_starts_as_the_identity(name, key_style, dtype):
    flow = flows.ffjord(key_style(0), DIM, cond_dim=COND_DIM, field=FIELDS[name])
    x = jnp.asarray(X)
    y, log_det, back, log_det_back = there_and_back(flow, x, jnp.asarray(CONDITION))
    assert {a.dtype for a in (y, log_det, back, log_det_back)} == {dtype}
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(back, x)
    assert log_det == log_det_back == 0


@pytest.mark.parametrize("name", ["mlp", "ot-flow"])
def test_log_det_is_that_of_the_jacobian(name, x64):
    flow = flow_of(name, COND_DIM)

    @quick_to_compile
    def compute(flow, x, condition):
        return flow.transform_and_log_det(x, condition)[1], jax.jacrev(flow.transform)(x, condition)

    log_det, jacobian = compute(flow, jnp.asarray(X), jnp.asarray(CONDITION))
    sign, expected = np.linalg.slogdet(jacobian)
    assert sign == 1
    assert abs(expected) > 0.01
    # the solver's tolerance, on either side, and what the inverse of the Jacobian makes of it
    tolerance = 100 * TIGHT * np.linalg.norm(np.linalg.inv(jacobian), 2)
    np.testing.assert_allclose(log_det, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("tolerance", "precision"), [(1e-3, "float32"), (1e-5, "float32"), (1e-7, "float64")])
def test_forward_and_back_is_the_identity_within_the_tolerance(tolerance, precision):
    """Ten times the tolerance asked for, whatever the size of the state."""
    with jax.enable_x64(precision == "float64"):
        field = trained_field(cond_dim=COND_DIM)
        flow = ContinuousFlow(field, stepsize_controller=adaptive(tolerance))
        points, condition = jnp.asarray(POINTS, precision), jnp.asarray(CONDITION, precision)

        @quick_to_compile
        @jax.vmap
        def run(x):
            y, log_det = flow.transform_and_log_det(x, condition)
            return y, log_det, *flow.inverse_and_log_det(y, condition)

        y, log_det, back, log_det_back = run(points)
        assert {a.dtype for a in (y, log_det, back, log_det_back)} == {np.dtype(precision)}
        assert np.abs(y - points).max() > 0.1
        assert np.abs(back - points).max() <= 10 * tolerance
        assert np.abs(log_det + log_det_back).max() <= 10 * tolerance


def test_a_tighter_tolerance_is_nearer_to_the_truth(x64):
    matrix = np.array([[0.3, -2.0, 0.0], [2.0, -0.1, 0.5], [0.0, 0.4, 0.2]])
    field, x = linear_field(matrix), jnp.asarray(X)
    exact = jax.scipy.linalg.expm(jnp.asarray(matrix)) @ x
    errors = []
    for tolerance in (1e-3, 1e-6, 1e-9):
        flow = ContinuousFlow(field, stepsize_controller=adaptive(tolerance))
        y, log_det, *_ = there_and_back(flow, x)
        np.testing.assert_allclose(log_det, np.trace(matrix), rtol=1e-13)
        errors.append(np.abs(y - exact).max())
        assert errors[-1] <= 10 * tolerance
    assert errors[2] < 1e-3 * errors[0]


def test_the_interval_may_run_either_way(x64):
    """From 0 to 2, and from 2 to 0, the inverse."""
    matrix, x = 0.5 * np.random.default_rng(0).normal(size=(DIM, DIM)), jnp.asarray(X)
    expected = jax.scipy.linalg.expm(2 * jnp.asarray(matrix)) @ x
    for interval in ((0.0, 2.0), (2.0, 0.0)):
        flow = ContinuousFlow(linear_field(matrix), stepsize_controller=adaptive(TIGHT), interval=interval)
        flow = flow if interval[0] == 0 else Invert(flow)
        y, log_det, back, _ = there_and_back(flow, x)
        np.testing.assert_allclose(y, expected, atol=100 * TIGHT)
        np.testing.assert_allclose(back, x, atol=100 * TIGHT)
        np.testing.assert_allclose(log_det, 2 * np.trace(matrix), rtol=1e-12)


def test_the_condition_changes_the_flow(x64):
    flow, x = flow_of(cond_dim=COND_DIM), jnp.asarray(X)
    first, second = (there_and_back(flow, x, jnp.asarray(c)) for c in (CONDITION, -CONDITION))
    assert np.abs(first[0] - second[0]).max() > 0.01
    with pytest.raises(ValueError, match=r"ContinuousFlow expected a condition of shape \(2,\), got None"):
        flow.transform(x)
    with pytest.raises(ValueError, match=r"ContinuousFlow expected an event of shape \(3,\), got \(4, 3\)"):
        flow.transform(jnp.ones((4, DIM)), CONDITION)


def numpy_rate(field):
    """`d (x, log_det) / dt` of an unconditional `MLPField` by NumPy alone: value and Jacobian, layer by layer."""
    weights = [np.asarray(w, "float64") for w in field.network.weights]
    biases = [np.asarray(b, "float64") for b in field.network.biases]

    def rate(t, state):
        x = state[:-1]
        angles = np.pi * np.arange(1, field.num_frequencies + 1) * t
        value = np.concatenate([x, np.cos(angles), np.sin(angles)])
        jacobian = np.eye(value.size)[:, : x.size]
        for weight, bias in zip(weights[:-1], biases[:-1]):
            inner = value @ weight + bias
            sigmoid = 1 / (1 + np.exp(-inner))
            value = inner * sigmoid
            slope = sigmoid * (1 + inner * (1 - sigmoid))
            jacobian = slope[:, None] * (weight.T @ jacobian)
        return np.append(value @ weights[-1] + biases[-1], np.trace(weights[-1].T @ jacobian))

    return rate


def by_scipy(field, start, interval):
    ends = [
        solve_ivp(numpy_rate(field), interval, np.append(x, 0.0), "DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
        for x in np.asarray(start, "float64")
    ]
    return np.stack(ends)[:, :-1], np.stack(ends)[:, -1]


def test_densities_and_draws_are_those_of_scipy(dtype):
    """The same weights, an independent field, Jacobian and solver: to 1e-4 in single precision, 1e-8 in double."""
    tolerance = {"float32": 1e-6, "float64": 1e-10}[dtype.name]
    flow = FlowDistribution(flow_of(tolerance=tolerance))
    agree = {"float32": 1e-4, "float64": 1e-8}[dtype.name]
    x, log_det = by_scipy(flow.bijection.field, POINTS, (1.0, 0.0))
    expected = -0.5 * (x**2).sum(1) - 0.5 * DIM * np.log(2 * np.pi) + log_det
    got = quick_to_compile(lambda flow, y: flow.log_prob(y))(flow, jnp.asarray(POINTS))
    np.testing.assert_allclose(got, expected, atol=agree)
    assert np.abs(log_det).max() > 0.1
    draws, parts = quick_to_compile(lambda flow: flow.sample_with_intermediates(KEY, (8,)))(flow)
    base = jax.random.normal(KEY, (8, DIM))
    y, log_det = by_scipy(flow.bijection.field, base, (0.0, 1.0))
    np.testing.assert_allclose(draws, y, atol=agree)
    np.testing.assert_allclose(parts[0][1], log_det, atol=agree)


def test_scores(x64):
    """Carried along the trajectory, by the inverse, and by differentiation of the log density."""
    flow, condition = flow_of(cond_dim=COND_DIM), jnp.asarray(CONDITION)

    @quick_to_compile
    def compute(flow, x):
        own = transform_with_score(flow, x, -x, condition)
        general = transform_with_score(Invert(Invert(flow)), x, -x, condition)

        def log_density(y):
            x, log_det = flow.inverse_and_log_det(y, condition)
            return -0.5 * (x**2).sum() + log_det

        return own, general, jax.grad(log_density)(own[0])

    own, general, expected = compute(flow, jnp.asarray(X))
    for a, b in zip(own, general):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)
    np.testing.assert_allclose(own[2], expected, rtol=0, atol=1e-8)
    assert np.abs(own[2] + X).max() > 0.05


def test_gradients_of_a_score_s_loss_go_through_the_events(x64):
    """As the path-derivative gradient needs it: `y` has the gradient of a plain transform, the score none."""
    flow, x = flow_of(), jnp.asarray(X)

    @quick_to_compile
    def slopes(flow):
        def plain(flow):
            return (flow.transform(x) * jnp.array([1.0, -2.0, 0.5])).sum()

        def with_score(flow):
            y, log_det, score = transform_with_score(flow, x, -x)
            return (y * jnp.array([1.0, -2.0, 0.5])).sum() + log_det + score.sum()

        return eqx.filter_grad(plain)(flow), eqx.filter_grad(with_score)(flow)

    leaves = [jax.tree.leaves(eqx.filter(g, eqx.is_inexact_array)) for g in slopes(flow)]
    assert len(leaves[0]) > 4
    for a, b in zip(*leaves):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)


def test_events_of_other_shapes():
    """Images, by `Reshape`."""
    flow = perturbed(flows.ffjord(KEY, 6, field=FIELDS["mlp"]), scale=0.3)
    images = FlowDistribution(Reshape(flow, (2, 3)))
    assert images.event_shape == (2, 3)
    y = jnp.arange(12.0).reshape(2, 2, 3) / 6
    flat = FlowDistribution(flow)
    got, expected = quick_to_compile(lambda y: (images.log_prob(y), flat.log_prob(y.reshape(2, 6))))(y)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert np.ptp(got) > 0.1


def test_an_estimate_says_so():
    assert flow_of(tolerance=1e-5).estimate == ""
    assert "Hutchinson" in flow_of(tolerance=1e-5, divergence=Hutchinson(KEY)).estimate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": (1.0, 1.0)}, r"interval expected two different finite times, got \(1.0, 1.0\)"),
        ({"interval": (0.0, float("inf"))}, "interval expected two different finite times"),
        ({"interval": (0.0, float("nan"))}, "interval expected two different finite times"),
        ({"num_steps": 4}, "num_steps with ConstantStepSize and only with it, got num_steps=4 and PIDController"),
        ({"stepsize_controller": diffrax.ConstantStepSize()}, "got num_steps=None and ConstantStepSize"),
        ({"stepsize_controller": diffrax.ConstantStepSize(), "num_steps": 0}, "num_steps expected from 1 to"),
        ({"stepsize_controller": diffrax.ConstantStepSize(), "num_steps": 9, "max_steps": 8}, "max_steps=8, got 9"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ContinuousFlow(linear_field(np.eye(2)), **options)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_a_tolerance_is_positive(tolerance):
    with pytest.raises(ValueError, match="tolerance expected a positive number"):
        adaptive(tolerance)
