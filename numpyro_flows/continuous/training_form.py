"""The form of continuous flows in training: coarse solvers, new probes, penalties, no errors."""

import dataclasses
from collections.abc import Callable
from typing import Any, override

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PRNGKeyArray, Scalar

from numpyro_flows.arguments import require_key
from numpyro_flows.bijections.base import AbstractBijection, AbstractShaped
from numpyro_flows.bijections.noise import reseeded
from numpyro_flows.bijections.sweeps import Vector
from numpyro_flows.continuous.flow import ContinuousFlow
from numpyro_flows.continuous.solving import ODESolver
from numpyro_flows.continuous.training_settings import MAX_TRAINING_STEPS, Energies


class Penalised(AbstractShaped):
    """A continuous flow with penalties subtracted from its log-determinants, so that every likelihood includes them."""

    flow: ContinuousFlow
    penalties: Energies = eqx.field(static=True)

    def __init__(self, flow: ContinuousFlow, penalties: Energies):
        self.flow, self.penalties = flow, penalties
        self.shape, self.cond_shape = flow.shape, flow.cond_shape

    def _transform(self, x: Vector, condition: Array | None) -> tuple[Array, Scalar]:
        return self._move(x, condition, self.flow.interval)

    def _inverse(self, y: Vector, condition: Array | None) -> tuple[Array, Scalar]:
        return self._move(y, condition, self.flow.backwards)

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        """The flow's own result: a path gradient contains no log-determinant, and so no penalty."""
        return self.flow._transform_with_score(x, score, condition)

    def _move(self, x: Vector, condition: Array | None, interval: tuple[float, float]) -> tuple[Array, Scalar]:
        moved, log_det, energies = self.flow.move(x, condition, interval, with_energies=True)
        paid = [weight * energy for weight, energy in zip(self.penalties, energies)]
        return moved, log_det - jnp.stack(paid).sum()


def in_training[T](bijection: T, key: PRNGKeyArray) -> T:
    """`bijection` as one training step sees it: every continuous flow has its `training` form, and new probes.

    Bijections without a solver or probes stay as they are. A failing solver gives NaN, so that the step is skipped.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows.continuous import ContinuousFlow, LinearField, in_training
        >>> flow = in_training(ContinuousFlow(LinearField(2)), jax.random.key(0))
        >>> flow.inverse(jax.numpy.array([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """
    require_key(key, "key")

    def coarse(flow: ContinuousFlow) -> AbstractBijection:
        divergence = flow.training.divergence
        if divergence is not None:
            flow = eqx.tree_at(lambda f: f.divergence, flow, divergence)
        flow = with_training_solver(flow)
        penalties = flow.training.penalties
        return Penalised(flow, penalties) if any(penalties) else flow

    return reseeded(_map(coarse, bijection), key)


def with_training_solver[T](bijection: T) -> T:
    """`bijection` with training's solver in every continuous flow, but its own divergence and no penalty."""

    def coarse(flow: ContinuousFlow) -> ContinuousFlow:
        training = flow.training
        solver = ODESolver(
            training.solver,
            diffrax.ConstantStepSize(),
            flow.ode.adjoint,
            max_steps=MAX_TRAINING_STEPS,
            num_steps=training.num_steps,
            raises=False,
        )
        return eqx.tree_at(lambda f: f.ode, flow, solver)

    return _map(coarse, bijection)


def without_errors[T](bijection: T) -> T:
    """`bijection` that returns NaN for an event whose solver fails, in place of an error."""

    def quiet(flow: ContinuousFlow) -> ContinuousFlow:
        return eqx.tree_at(lambda f: f.ode, flow, dataclasses.replace(flow.ode, raises=False))

    return _map(quiet, bijection)


class _Counting(AbstractShaped):
    """`flow` with log-determinants that are increased by the number of evaluations of the field."""

    flow: ContinuousFlow

    def __init__(self, flow: ContinuousFlow):
        self.flow, self.shape, self.cond_shape = flow, flow.shape, flow.cond_shape

    def _transform(self, x: Vector, condition: Array | None) -> tuple[Array, Scalar]:
        return self._move(x, condition, self.flow.interval)

    def _inverse(self, y: Vector, condition: Array | None) -> tuple[Array, Scalar]:
        return self._move(y, condition, self.flow.backwards)

    def _move(self, x: Vector, condition: Array | None, interval: tuple[float, float]) -> tuple[Array, Scalar]:
        (moved, log_det), num_steps = self.flow.solve(x, condition, interval)
        return moved, log_det + self.flow.ode.evaluations(num_steps)


def num_evaluations(bijection: AbstractBijection, y: ArrayLike, condition: ArrayLike | None = None) -> Scalar:
    """Number of evaluations of fields for the density of one event `y`, in all continuous flows of `bijection`.

    Raises:
        ValueError: if the shape of `y` or `condition` is not the bijection's, or a solver is not a Runge-Kutta method.

    Example:
        >>> import diffrax, jax  # doctest: +SLOW
        >>> from numpyro_flows.continuous import ContinuousFlow, LinearField, num_evaluations
        >>> flow = ContinuousFlow(LinearField(2), stepsize_controller=diffrax.ConstantStepSize(), num_steps=4)
        >>> int(num_evaluations(flow, jax.numpy.ones(2)))  # 6 in a step of Tsit5, and one before
        25
    """
    counting = _map(_Counting, bijection)
    return counting.inverse_and_log_det(y, condition)[1] - bijection.inverse_and_log_det(y, condition)[1]


def continuous_flows(bijection: Any) -> list[ContinuousFlow]:
    """The continuous flows in `bijection`."""
    nodes = jax.tree.leaves(bijection, is_leaf=_is_continuous)
    return [node for node in nodes if _is_continuous(node)]


def with_more_steps[T](tree: T) -> T:
    """`tree` with twice the solver steps in training, up to their maximum."""

    def more(flow: ContinuousFlow) -> ContinuousFlow:
        steps = jnp.minimum(2 * flow.training.num_steps, MAX_TRAINING_STEPS).astype("int32")
        return eqx.tree_at(lambda f: f.training.num_steps, flow, steps)

    return _map(more, tree)


def _map[T](change: Callable[[ContinuousFlow], Any], tree: T) -> T:
    return jax.tree.map(lambda node: change(node) if _is_continuous(node) else node, tree, is_leaf=_is_continuous)


def _is_continuous(node: Any) -> bool:
    return isinstance(node, ContinuousFlow)
