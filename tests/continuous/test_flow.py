"""Continuous flows as bijections: against autodiff, against SciPy, against themselves the other way."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.stats import norm

from numpyro_flows import FlowDistribution, flows
from numpyro_flows.bijections import Reshape, transform_with_score
from numpyro_flows.continuous import ContinuousFlow, Hutchinson, adaptive
from tests.bijections.common import made
from tests.continuous.common import (
    COND_DIM,
    CONDITION,
    DIM,
    FIELDS,
    KEY,
    X,
    linear_field,
    trained_field,
)

TIGHT = 1e-10
POINTS = np.random.default_rng(0).normal(size=(8, DIM))


@eqx.filter_jit
def there_and_back(flow, points):
    """For a batch of events; compiled once for all flows that differ in numbers only."""

    def one(x):
        y, log_det = flow.transform_and_log_det(x)
        return y, log_det, *flow.inverse_and_log_det(y)

    return jax.vmap(one)(points)


def solved_to(tolerance, flow: ContinuousFlow) -> ContinuousFlow:
    """`flow` by `adaptive(tolerance)`, the tolerance an array that a compiled function takes."""
    controller = adaptive(tolerance)
    where = lambda f: (f.ode.stepsize_controller.rtol, f.ode.stepsize_controller.atol)  # noqa: E731
    return eqx.tree_at(where, flow, (jnp.asarray(controller.rtol), jnp.asarray(controller.atol)))


def linear_flow(matrix) -> ContinuousFlow:
    """`exp(matrix)`, as the solution from time 2 to time 0: an interval may run either way."""
    return ContinuousFlow(linear_field(-np.asarray(matrix) / 2), interval=(2.0, 0.0))


def differentiable_flow() -> ContinuousFlow:
    """By forward mode, which is quicker to compile."""
    field = trained_field("mlp with time beside", cond_dim=COND_DIM)
    return ContinuousFlow(field, adjoint=diffrax.ForwardMode(), stepsize_controller=adaptive(TIGHT))


# single precision compiles all of it once more
over_precisions = pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.slow), "float64"])


@over_precisions
@pytest.mark.parametrize(
    "key_style", [pytest.param(jax.random.PRNGKey, marks=pytest.mark.slow), jax.random.key], ids=["raw", "typed"]
)
def test_it_starts_as_the_identity(key_style, precision):
    with jax.enable_x64(precision == "float64"):
        check_the_start(key_style, np.dtype(precision))


def check_the_start(key_style, dtype):
    flow = solved_to(1e-4, made(lambda: flows.ffjord(key_style(0), DIM, field=FIELDS["mlp"])))
    points = jnp.asarray(POINTS)
    y, log_det, back, log_det_back = there_and_back(flow, points)
    assert {a.dtype for a in (y, log_det, back, log_det_back)} == {dtype}
    np.testing.assert_array_equal(y, points)
    np.testing.assert_array_equal(back, points)
    np.testing.assert_array_equal([log_det, log_det_back], 0)


@pytest.mark.parametrize(
    ("tolerance", "precision"),
    [
        pytest.param(1e-3, "float32", marks=pytest.mark.slow),
        pytest.param(1e-5, "float32", marks=pytest.mark.slow),
        (1e-7, "float64"),
    ],
)
def test_forward_and_back_is_the_identity_within_the_tolerance(tolerance, precision):
    """Ten times the tolerance asked for, whatever the size of the state."""
    with jax.enable_x64(precision == "float64"):
        flow, points = solved_to(tolerance, ContinuousFlow(trained_field())), jnp.asarray(POINTS)
        y, log_det, back, log_det_back = there_and_back(flow, points)
        assert {a.dtype for a in (y, log_det, back, log_det_back)} == {np.dtype(precision)}
        assert np.abs(y - points).max() > 0.1
        assert np.abs(back - points).max() <= 10 * tolerance
        assert np.abs(log_det + log_det_back).max() <= 10 * tolerance


@pytest.mark.slow
def test_a_tighter_tolerance_is_nearer_to_the_truth(x64):
    matrix = np.array([[0.3, -2.0, 0.0], [2.0, -0.1, 0.5], [0.0, 0.4, 0.2]])
    exact = POINTS @ expm(matrix).T
    errors = []
    for tolerance in (1e-3, 1e-6, 1e-9):
        y, log_det, *_ = there_and_back(solved_to(tolerance, linear_flow(matrix)), jnp.asarray(POINTS))
        np.testing.assert_allclose(log_det, np.trace(matrix), rtol=1e-13)
        errors.append(np.abs(y - exact).max())
        assert errors[-1] <= 10 * tolerance
    assert errors[2] < 1e-3 * errors[0]


@pytest.mark.slow
def test_the_interval_may_run_either_way(x64):
    """From 2 to 0, and back from 0 to 2."""
    matrix = np.random.default_rng(0).normal(size=(DIM, DIM))
    y, log_det, back, log_det_back = there_and_back(solved_to(TIGHT, linear_flow(matrix)), jnp.asarray(POINTS))
    np.testing.assert_allclose(y, POINTS @ expm(matrix).T, atol=100 * TIGHT)
    np.testing.assert_allclose(back, POINTS, atol=100 * TIGHT)
    np.testing.assert_allclose(log_det, np.trace(matrix), rtol=1e-12)
    np.testing.assert_allclose(log_det_back, -np.trace(matrix), rtol=1e-12)


@eqx.filter_jit
def with_slopes(flow, x, condition):
    """The image and the log-determinant, and the slopes of both."""

    def transform(x):
        ends = flow.transform_and_log_det(x, condition)
        return ends, ends

    slopes, ends = jax.jacfwd(transform, has_aux=True)(x)
    return *ends, *slopes


def test_log_det_is_that_of_the_jacobian(x64):
    flow = differentiable_flow()
    _, log_det, jacobian, _ = with_slopes(flow, jnp.asarray(X), jnp.asarray(CONDITION))
    sign, expected = np.linalg.slogdet(jacobian)
    assert sign == 1
    assert abs(expected) > 0.01
    # the solver's tolerance, on either side, and what the inverse of the Jacobian makes of it
    tolerance = 100 * TIGHT * np.linalg.norm(np.linalg.inv(jacobian), 2)
    np.testing.assert_allclose(log_det, expected, rtol=0, atol=tolerance)


def test_the_condition_changes_the_flow(x64):
    flow, x = differentiable_flow(), jnp.asarray(X)
    first, second = (np.asarray(with_slopes(flow, x, jnp.asarray(c))[0]) for c in (CONDITION, -CONDITION))
    assert np.abs(first - second).max() > 0.01
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


@over_precisions
def test_both_ways_are_those_of_scipy(precision):
    """The same weights, an independent field, Jacobian and solver: to 1e-4 in single precision, 1e-8 in double."""
    tolerance, agree = {"float32": (1e-6, 1e-4), "float64": (1e-10, 1e-8)}[precision]
    with jax.enable_x64(precision == "float64"):
        flow, points = solved_to(tolerance, ContinuousFlow(trained_field())), jnp.asarray(POINTS)
        y, log_det, back, log_det_back = there_and_back(flow, points)
    for found, start, interval in (((y, log_det), points, (0.0, 1.0)), ((back, log_det_back), y, (1.0, 0.0))):
        for got, expected in zip(found, by_scipy(flow.field, start, interval)):
            np.testing.assert_allclose(got, expected, atol=agree)
    assert np.abs(log_det).max() > 0.1


def test_scores(x64):
    """Carried along the trajectory, and by differentiation of the log density of the image."""
    flow, x, condition = differentiable_flow(), jnp.asarray(X), jnp.asarray(CONDITION)
    y, log_det, score = eqx.filter_jit(transform_with_score)(flow, x, -x, condition)
    *ends, jacobian, slope = with_slopes(flow, x, condition)
    expected = np.linalg.solve(np.asarray(jacobian).T, -X - slope)
    for a, b in zip((y, log_det, score), (*ends, expected)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)
    assert np.abs(score + X).max() > 0.05


@pytest.mark.slow
def test_gradients_of_a_score_s_loss_go_through_the_events(x64):
    """As the path-derivative gradient needs it: `y` has the gradient of a plain transform, the score none."""
    x = jnp.asarray(X)
    condition = jnp.asarray(CONDITION)
    params, static = eqx.partition(differentiable_flow(), eqx.is_inexact_array)
    way = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)

    def ends(params):
        flow = eqx.combine(params, static)
        return flow.transform(x, condition), transform_with_score(flow, x, -x, condition)

    plain, (y, log_det, score) = eqx.filter_jit(lambda p, way: jax.jvp(ends, (p,), (way,))[1])(params, way)
    np.testing.assert_allclose(y, plain, rtol=0, atol=1e-8)
    assert np.abs(plain).max() > 0.01
    assert log_det == 0
    np.testing.assert_array_equal(score, 0)


@pytest.mark.slow
def test_events_of_other_shapes():
    """Images, by `Reshape`: of a flow that only stretches, a Gaussian of known deviations."""
    rates = np.linspace(-0.5, 0.5, 6)
    images = FlowDistribution(Reshape(ContinuousFlow(linear_field(np.diag(rates))), (2, 3)))
    assert images.event_shape == (2, 3)
    y = np.arange(12.0).reshape(2, 2, 3) / 6
    x = y.reshape(2, 6) / np.exp(rates)
    expected = norm.logpdf(x).sum(1) - rates.sum()
    error = 1e-4 * (np.abs(x) * (1 + np.abs(x))).sum(1)  # of a solution to the default tolerance
    assert (np.abs(eqx.filter_jit(lambda y: images.log_prob(y))(y) - expected) < error).all()
    assert np.ptp(expected) > 1


def test_an_estimate_says_so():
    field = linear_field(np.eye(2))
    assert ContinuousFlow(field).estimate == ""
    assert "Hutchinson" in ContinuousFlow(field, divergence=Hutchinson(KEY)).estimate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": (1.0, 1.0)}, r"interval expected two different times, got \(1.0, 1.0\)"),
        ({"interval": (0.0, float("inf"))}, "each time of interval expected a finite number, got inf"),
        ({"interval": (0.0, float("nan"))}, "each time of interval expected a finite number, got nan"),
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
