"""What training makes of a flow: energies and their weights, coarse solvers, new probes; and what it leaves alone."""

from typing import Any

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
)
from numpyro_flows.continuous.training_form import Penalised, continuous_flows, with_more_steps, with_training_solver
from tests.bijections.common import made
from tests.continuous.common import COARSE, DIM, KEY, X, linear_field, trained_field

TIGHT = 1e-10
MATRIX = np.array([[0.3, -1.0, 0.0], [0.8, -0.2, 0.1], [0.0, 0.5, 0.4]])
BIAS = np.array([0.5, 0.0, -1.0])


@eqx.filter_jit
def energies(flow, x, interval):
    """The interval an array, so that what is compiled goes either way."""
    return flow.move(x, None, interval, with_energies=True)[2]


def test_energies_are_integrals_along_the_trajectory(x64):
    """Of a linear field against quadrature by SciPy, forward and back."""
    flow = ContinuousFlow(linear_field(MATRIX, BIAS), stepsize_controller=adaptive(TIGHT))
    homogeneous = np.block([[MATRIX, BIAS[:, None]], [np.zeros((1, DIM + 1))]])

    def place(t):
        return expm(t * homogeneous) @ np.append(X, 1.0)

    def speed(t):
        return np.linalg.norm((homogeneous @ place(t))[:DIM])

    kinetic = quad(lambda t: speed(t) ** 2, 0, 1, epsabs=1e-12)[0]
    expected: Any = Energies(kinetic, (MATRIX**2).sum(), quad(speed, 0, 1, epsabs=1e-12)[0])
    for start, interval in ((X, (0.0, 1.0)), (place(1.0)[:DIM], (1.0, 0.0))):
        np.testing.assert_allclose(energies(flow, jnp.asarray(start), jnp.asarray(interval)), expected, rtol=1e-8)


def test_energies_of_a_constant_field_and_their_gradients(x64):
    """`|b|^2` and `|b|`, of slopes `2 b` and `b / |b|`; at rest of slope 0."""
    x = jnp.asarray(X)

    @eqx.filter_jit
    def slopes(bias):
        def values(bias):
            # any solver is exact
            flow = ContinuousFlow(linear_field(np.zeros((DIM, DIM)), bias), adjoint=diffrax.ForwardMode(), **COARSE)
            got = flow.move(x, None, (0.0, 1.0), with_energies=True)[2]
            return got, got

        return jax.jacfwd(values, has_aux=True)(bias)

    size = np.linalg.norm(BIAS)
    found, got = slopes(jnp.asarray(BIAS))
    np.testing.assert_allclose(got, (size**2, 0.0, size), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.kinetic, 2 * BIAS, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.path_length, BIAS / size, rtol=1e-12, atol=1e-12)
    for slope in slopes(jnp.zeros(DIM))[0]:
        np.testing.assert_array_equal(slope, 0.0)


PENALTIES = Energies(0.5, 0.25, 2.0)


def coarse_flow(penalties: Energies, adjoint: diffrax.AbstractAdjoint | None = None):
    """As training sees it, by four steps of Euler."""
    training = Training(num_steps=4, solver=diffrax.Euler(), penalties=penalties)
    return in_training(ContinuousFlow(trained_field(), adjoint=adjoint, training=training), KEY)


@pytest.mark.slow
def test_penalties_are_taken_off_log_determinants(x64):
    """In both directions, with weights, of the energies in the training's own steps."""
    coarse, penalised = coarse_flow(Energies()), coarse_flow(PENALTIES)

    @eqx.filter_jit
    def both(x, intervals):
        plain = jax.vmap(lambda interval: coarse.move(x, None, interval, with_energies=True))(intervals)
        return plain, (penalised.transform_and_log_det(x), penalised.inverse_and_log_det(x))

    (y, log_det, energies), penalised_ends = both(jnp.asarray(X), jnp.asarray([[0.0, 1.0], [1.0, 0.0]]))
    for i, (y_penalised, log_det_penalised) in enumerate(penalised_ends):
        cost = sum(weight * energy[i] for weight, energy in zip(PENALTIES, map(np.asarray, energies)))
        np.testing.assert_allclose(y_penalised, np.asarray(y)[i], rtol=1e-13)
        np.testing.assert_allclose(np.asarray(log_det)[i] - log_det_penalised, cost, rtol=1e-10)
        assert cost > 0.01


