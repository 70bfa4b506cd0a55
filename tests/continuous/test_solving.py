"""Failures of solvers name themselves, events that are not finite are none, and evaluations are counted."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from scipy.linalg import expm

from numpyro_flows.continuous import (
    AbstractField,
    ContinuousFlow,
    Energies,
    Training,
    adaptive,
    in_training,
    num_evaluations,
)
from numpyro_flows.continuous.training_form import without_errors
from tests.continuous.common import KEY, linear_field

STIFF = [[0.0, 60.0], [-60.0, 0.0]]


class Broken(AbstractField):
    """`weight x`, but not a number beyond `x[0] = 1`."""

    weight: Array
    dim: int = eqx.field(static=True, default=2)
    cond_dim: int | None = eqx.field(static=True, default=None)

    def __call__(self, t, x, condition=None):
        return jnp.where(x[0] > 1, jnp.nan, self.weight @ x)


def by_tolerance(weight) -> ContinuousFlow:
    """All fields of this kind share what they compile."""
    return ContinuousFlow(Broken(weight=jnp.asarray(weight)), stepsize_controller=adaptive(1e-4), max_steps=16)


def in_steps() -> ContinuousFlow:
    return ContinuousFlow(
        Broken(weight=jnp.zeros((2, 2))),
        solver=diffrax.Heun(),
        stepsize_controller=diffrax.ConstantStepSize(),
        num_steps=4,
        max_steps=32,
    )


OUTSIDE = np.array([2.0, 1.0], "float32")  # where the field is no number
FAILURES = {
    "too many steps": (by_tolerance(STIFF), 0.25 * OUTSIDE),
    "not finite": (by_tolerance(np.zeros((2, 2))), OUTSIDE),
}


def with_another(event) -> np.ndarray:
    """A batch of an event that fails and of one that stays where it is."""
    return np.stack([event, np.zeros(2, "float32")])


@eqx.filter_jit
def transforms(flow, events):
    return jax.vmap(flow.transform_and_log_det)(events)


@eqx.filter_jit
def inverses(flow, events):
    return jax.vmap(flow.inverse_and_log_det)(events)


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_an_error_that_names_solver_tolerance_and_steps(name):
    """Also within jit, and where one event of a batch fails."""
    flow, event = FAILURES[name]
    named = "the ODE solver Tsit5 with rtol=1e-05 and atol=1e-05 .* max_steps=16, or met values that .*too stiff"
    with pytest.raises(RuntimeError, match=named):
        inverses(flow, with_another(event))


def test_a_failure_is_an_error_without_jit_and_names_steps_of_one_size():
    with pytest.raises(RuntimeError, match=r"Heun with step size controller ConstantStepSize .* max_steps=32"):
        in_steps().transform(OUTSIDE)


# more to compile: the other direction, and steps of one size
@pytest.mark.parametrize(
    ("make", "move"),
    [
        (lambda: by_tolerance(0.1 * np.eye(2)), inverses),
        pytest.param(lambda: by_tolerance(0.1 * np.eye(2)), transforms, marks=pytest.mark.slow),
        pytest.param(in_steps, inverses, marks=pytest.mark.slow),
        pytest.param(in_steps, transforms, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_event_that_is_not_finite_gives_nan_and_no_error(make, move, bad):
    ends, log_dets = move(make(), np.array([[0.5, bad], [0.5, 0.25]], "float32"))
    assert np.isnan(ends[0]).all()
    assert np.isnan(log_dets[0])
    assert np.isfinite(ends[1]).all()
    assert np.isfinite(log_dets[1])


@pytest.mark.parametrize("name", FAILURES)
def test_without_errors_only_the_event_that_fails_is_nan(name):
    flow, event = FAILURES[name]
    ends, log_dets = inverses(without_errors(flow), with_another(event))
    assert np.isnan(ends[0]).all()
    assert np.isnan(log_dets[0])
    np.testing.assert_array_equal(ends[1], 0.0)
    assert np.isfinite(log_dets[1])


def test_in_training_a_failure_is_nan():
    training = Training(num_steps=2, solver=diffrax.Euler(), penalties=Energies())
    flow = in_training(ContinuousFlow(Broken(weight=jnp.zeros((2, 2))), training=training), KEY)
    ends, log_dets = inverses(flow, with_another(OUTSIDE))
    np.testing.assert_array_equal(np.isnan(log_dets), [True, False])
    np.testing.assert_array_equal(np.isnan(ends).all(1), [True, False])


@pytest.mark.parametrize(
    ("solver", "num_steps", "expected"),
    [
        (diffrax.Heun(), 5, 10),
        (diffrax.Tsit5(), 5, 31),  # its last stage is the first of the next step
        (diffrax.Bosh3(), 37, 112),
        (diffrax.Dopri8(), 2, 27),
    ],
    ids=lambda value: type(value).__name__,
)
def test_evaluations_are_counted(solver, num_steps, expected):
    controller = diffrax.ConstantStepSize()
    flow = ContinuousFlow(linear_field(STIFF), solver=solver, stepsize_controller=controller, num_steps=num_steps)
    assert flow.ode.evaluations(np.int32(num_steps)) == expected


@pytest.mark.slow
def test_a_tighter_tolerance_takes_more_evaluations():
    flow = ContinuousFlow(linear_field([[0.0, 3.0], [-3.0, 0.0]]))

    @eqx.filter_jit
    def count(error_of_a_step):
        controller = diffrax.PIDController(rtol=error_of_a_step, atol=error_of_a_step)
        tree = eqx.tree_at(lambda f: f.ode.stepsize_controller, flow, controller)
        return num_evaluations(tree, jnp.ones(2))

    # of fifth order: steps shorter by 1,000^(1/5), at most
    assert 2 * count(jnp.asarray(1e-3)) < count(jnp.asarray(1e-6))


def test_only_evaluations_of_runge_kutta_solvers_are_counted():
    flow = ContinuousFlow(
        linear_field(STIFF), solver=diffrax.Euler(), stepsize_controller=diffrax.ConstantStepSize(), num_steps=2
    )
    with pytest.raises(ValueError, match="expected a Runge-Kutta solver to count evaluations of, got Euler"):
        jax.eval_shape(lambda x: num_evaluations(flow, x), jnp.ones(2))


def test_a_trajectory_is_the_solution_at_its_times(x64):
    """Of a linear field, whose solution is a matrix exponential."""
    matrix, bias = np.array([[0.3, -2.0], [1.0, -0.4]]), np.array([0.5, 1.0])
    flow = ContinuousFlow(linear_field(matrix, bias), stepsize_controller=adaptive(1e-9))
    x = np.array([1.0, -0.5])
    homogeneous = np.block([[matrix, bias[:, None]], [np.zeros((1, 3))]])
    exact = np.stack([(expm(t * homogeneous) @ np.append(x, 1.0))[:2] for t in np.linspace(0, 1, 11)])
    path = eqx.filter_jit(lambda x: flow.trajectory(x, num_times=11))(x)
    assert path.x.shape == (11, 2)
    np.testing.assert_allclose(path.times, np.linspace(0, 1, 11), rtol=1e-15)
    np.testing.assert_array_equal(path.x[0], x)
    np.testing.assert_allclose(path.x[-1], exact[-1], rtol=1e-7)
    np.testing.assert_allclose(path.log_det, path.times * np.trace(matrix), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(path.divergence, np.trace(matrix), rtol=1e-12)
    # between the solver's steps values are interpolated, to fourth order
    np.testing.assert_allclose(path.x, exact, atol=1e-6)
