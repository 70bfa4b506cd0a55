"""What the laws do not see: whose solution a matrix exponential is, at which time, and that it learns a Gaussian."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import chi2

from numpyro_flows import FlowDistribution, fit_density, flows
from numpyro_flows.bijections import MatrixExponential
from numpyro_flows.continuous import ContinuousFlow, LinearField, adaptive
from numpyro_flows.training.steps import TrainState, cosine_schedule, train_chunk
from tests.continuous.common import with_random_parameters

KEY = jax.random.PRNGKey(0)
DIM = 4
GATES = {"linear": lambda t, rate: t, "tanh": lambda t, rate: np.tanh(rate * t)}
GATE_SLOPES = {"linear": lambda t, rate: 1.0, "tanh": lambda t, rate: rate / np.cosh(rate * t) ** 2}
ROWS = 4000


X = np.array([0.5, -1.0, 2.0, 0.1])


def trained(**options) -> MatrixExponential:
    return with_random_parameters(lambda key: MatrixExponential(key, DIM, bias=True, **options), scale=0.5)


@eqx.filter_jit
def transform(bijection, x, condition=None):
    return bijection.transform_and_log_det(x, condition)


@pytest.mark.parametrize("gate", ["linear", pytest.param("tanh", marks=pytest.mark.slow)])
def test_it_is_the_solution_of_its_equation(gate, x64):
    """By SciPy: the state, and the log-determinant as the integral of the divergence; the time given in either way."""
    bijection = trained(gate=gate, cond_dim=1)
    weight, bias = np.asarray(bijection.weight), np.asarray(bijection.bias)
    rate = 1.0 if bijection.rate is None else float(bijection.rate)

    def slope(t, state):
        return GATE_SLOPES[gate](t, rate) * np.append(weight @ state[:-1] + bias, np.trace(weight))

    for time in (-0.6, 1.0, 1.7):
        expected = solve_ivp(slope, (0.0, time), np.append(X, 0.0), "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
        y, log_det = transform(bijection, jnp.asarray(X), jnp.array([time]))
        np.testing.assert_allclose(y, expected[:-1], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(log_det, expected[-1], rtol=1e-9, atol=1e-9)
        assert np.abs(y - X).max() > 0.02
    for got, want in zip(transform(trained(gate=gate, time=time), jnp.asarray(X)), (y, log_det)):
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)


@pytest.mark.slow
def test_it_is_the_flow_of_a_linear_field(x64):
    bijection = trained()
    field = LinearField(DIM)
    field = eqx.tree_at(lambda f: (f.weight, f.bias), field, (bijection.weight, bijection.bias))
    flow = ContinuousFlow(field, stepsize_controller=adaptive(1e-11))
    for got, want in zip(transform(bijection, jnp.asarray(X)), transform(flow, jnp.asarray(X))):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("gate", "precision"), [pytest.param("linear", "float32", marks=pytest.mark.slow), ("tanh", "float64")]
)
def test_at_time_zero_it_is_the_identity(gate, precision):
    with jax.enable_x64(precision == "float64"):
        stack = with_random_parameters(partial(flows.matrix_exponential, dim=DIM, num_layers=2, cond_dim=1, gate=gate))

        @eqx.filter_jit
        def both_ways(x, time):
            return stack.transform_and_log_det(x, time), stack.inverse_and_log_det(x, time)

        x = jnp.asarray(X)
        for (end, log_det), (later, _) in zip(both_ways(x, jnp.zeros(1)), both_ways(x, jnp.ones(1))):
            assert end.dtype == log_det.dtype == precision
            np.testing.assert_array_equal(end, x)
            assert log_det == 0
            assert np.abs(later - x).max() > 0.1


def test_times_add_up(x64):
    """With `g(t) = t` the way from 0 to 0.3 and then 0.5 further is that from 0 to 0.8."""
    bijection = trained(cond_dim=1)
    halfway, first = transform(bijection, jnp.asarray(X), jnp.array([0.3]))
    y, second = transform(bijection, halfway, jnp.array([0.5]))
    expected, log_det = transform(bijection, jnp.asarray(X), jnp.array([0.8]))
    np.testing.assert_allclose(y, expected, rtol=1e-13)
    np.testing.assert_allclose(first + second, log_det, rtol=1e-13)


def test_two_layers_turn_one_axis_round(x64):
    """`diag(-1, -4)` is no exponential of a real matrix, but `diag(1, 4)` after half a turn is a product of two."""
    stack = flows.matrix_exponential(KEY, 2, num_layers=2)
    half_turn = jnp.pi * jnp.array([[0.0, -1.0], [1.0, 0.0]])
    stretch = jnp.diag(jnp.log(jnp.array([1.0, 4.0])))
    stack = eqx.tree_at(lambda s: s.layers.weight, stack, jnp.stack([half_turn, stretch]))
    y, log_det = transform(stack, jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(y, [-1.0, -4.0], rtol=1e-13)
    np.testing.assert_allclose(log_det, np.log(4.0), rtol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim expected at least 1, got 0"),
        ({"dim": 2, "cond_dim": 2}, "cond_dim expected None, or 1 if the condition is the time, got 2"),
        ({"dim": 2, "time": float("nan")}, "time expected a finite number, got nan"),
        ({"dim": 2, "gate": "sigmoid"}, r"gate expected one of \['linear', 'tanh'\], got 'sigmoid'"),
    ],
)
@pytest.mark.parametrize("make", [MatrixExponential, flows.matrix_exponential])
def test_errors(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(KEY, **options)


def tilted_gaussian() -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and covariance of the tilted Gaussian with standard deviations 1.7 and 0.7, and its entropy."""
    turn = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
    root = turn * [1.7, 0.7]
    return np.array([0.8, -0.5]), root @ root.T, float(np.log(2 * np.pi * np.e) + np.log(1.7 * 0.7))


