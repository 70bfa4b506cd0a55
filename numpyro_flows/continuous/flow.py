"""Continuous flows: bijections that follow an ordinary differential equation."""

from typing import Any, NamedTuple, override

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Scalar

from numpyro_flows.arguments import require_instance, require_two_times
from numpyro_flows.bijections.base import AbstractShaped, checked
from numpyro_flows.bijections.compose import held_fixed
from numpyro_flows.bijections.noise import AbstractEstimator
from numpyro_flows.bijections.sweeps import Vector
from numpyro_flows.continuous.divergence import AbstractDivergence, Exact, Probes, Velocity
from numpyro_flows.continuous.fields import AbstractField
from numpyro_flows.continuous.solving import ODESolver, adaptive
from numpyro_flows.continuous.training_settings import Energies, Training

_MAX_STEPS = 4096


class Trajectory(NamedTuple):
    """One event on its trajectory from the base to the target.

    Attributes:
        times: times of the points, `(times,)`.
        x: position at these times, `(times, *shape)`.
        log_det: `log |det dx(t)/dx(start)|`, `(times,)`.
        divergence: divergence of the field at `x`, `(times,)`; it is the slope of `log_det`.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows.continuous import ContinuousFlow, LinearField
        >>> trajectory = ContinuousFlow(LinearField(2)).trajectory(jax.numpy.ones(2), num_times=5)
        >>> trajectory.times.tolist(), trajectory.x.shape
        ([0.0, 0.25, 0.5, 0.75, 1.0], (5, 2))
    """

    times: Float[Array, " times"]
    x: Float[Array, "times dim"]
    log_det: Float[Array, " times"]
    divergence: Float[Array, " times"]


