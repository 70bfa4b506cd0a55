"""What training makes of a flow: energies and their weights, coarse solvers, new probes; and what it leaves alone."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import expm

from numpyro_flows.bijections import Affine, Chain, Frozen, Invert, Scan
from numpyro_flows.continuous import (
    ContinuousFlow,
    Energies,
    Exact,
    Hutchinson,
    Training,
    adaptive,
    in_training,
    num_evaluations,
)
from numpyro_flows.continuous.training_form import Penalised, continuous_flows, with_more_steps, with_training_solver
from tests.continuous.common import DIM, KEY, X, linear_field, quick_to_compile, trained_field

MATRIX = np.array([[0.3, -1.0, 0.0], [0.8, -0.2, 0.1], [0.0, 0.5, 0.4]])
BIAS = np.array([0.5, 0.0, -1.0])


@quick_to_compile
def energies(flow, x, interval):
    return flow.move(x, None, interval, with_energies=True)[2]


def test_energies_are_integrals_along_the_trajectory(x64):
    """Of a linear field against quadrature by SciPy, forward and back."""
    flow = ContinuousFlow(linear_field(MATRIX, BIAS), stepsize_controller=adaptive(1e-10))
    homogeneous = np.block([[MATRIX, BIAS[:, None]], [np.zeros((1, DIM + 1))]])

    def speed(t):
        return np.linalg.norm((homogeneous @ expm(t * homogeneous) @ np.append(X, 1.0))[:DIM])

    kinetic = quad(lambda t: speed(t) ** 2, 0, 1, epsabs=1e-12)[0]
    expected = Energies(kinetic, (MATRIX**2).sum(), quad(speed, 0, 1, epsabs=1e-12)[0])
    y = quick_to_compile(flow.transform)(jnp.asarray(X))
    for start, interval in ((jnp.asarray(X), (0.0, 1.0)), (y, (1.0, 0.0))):
        np.testing.assert_allclose(energies(flow, start, interval), expected, rtol=1e-8)


def test_energies_of_a_constant_field_and_their_gradients(x64):
    """`|b|^2` and `|b|`, of slopes `2 b` and `b / |b|`; at rest of slope 0."""

    @quick_to_compile
    @jax.jacrev
    def slopes(bias):
        flow = ContinuousFlow(linear_field(np.zeros((DIM, DIM)), bias))
        return flow.move(jnp.asarray(X), None, (0.0, 1.0), with_energies=True)[2]

    size = np.linalg.norm(BIAS)
    got = energies(ContinuousFlow(linear_field(np.zeros((DIM, DIM)), BIAS)), jnp.asarray(X), (0.0, 1.0))
    np.testing.assert_allclose(got, (size**2, 0.0, size), rtol=1e-12, atol=1e-14)
    found = slopes(jnp.asarray(BIAS))
    np.testing.assert_allclose(found.kinetic, 2 * BIAS, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.path_length, BIAS / size, rtol=1e-12, atol=1e-12)
    for slope in slopes(jnp.zeros(DIM)):
        np.testing.assert_array_equal(slope, 0.0)


PENALTIES = Energies(0.5, 0.25, 2.0)


def test_penalties_are_taken_off_log_determinants(x64):
    """In both directions, with weights, of the energies in the training's own steps."""
    plain = ContinuousFlow(trained_field(), training=Training(num_steps=4, penalties=Energies()))
    paying = ContinuousFlow(trained_field(), training=Training(num_steps=4, penalties=PENALTIES))
    coarse, penalised = in_training(plain, KEY), in_training(paying, KEY)

    @quick_to_compile
    def both(x):
        cost = sum(w * e for w, e in zip(PENALTIES, coarse.move(x, None, (0.0, 1.0), with_energies=True)[2]))
        back = sum(w * e for w, e in zip(PENALTIES, coarse.move(x, None, (1.0, 0.0), with_energies=True)[2]))
        directions = "transform_and_log_det", "inverse_and_log_det"
        return [[getattr(flow, d)(x) for flow in (coarse, penalised)] for d in directions], (cost, back)

    found, costs = both(jnp.asarray(X))
    for ((y, log_det), (y_penalised, log_det_penalised)), cost in zip(found, costs):
        np.testing.assert_allclose(y_penalised, y, rtol=1e-13)
        np.testing.assert_allclose(log_det - log_det_penalised, cost, rtol=1e-10)
        assert cost > 0.01