def expected_nll(flow: FlowDistribution) -> float:
    """Of a linear map of a standard normal, under the tilted Gaussian: exact, by the map's inverse at three points."""
    mean, covariance, _ = tilted_gaussian()
    points = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    inverses = eqx.filter_jit(lambda points: jax.vmap(flow.bijection.inverse_and_log_det)(points))
    images, (log_det, *_) = inverses(points)
    offset, *ends = np.asarray(images, float)
    inverse = (ends - offset).T
    latent_mean, latent = inverse @ mean + offset, inverse @ covariance @ inverse.T
    return float(0.5 * (np.trace(latent) + latent_mean @ latent_mean) + np.log(2 * np.pi) - log_det)


def by_fit_density(data):
    return fit_density(jax.random.key(1), data, flow=flows.matrix_exponential, num_steps=500, progress_bar=False)


def by_maximum_likelihood(data, **options):
    """From data that nothing has whitened."""
    params, static = eqx.partition(flows.matrix_exponential(KEY, 2, **options), eqx.is_inexact_array)
    data = jnp.asarray(data, "float32")

    def loss(params, _):
        return -FlowDistribution(eqx.combine(params, static)).log_prob(data).mean()

    rates = jnp.asarray(cosine_schedule(300, 0.05), "float32")
    state, _, _ = eqx.filter_jit(partial(train_chunk, loss))(TrainState.init(params), jnp.zeros(300), rates)
    return FlowDistribution(eqx.combine(state.params, static))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fit", "share"),
    [
        (by_fit_density, 0.9),  # the others tell when to stop
        (partial(by_maximum_likelihood, gate="tanh", time=0.3), 1.0),
    ],
    ids=["fit_density", "gated"],
)
def test_a_tilted_gaussian(fit, share):
    """Its entropy 3.012 is reached within 0.005 nats, and within what the finite sample allows."""
    mean, covariance, entropy = tilted_gaussian()
    assert round(entropy, 3) == 3.012
    data = np.random.default_rng(0).multivariate_normal(mean, covariance, ROWS)
    excess = expected_nll(fit(data)) - entropy
    # twice the number of rows times the Kullback-Leibler divergence of a fit of 5 numbers is chi-square distributed
    assert 0 <= excess < chi2.ppf(0.9999, 5) / (2 * share * ROWS) < 0.005
    # the identity, where it starts, is far
    assert 0.5 * (np.trace(covariance) + mean @ mean) + np.log(2 * np.pi) - entropy > 0.1
