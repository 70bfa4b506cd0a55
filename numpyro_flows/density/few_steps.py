"""Distillation of a fitted continuous flow into one that needs only a few evaluations of a field."""

import math
import time
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from numpyro_flows.arguments import require_counts, require_instance, require_key, require_numbers
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.bijections.compose import layers_of
from numpyro_flows.bijections.composition import Part
from numpyro_flows.continuous import ContinuousFlow, FewSteps
from numpyro_flows.continuous.training_form import continuous_flows
from numpyro_flows.density.result import Score
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.modeling.transforms import Condition, FlowTransform
from numpyro_flows.precision import full_precision
from numpyro_flows.training.checkpoint import Checkpoint
from numpyro_flows.training.loop import Round, run
from numpyro_flows.training.policies import Patience
from numpyro_flows.training.policies import Score as Loss
from numpyro_flows.training.seeds import Seeds
from numpyro_flows.training.state import State
from numpyro_flows.training.steps import TrainState, cosine_schedule, train_chunk
from numpyro_flows.training.watch import Watch

_NUM_HELD = 2_000  # held-out trajectories for the comparison
_BLOCK = 1_000  # trajectories solved at once
_BATCH, _ROUND = 256, 250
_LOG_DET_WEIGHT = 0.01  # weight of a nat, relative to a squared standard deviation of the base
_CLOSE = 0.1  # nats: above this average difference of log densities there is a warning


class FewStepsFit(NamedTuple):
    """How `few_steps` distilled a continuous flow; all errors are measured on fresh draws of the original flow.

    Attributes:
        losses: loss of each training step.
        kl: mean log density of the original flow minus that of the distilled one, in nats a row, with its standard
            error. If the distilled density integrates to 1, this estimates the Kullback-Leibler divergence.
        log_prob_error: mean absolute difference of the two log densities, in nats.
        round_trip_error: root mean square of `inverse(transform(x)) - x`, in standard deviations of the base.
        seconds: wall time of the original's trajectories, and of training with compilation.
        num_skipped: number of steps skipped because the loss or gradient was not finite.
        why: what ended the training, in a sentence.
        reason: what ended the training, in one or two words.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows import FlowDistribution, few_steps, flows
        >>> still = FlowDistribution(flows.ffjord(jax.random.key(0), 2))
        >>> few_steps(jax.random.key(1), still, num_training_steps=1, progress_bar=False).fit.log_prob_error < 1e-2
        True
    """

    losses: Float[np.ndarray, " steps"]
    kl: Score
    log_prob_error: float
    round_trip_error: float
    seconds: dict[str, float]
    num_skipped: int
    why: str
    reason: str

    @property
    def brief(self) -> str:
        """As a distribution's text shows it."""
        return f"log_prob_error={self.log_prob_error:.2g}, round_trip_error={self.round_trip_error:.2g}"

    def __eq__(self, other: object) -> bool:
        """As for `DensityFit`."""
        return isinstance(other, FewStepsFit) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(self.why)


class _Rows(NamedTuple):
    """Trajectories of the original: their two ends, the log-determinant from base to target, and conditions."""

    x: Array
    y: Array
    log_det: Array
    condition: Array | None