@pytest.mark.parametrize(
    "adjoint", [diffrax.ForwardMode(), pytest.param(diffrax.RecursiveCheckpointAdjoint(), marks=pytest.mark.slow)]
)
def test_the_gradient_of_penalties_is_that_of_finite_differences(adjoint, x64):
    params, static = eqx.partition(coarse_flow(PENALTIES, adjoint), eqx.is_inexact_array)
    x = jnp.asarray(X)
    gradient = jax.jacfwd if isinstance(adjoint, diffrax.ForwardMode) else jax.grad

    def loss(scale):
        moved = jax.tree.map(lambda p: p * scale, params)
        value = eqx.combine(moved, static).inverse_and_log_det(x)[1]
        return value, value

    compute = eqx.filter_jit(lambda scale: gradient(loss, has_aux=True)(scale))
    (_, up), (slope, _), (_, down) = (compute(jnp.asarray(scale)) for scale in (1 + 1e-5, 1.0, 1 - 1e-5))
    expected = (up - down) / 2e-5
    # the second order of the differences, and rounding over the step
    np.testing.assert_allclose(slope, expected, rtol=1e-7, atol=1e-9)
    assert abs(expected) > 0.01


def test_training_has_its_own_solver_and_divergence():
    training = Training(num_steps=5, solver=diffrax.Heun(), divergence=Hutchinson(KEY), penalties=Energies())
    flow = ContinuousFlow(linear_field(MATRIX), adjoint=diffrax.BacksolveAdjoint(), training=training)
    coarse = in_training(flow, KEY)
    assert isinstance(coarse.ode.solver, diffrax.Heun)
    assert isinstance(coarse.ode.adjoint, diffrax.BacksolveAdjoint)
    assert isinstance(coarse.ode.stepsize_controller, diffrax.ConstantStepSize)
    assert isinstance(coarse.divergence, Hutchinson)  # and by default they are penalised
    assert isinstance(in_training(ContinuousFlow(flow.field), KEY), Penalised)
    assert coarse.ode.num_steps == 5
    solver_only = with_training_solver(flow)
    assert isinstance(solver_only.divergence, Exact)
    assert isinstance(solver_only.ode.solver, diffrax.Heun)
    # the flow itself is as it was
    assert isinstance(flow.ode.solver, diffrax.Tsit5)
    assert eqx.tree_equal(coarse.field, flow.field)


def seeds_of(flows: list[Any]) -> np.ndarray:
    return np.concatenate([np.reshape(flow.divergence.noise.seed, (-1, 2)) for flow in flows])


WEIGHTS = (0.3 * np.random.default_rng(0).normal(size=(3, DIM, DIM))).astype(np.float32)


def flows_within_others():
    """In chains, frozen, inverted and stacked, where every layer has its own seed."""

    def layer(weight, key):
        training = Training(num_steps=32, penalties=Energies())
        return ContinuousFlow(linear_field(weight), divergence=Hutchinson(key), training=training)

    stack = Scan(eqx.filter_vmap(layer)(WEIGHTS[1:], jax.random.split(KEY, 2)))
    return Chain([Invert(layer(WEIGHTS[0], KEY)), stack, Frozen(Affine(jnp.zeros(DIM), 2.0))])


def test_flows_within_other_bijections_are_found():
    whole = made(flows_within_others)
    coarse = in_training(whole, KEY)
    assert len(continuous_flows(whole)) == 2
    flows = continuous_flows(coarse)
    assert [type(flow.ode.stepsize_controller).__name__ for flow in flows] == 2 * ["ConstantStepSize"]
    seeds, old = seeds_of(flows), seeds_of(continuous_flows(whole))
    assert seeds.shape == old.shape == (3, 2)
    assert len({tuple(seed) for seed in (*seeds, *old)}) == 6


@pytest.mark.slow
def test_flows_within_other_bijections_stay_what_they_are():
    coarse = in_training(made(flows_within_others), KEY)
    y, log_det = eqx.filter_jit(coarse.transform_and_log_det)(jnp.asarray(X, "float32"))
    expected = 2 * expm(WEIGHTS[2]) @ expm(WEIGHTS[1]) @ expm(-WEIGHTS[0]) @ X
    np.testing.assert_allclose(y, expected, rtol=1e-4)  # 32 steps of third order
    assert np.isfinite(log_det)


def test_bijections_without_solver_or_probes_stay_as_they_are():
    plain = Chain([Affine(jnp.zeros(DIM), 2.0)])
    assert eqx.tree_equal(in_training(plain, KEY), plain)


def test_more_steps():
    """Twice as many, up to 256, and the structure that a compiled function sees is the same."""
    flow = ContinuousFlow(linear_field(MATRIX), training=Training(num_steps=100))
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