class ContinuousFlow(AbstractShaped, AbstractEstimator):
    """`y = x(1)` for `dx/dt = v(t, x | condition)`, `x(0) = x`; `log |det dy/dx| = int_0^1 tr(dv/dx) dt`.

    diffrax integrates the state and the log-determinant together, in either direction. Both directions are accurate to
    the tolerance of the step size controller. The log-determinant is exact up to this tolerance, unless `divergence` is
    an estimate. During training, `training` replaces the divergence, solver and controller.

    Args:
        field: the vector field.
        divergence: method for the log-determinant.
        solver: a diffrax solver; `Tsit5` by default.
        stepsize_controller: a diffrax controller; by default `adaptive(1e-4)`, whose steps have errors below 1e-5.
        adjoint: a diffrax adjoint. The default, `RecursiveCheckpointAdjoint`, was the fastest for reverse mode and used
            the least memory when measured. `BacksolveAdjoint` computes gradients as solutions of an equation.
            `DirectAdjoint` supports both modes of differentiation, and `ForwardMode` the forward mode.
        interval: times of the base and the target.
        max_steps: maximum number of solver steps.
        num_steps: number of solver steps if the controller is diffrax's `ConstantStepSize`.
        training: how the equation is solved in training.

    Raises:
        ValueError: if the interval is empty or not finite, or `num_steps` does not fit the controller.
        RuntimeError: (from `eqx.error_if`, also within jit) if the solver fails; it names solver, tolerance and steps.

    Source: Chen, Rubanova, Bettencourt, Duvenaud 2018, arXiv 1806.07366; FFJORD, Grathwohl, Chen, Bettencourt,
        Sutskever, Duvenaud 2019, arXiv 1810.01367.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows.continuous import ContinuousFlow, MLPField
        >>> flow = ContinuousFlow(MLPField(jax.random.key(0), 2))
        >>> flow.transform(jax.numpy.ones(2)).shape
        (2,)
    """

    field: AbstractField
    divergence: AbstractDivergence
    ode: ODESolver
    training: Training
    interval: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self,
        field: AbstractField,
        *,
        divergence: AbstractDivergence | None = None,
        solver: diffrax.AbstractSolver | None = None,
        stepsize_controller: diffrax.AbstractStepSizeController | None = None,
        adjoint: diffrax.AbstractAdjoint | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
        max_steps: int = _MAX_STEPS,
        num_steps: int | None = None,
        training: Training | None = None,
    ):
        require_two_times(interval=interval)
        require_instance(AbstractField, "continuous.MLPField(key, dim)", field=field)
        self.field = field
        self.divergence = Exact() if divergence is None else divergence
        self.ode = ODESolver(
            diffrax.Tsit5() if solver is None else solver,
            adaptive(1e-4) if stepsize_controller is None else stepsize_controller,
            diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
            max_steps=max_steps,
            num_steps=num_steps,
        )
        self.training = Training() if training is None else training
        require_instance(AbstractDivergence, "continuous.Exact()", divergence=self.divergence)
        require_instance(Training, "continuous.Training()", training=self.training)
        self.interval = (float(interval[0]), float(interval[1]))
        self.shape, self.cond_shape = (field.dim,), None if field.cond_dim is None else (field.cond_dim,)

    @property
    @override
    def estimate(self) -> str:
        return self.divergence.estimate

    @property
    def backwards(self) -> tuple[float, float]:
        """The interval from the target's time to the base's."""
        return self.interval[1], self.interval[0]

    def _transform(self, x: Vector, condition: Array | None) -> tuple[Array, Scalar]:
        return self.move(x, condition, self.interval)[:2]

    def _inverse(self, y: Vector, condition: Array | None) -> tuple[Array, Scalar]:
        return self.move(y, condition, self.backwards)[:2]

    def move(
        self, x: Vector, condition: Array | None, interval: tuple[float, float], *, with_energies: bool = False
    ) -> tuple[Array, Scalar, Energies]:
        """The position of `x` at the end of the interval, the log-determinant, and the energies."""
        (moved, log_det, *energies), _ = self.solve(x, condition, interval, with_energies=with_energies)
        # an energy is positive in either direction
        return moved, log_det, jax.tree.map(jnp.abs, energies[0]) if energies else Energies()

    def trajectory(self, x: ArrayLike, condition: ArrayLike | None = None, *, num_times: int = 101) -> Trajectory:
        """The trajectory of one event `x` of the base to the target, at evenly spaced times."""
        x, condition = checked(self, x, condition)
        times = jnp.linspace(*self.interval, num_times, dtype=x.dtype)
        (path, log_det), _ = self.solve(x, condition, self.interval, times)
        args = (self.field, condition, self.divergence.probes(x))
        divergence = jax.vmap(lambda t, x: self._velocity(t, x, args).divergence)(times, path)
        return Trajectory(times, path, log_det, divergence)

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        """The three results; gradients pass only through `y`: through the score they would need third derivatives.

        Along a trajectory the score `s` of the density that is carried along follows
        `ds/dt = -(dv/dx)^T s - grad_x div v`.
        """
        y, _ = self.ode(lambda t, x, args: args[0](t, x, args[1]), x, self.interval, (self.field, condition))
        held, x, score, condition = held_fixed((self, x, score, condition))

        def rate(t: Scalar, state: Any, args: Any) -> Any:
            def velocity(x: Array) -> tuple[Array, Scalar]:
                found = held._velocity(t, x, args)
                return found.value, found.divergence

            (value, divergence), vjp = jax.vjp(velocity, state[0])
            return value, divergence, -vjp((state[2], jnp.ones_like(divergence)))[0]

        args = (held.field, condition, held.divergence.probes(x))
        (_, log_det, score), _ = held.ode(rate, (x, jnp.zeros_like(x, shape=()), score), self.interval, args)
        return y, log_det, score

    def solve(
        self,
        x: Vector,
        condition: Array | None,
        interval: tuple[float, float],
        times: Array | None = None,
        *,
        with_energies: bool = False,
    ) -> tuple[Any, Int[Array, ""]]:
        """State, log-determinant and, where wanted, energies at the end or at `times`; and the number of steps."""

        def rate(t: Scalar, state: Any, args: Any) -> Any:
            found = self._velocity(t, state[0], args)
            if not with_energies:
                return found.value, found.divergence
            squared = (found.value**2).sum()
            speed = jnp.sqrt(squared + jnp.finfo(squared.dtype).tiny)  # of finite slope at rest
            return found.value, found.divergence, Energies(squared, found.squared_norm, speed)

        zero = jnp.zeros_like(x, shape=())
        state = (x, zero, Energies(zero, zero, zero)) if with_energies else (x, zero)
        # parameters are passed as arguments, where every adjoint finds them
        return self.ode(rate, state, interval, (self.field, condition, self.divergence.probes(x)), times)

    def _velocity(self, t: Scalar, x: Vector, args: tuple[AbstractField, Array | None, Probes]) -> Velocity:
        field, condition, probes = args
        return self.divergence(field, t, x, condition, probes)