def test_the_gradient_of_penalties_is_that_of_finite_differences(x64):
    flow = in_training(ContinuousFlow(trained_field(), training=Training(num_steps=4, penalties=PENALTIES)), KEY)
    params, static = eqx.partition(flow, eqx.is_inexact_array)

    def loss(scale):
        moved = jax.tree.map(lambda p: p * scale, params)
        return eqx.combine(moved, static).inverse_and_log_det(jnp.asarray(X))[1]

    compute = quick_to_compile(lambda scale: jax.value_and_grad(loss)(scale))
    (up, _), (_, slope), (down, _) = (compute(jnp.asarray(scale)) for scale in (1 + 1e-5, 1.0, 1 - 1e-5))
    expected = (up - down) / 2e-5
    # the second order of the differences, and rounding over the step
    np.testing.assert_allclose(slope, expected, rtol=1e-7, atol=1e-9)
    assert abs(expected) > 0.01


def test_training_has_its_own_solver_and_divergence():
    training = Training(num_steps=5, solver=diffrax.Heun(), divergence=Hutchinson(KEY), penalties=Energies())
    flow = ContinuousFlow(trained_field(), adjoint=diffrax.BacksolveAdjoint(), training=training)
    coarse = in_training(flow, KEY)
    assert isinstance(coarse.ode.solver, diffrax.Heun)
    assert isinstance(coarse.ode.adjoint, diffrax.BacksolveAdjoint)
    assert isinstance(coarse.ode.stepsize_controller, diffrax.ConstantStepSize)
    assert isinstance(coarse.divergence, Hutchinson)  # and by default they are penalised
    assert isinstance(in_training(ContinuousFlow(flow.field), KEY), Penalised)
    assert quick_to_compile(num_evaluations)(coarse, jnp.asarray(X, "float32")) == 10
    solver_only = with_training_solver(flow)
    assert isinstance(solver_only.divergence, Exact)
    assert isinstance(solver_only.ode.solver, diffrax.Heun)
    # the flow itself is as it was
    assert isinstance(flow.ode.solver, diffrax.Tsit5)
    assert eqx.tree_equal(coarse.field, flow.field)


def test_flows_within_other_bijections_are_found():
    """In chains, frozen, inverted and stacked, where every layer has its own."""

    def layer(key):
        return ContinuousFlow(trained_field(scale=0.1), divergence=Hutchinson(key), training=Training(num_steps=32))

    stack = Scan(eqx.filter_vmap(layer)(jax.random.split(KEY, 2)))
    whole = Chain([Invert(layer(KEY)), stack, Frozen(Affine(jnp.zeros(DIM), 2.0))])
    coarse = in_training(whole, KEY)
    assert len(continuous_flows(whole)) == 2
    flows = continuous_flows(coarse)
    assert [type(flow.ode.stepsize_controller).__name__ for flow in flows] == 2 * ["ConstantStepSize"]
    seeds = np.concatenate([np.reshape(flow.divergence.noise.seed, (-1, 2)) for flow in flows])
    old = np.concatenate([np.reshape(flow.divergence.noise.seed, (-1, 2)) for flow in continuous_flows(whole)])
    assert seeds.shape == old.shape == (3, 2)
    assert len({tuple(seed) for seed in (*seeds, *old)}) == 6
    x = jnp.asarray(X, "float32")
    y, log_det = quick_to_compile(coarse.transform_and_log_det)(x)
    expected, _ = quick_to_compile(whole.transform_and_log_det)(x)
    np.testing.assert_allclose(y, expected, atol=1e-3)  # steps of third order, and two tolerances of 1e-5
    assert np.isfinite(log_det)


def test_bijections_without_solver_or_probes_stay_as_they_are():
    plain = Chain([Affine(jnp.zeros(DIM), 2.0)])
    assert eqx.tree_equal(in_training(plain, KEY), plain)


def test_more_steps():
    """Twice as many, up to 256, and the structure that a compiled function sees is the same."""
    flow = ContinuousFlow(trained_field(), training=Training(num_steps=100))
    steps = []
    for _ in range(3):
        more = with_more_steps(flow)
        assert jax.tree.structure(more) == jax.tree.structure(flow)
        flow = more
        steps.append(int(flow.training.num_steps))
    assert steps == [200, 256, 256]


@pytest.mark.parametrize("num_steps", [0, 257])
def test_errors(num_steps):
    with pytest.raises(ValueError, match=f"num_steps expected from 1 to 256, got {num_steps}"):
        Training(num_steps=num_steps)