def few_steps(
    rng_key: PRNGKeyArray,
    flow: FlowDistribution,
    *,
    condition: Condition | None = None,
    num_steps: int = 4,
    num_draws: int = 20_000,
    num_training_steps: int = 5_000,
    learning_rate: float = 3e-3,
    progress_bar: bool = True,
) -> FlowDistribution:
    """Distil a continuous flow into one whose `log_prob` and `sample` evaluate a field `num_steps` times.

    The solver of `flow` runs once, on draws from its base. Then steps from the base to the target, and others back, are
    trained to reproduce these trajectories: their end points by squared distance, and their log-determinants by
    absolute difference. No data are needed. Each step has its own field, which starts as the field of `flow`.

    The result approximates `flow`, so `FlowVI` never certifies it as a guide. `fit` has the errors, and a warning is
    raised if the log densities differ by more than 0.1 nats on average. The log-determinants are exact for the steps,
    so `log_prob` integrates to 1 if the steps are one-to-one. Draws follow this density up to `fit.round_trip_error`.
    To train further, train `flow` and distil it again.

    Args:
        rng_key: random key, of either style.
        flow: a distribution with one `ContinuousFlow`, next to the base, such as `fit_density(..., flow=flows.ffjord)`.
        condition: conditions to train on, `(num, *cond_shape)` or a dict of arrays in the flow's format, for example
            those that the flow was fitted with. By default the flow's own condition.
        num_steps: number of evaluations of a field in each direction.
        num_draws: number of trajectories to train on.
        num_training_steps: number of training steps, each on 256 trajectories.
        learning_rate: peak learning rate of Adam.
        progress_bar: whether to show a progress bar.

    Returns:
        The distribution, on the same base and support, whose `fit` is a `FewStepsFit`. Ctrl-C ends the training and
        keeps the best parameters.

    Raises:
        TypeError: if `flow` is not a `FlowDistribution`.
        ValueError: if `flow` has no `ContinuousFlow`, has several, or has one that is not next to the base. Also if it
            needs conditions and none are given, conditions have another shape, or a number is out of its range.

    Source: F2D2, Ai, He, Gu, Salakhutdinov, Kolter, Boffi, Simchowitz 2025, arXiv 2512.02636; here with the exact
        log-determinants of the steps instead of trained ones.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows import FlowDistribution, few_steps, flows
        >>> flow = FlowDistribution(flows.ffjord(jax.random.key(0), 2))
        >>> fast = few_steps(jax.random.key(1), flow, num_training_steps=1, progress_bar=False)
        >>> fast.sample(jax.random.key(2), (5,)).shape
        (5, 2)
    """
    require_key(rng_key)
    require_instance(FlowDistribution, "fit_density(key, data, flow=flows.ffjord)", flow=flow)
    require_counts(num_steps=num_steps, num_draws=num_draws, num_training_steps=num_training_steps)
    require_numbers("(0, inf)", learning_rate=learning_rate)
    bijection, seeds, began = flow.bijection, Seeds.of(rng_key), time.perf_counter()
    conditions = _conditions(flow, condition)
    continuous = _innermost(bijection, None if conditions is None else conditions[0])
    base = flow.file_fields()["base_dist"]
    num = num_draws + _NUM_HELD
    if conditions is not None:
        conditions = conditions[seeds.rng("conditions").integers(len(conditions), size=num)]
    rows = _trajectories(bijection, base.sample(seeds.key("draws"), (num,)), conditions)
    train, held = jax.tree.map(lambda leaf: leaf[:num_draws], rows), jax.tree.map(lambda leaf: leaf[num_draws:], rows)
    solved = time.perf_counter()

    start, rest = eqx.partition(FewSteps(continuous, num_steps=num_steps), eqx.is_inexact_array)
    task = _Task(train, held, rest, seeds)
    policy = Patience(cosine_schedule(num_training_steps, learning_rate), _ROUND, patience=math.inf)
    state = State(TrainState.init(start, averaged=True), rest, start, None)
    state = policy.start(state, task.score(state))
    watch, nowhere = Watch(progress_bar).checked(), Checkpoint(None, dict)
    state, ending = run(
        task, policy, state, watch=watch, checkpoint=nowhere, num_steps=num_training_steps, title="few steps"
    )
    if ending.failed:
        warnings.warn(f"the distillation is not finished: {ending.why}", UserWarning, stacklevel=2)
    student = eqx.combine(state.train.average, rest)
    distilled = jax.tree.map(
        lambda node: student if isinstance(node, ContinuousFlow) else node,
        bijection,
        is_leaf=lambda node: isinstance(node, ContinuousFlow),
    )
    fast = FlowDistribution(distilled, base, flow.condition, constrain=flow.constrain)
    seconds = {"trajectories": solved - began, "training": time.perf_counter() - solved}
    errors = _compared(student, held, base)
    fast.fit = FewStepsFit(
        losses=np.concatenate([np.zeros(0), *state.losses]),
        **errors,
        seconds=seconds,
        num_skipped=state.num_skipped,
        why=ending.why,
        reason=str(ending.reason),
    )
    if not fast.fit.log_prob_error < _CLOSE:
        warnings.warn(
            f"log densities of the {num_steps} steps differ from those of the flow by {fast.fit.log_prob_error:.2g} "
            "nats on average; take more num_training_steps or num_steps",
            UserWarning,
            stacklevel=2,
        )
    return fast


def _conditions(flow: FlowDistribution, condition: Condition | None) -> Array | None:
    """One vector for each row; None for a flow without conditions."""
    shape = flow.bijection.cond_shape
    if shape is None:
        if condition is not None:
            raise ValueError("condition expected None because the flow has no condition, got one: leave condition out")
        return None
    packed = FlowTransform(flow.bijection, flow.condition if condition is None else condition).packed_condition
    if packed is None:
        raise ValueError(
            "condition expected those that the flow was fitted with, got None: distillation trains on them"
        )
    return jnp.reshape(packed, (-1, *shape))


