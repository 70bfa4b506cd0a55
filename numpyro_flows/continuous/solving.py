"""Solution of ordinary differential equations by diffrax, with errors that name the cause."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, PyTree

from numpyro_flows.arguments import require_instance

_LEAST_SINGLE = 1e-6  # smallest error of a step that exceeds rounding in single precision
_SHORTEST_STEP = 1e-6  # of the adaptive controller, as a share of the unit of time: the limit of single precision
Rate = Callable[[Any, PyTree, PyTree], PyTree]
"""`d state / dt` of time, state and arguments."""


class ODESolver(eqx.Module):
    """How an equation is solved: diffrax's solver, step size controller and adjoint, chosen independently.

    Args:
        solver: a diffrax solver.
        stepsize_controller: a diffrax controller. `ConstantStepSize` takes `num_steps` steps.
        adjoint: a diffrax adjoint, which computes gradients of the solution.
        max_steps: maximum number of steps.
        num_steps: number of steps of constant size; None with other controllers.
        raises: whether a failure raises an error. Otherwise its results are NaN, so that a training step can be
            skipped.

    Raises:
        ValueError: if `num_steps` is given without `ConstantStepSize`, or missing with it, or exceeds `max_steps`.
    """

    solver: diffrax.AbstractSolver
    stepsize_controller: diffrax.AbstractStepSizeController
    adjoint: diffrax.AbstractAdjoint
    num_steps: Int[Array, "..."] | None
    max_steps: int = eqx.field(static=True)
    raises: bool = eqx.field(static=True)

    def __init__(
        self,
        solver: diffrax.AbstractSolver,
        stepsize_controller: diffrax.AbstractStepSizeController,
        adjoint: diffrax.AbstractAdjoint,
        *,
        max_steps: int,
        num_steps: int | Int[Array, "..."] | None = None,
        raises: bool = True,
    ):
        require_instance(diffrax.AbstractSolver, "diffrax.Tsit5()", solver=solver)
        require_instance(
            diffrax.AbstractStepSizeController, "diffrax.PIDController(...)", stepsize_controller=stepsize_controller
        )
        require_instance(diffrax.AbstractAdjoint, "diffrax.RecursiveCheckpointAdjoint()", adjoint=adjoint)
        is_constant = isinstance(stepsize_controller, diffrax.ConstantStepSize)
        if is_constant != (num_steps is not None):
            raise ValueError(
                f"expected num_steps with ConstantStepSize and only with it, got num_steps={num_steps} and "
                f"{type(stepsize_controller).__name__}"
            )
        if isinstance(num_steps, int) and not 1 <= num_steps <= max_steps:
            raise ValueError(f"num_steps expected from 1 to max_steps={max_steps}, got {num_steps}")
        self.solver, self.stepsize_controller, self.adjoint = solver, stepsize_controller, adjoint
        self.num_steps = None if num_steps is None else jnp.asarray(num_steps)
        self.max_steps, self.raises = max_steps, raises

    def __call__(
        self, rate: Rate, state: PyTree, interval: tuple[float, float], args: PyTree, times: Array | None = None
    ) -> tuple[PyTree, Int[Array, ""]]:
        """The state at the end of the interval, or at each of `times`, and the number of steps taken.

        If the state at the start is not finite, the result is NaN, and this is not a failure.
        """
        leaves = jax.tree.leaves(state)
        dtype = jnp.result_type(*leaves)
        usable = jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
        start, end = (jnp.asarray(time, dtype) for time in interval)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(rate),
            self.solver,
            start,
            end,
            None if self.num_steps is None else (end - start) / self.num_steps.astype(dtype),
            jax.tree.map(lambda leaf: jnp.where(usable, leaf, jnp.zeros_like(leaf)), state),
            args=args,
            saveat=diffrax.SaveAt(t1=True) if times is None else diffrax.SaveAt(ts=times),
            stepsize_controller=self.stepsize_controller,
            adjoint=self.adjoint,
            max_steps=self.max_steps,
            throw=False,
        )
        ends = solution.ys if times is not None else jax.tree.map(lambda leaf: leaf[0], solution.ys)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(ends)]).all()
        solved = (solution.result == diffrax.RESULTS.successful) & finite
        if self.raises:
            ends = eqx.error_if(ends, usable & ~solved, self._failure())
        ends = jax.tree.map(lambda leaf: jnp.where(usable & solved, leaf, jnp.nan), ends)
        return ends, solution.stats["num_steps"]

    def evaluations(self, num_steps: Int[ArrayLike, "..."]) -> Int[Array, "..."]:
        """Number of evaluations of the field in so many steps."""
        tableau = getattr(self.solver, "tableau", None)
        if tableau is None:
            raise ValueError(f"expected a Runge-Kutta solver to count evaluations of, got {type(self.solver).__name__}")
        return num_steps * (tableau.num_stages - tableau.fsal) + tableau.fsal

    def _failure(self) -> str:
        controller = self.stepsize_controller
        name, tolerance = type(self.solver).__name__, f"step size controller {type(controller).__name__}"
        if isinstance(controller, diffrax.PIDController):
            tolerance = f"rtol={controller.rtol} and atol={controller.atol}"
        return (
            f"the ODE solver {name} with {tolerance} did not reach the end within max_steps={self.max_steps}, or met "
            "values that are not finite: the field is too stiff there, or broken"
        )


def adaptive(tolerance: float) -> diffrax.PIDController:
    """A controller for an error of about `tolerance (1 + |state|)` at the end.

    Errors of steps add up, and a flow stretches them. So one step may have a tenth of that error, but in single
    precision no less than 1e-6, where rounding begins. If steps become too short, the solver fails.

    Raises:
        ValueError: if `tolerance` is not positive.

    Example:
        >>> import jax
        >>> from numpyro_flows.continuous import ContinuousFlow, MLPField, adaptive
        >>> flow = ContinuousFlow(MLPField(jax.random.key(0), 2), stepsize_controller=adaptive(1e-2))
        >>> flow.ode.stepsize_controller.rtol
        0.001
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance expected a positive number, got {tolerance}")
    least = 0.0 if jnp.result_type(float) == np.float64 else _LEAST_SINGLE
    of_a_step = max(tolerance / 10, least)
    return diffrax.PIDController(rtol=of_a_step, atol=of_a_step, dtmin=_SHORTEST_STEP, force_dtmin=False)