def _innermost(bijection: AbstractBijection, condition: Array | None) -> ContinuousFlow:
    part = layers_of(Part(bijection, condition))[0][0]
    flow, num = part.bijection, len(continuous_flows(bijection))
    if not isinstance(flow, ContinuousFlow) or part.inverted or num != 1:
        raise ValueError(
            f"flow expected one ContinuousFlow, next to the base, such as flows.ffjord makes, got {num}, and next to "
            f"the base a {type(flow).__name__}"
        )
    return flow


@eqx.filter_jit
@full_precision()
def _trajectories(bijection: AbstractBijection, x: Array, condition: Array | None) -> _Rows:
    def solve(event: tuple[Array, Array | None]) -> _Rows:
        x, condition = event
        flow, seen, *_ = layers_of(Part(bijection, condition))[0][0]
        return _Rows(x, *flow.transform_and_log_det(x, seen), seen)

    return jax.lax.map(solve, (x, condition), batch_size=_BLOCK)


class _Task:
    """Random trajectories for the compiled steps, and the loss on those that are held back."""

    chunk = _ROUND

    def __init__(self, rows: _Rows, held: _Rows, rest: PyTree, seeds: Seeds):
        self.rows, self.held, self.rest, self.seeds = rows, held, rest, seeds

    def train(self, state: State, planned: Round, rates: np.ndarray) -> tuple[TrainState, Array, Array]:
        rng = self.seeds.rng("minibatches", state.num_rounds)
        index = rng.integers(len(self.rows.x), size=(self.chunk, min(_BATCH, len(self.rows.x))))
        return _train(state.train, self.rest, self.rows, index, jnp.asarray(rates))

    def score(self, state: State) -> Loss:
        value = float(_loss_of(state.train.average, self.rest, self.held))
        return Loss(value, state.train.average, state.fixed)

    def figures(self, state: State) -> dict[str, float]:
        return {"held-out loss": float(state.scores[-1])}


def _loss(params: PyTree, rest: PyTree, rows: _Rows) -> Array:
    """Of the steps, in both directions, on some rows."""
    student = eqx.combine(params, rest)
    forth, log_det = jax.vmap(student.transform_and_log_det)(rows.x, rows.condition)
    back, back_log_det = jax.vmap(student.inverse_and_log_det)(rows.y, rows.condition)
    positions = ((forth - rows.y) ** 2).sum(-1) + ((back - rows.x) ** 2).sum(-1)
    volumes = jnp.abs(log_det - rows.log_det) + jnp.abs(back_log_det + rows.log_det)
    return jnp.mean(positions + _LOG_DET_WEIGHT * volumes)


@eqx.filter_jit
@full_precision()
def _train(state: TrainState, rest: PyTree, rows: _Rows, index: Any, rates: Array) -> tuple[TrainState, Array, Array]:
    def loss(params: PyTree, index: Array) -> Array:
        return _loss(params, rest, jax.tree.map(lambda leaf: leaf[index], rows))

    return train_chunk(loss, state, index, rates)


_loss_of = eqx.filter_jit(full_precision()(_loss))


@eqx.filter_jit
@full_precision()
def _there_and_back(student: FewSteps, rows: _Rows) -> tuple[tuple[Array, Array], Array]:
    """Where the steps back take the targets, with log-determinants; and the bases, by the steps forth and back."""
    back = jax.vmap(student.inverse_and_log_det)(rows.y, rows.condition)
    forth = jax.vmap(student.transform)(rows.x, rows.condition)
    return back, jax.vmap(student.inverse)(forth, rows.condition)


def _compared(student: FewSteps, rows: _Rows, base: dist.Distribution) -> dict[str, Any]:
    """The errors of a `FewStepsFit`."""
    (x, log_det), again = _there_and_back(student, rows)
    gain = jnp.asarray(base.log_prob(rows.x)) - rows.log_det - jnp.asarray(base.log_prob(x)) - log_det
    gain = np.asarray(gain, np.float64)
    return {
        "kl": Score(float(gain.mean()), float(gain.std() / np.sqrt(len(gain)))),
        "log_prob_error": float(np.abs(gain).mean()),
        "round_trip_error": float(jnp.sqrt(jnp.mean((again - rows.x) ** 2))),
    }
