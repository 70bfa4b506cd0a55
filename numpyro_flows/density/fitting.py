"""Training of a bijection on rows of data, stopped by the likelihood of held-out rows."""

import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.bijections.compose import trained_and_fixed
from numpyro_flows.continuous import FlowMatching
from numpyro_flows.continuous.training_form import (
    continuous_flows,
    with_more_steps,
    with_training_solver,
    without_errors,
)
from numpyro_flows.density.base import Base, Parameters, parameters_of, with_parameters
from numpyro_flows.density.losses import Rows, flow_matching, maximum_likelihood, mean_nll
from numpyro_flows.density.solver_check import SolverCheck
from numpyro_flows.training.ahead import NO_OPTIMIZATION, Ahead, prototype
from numpyro_flows.training.checkpoint import Checkpoint, program
from numpyro_flows.training.devices import Devices, on_one_device
from numpyro_flows.training.loop import Round, run
from numpyro_flows.training.policies import Patience, Score
from numpyro_flows.training.reasons import Ending
from numpyro_flows.training.seeds import Seed, Seeds, seed_key
from numpyro_flows.training.state import State
from numpyro_flows.training.steps import TrainState, cosine_schedule, train_chunk
from numpyro_flows.training.watch import Watch

_SOLVER_GAP = 0.01  # nats between training's solver and the flow's own: above this, training doubles the solver steps


class Settings(NamedTuple):
    """The objective and the numbers of a training, as `fit_density` takes them."""

    matching: FlowMatching | None  # None: maximum likelihood
    base: Base
    trains_base: bool
    least_round: int  # steps between two evaluations of the validation rows, if an epoch has fewer
    prefers_last: bool  # whether the last parameters are kept, unless the best ones were better by more than chance
    num_steps: int
    batch_size: int
    learning_rate: float
    patience: int | None
    num_restarts: int


class _Flow(NamedTuple):
    bijection: AbstractBijection
    base: Parameters


class Trained(NamedTuple):
    """A trained flow, and the record of its training.

    log_prob: log densities of the validation rows.
    solver: check of a continuous flow's solver; None for other flows.
    losses: loss of every step.
    num_skipped: number of steps that were not finite and changed nothing.
    validation: mean negative log likelihood of the validation rows at each evaluation.
    steps: number of training steps before each evaluation.
    ending: what ended the training.
    """

    bijection: AbstractBijection
    base: Base
    log_prob: Float[np.ndarray, " rows"]
    solver: SolverCheck | None
    losses: Float[np.ndarray, " steps"]
    validation: Float[np.ndarray, " looks"]
    steps: Int[np.ndarray, " looks"]
    seconds: dict[str, float]
    num_skipped: int
    ending: Ending


class _Best(NamedTuple):
    params: PyTree
    nll: Any
    log_prob: Any
    gap: Any


class _Now(NamedTuple):
    nll: Any
    gap: Any


class _Functions(NamedTuple):
    """Compiled side by side. With restarts all but rows, batches and rates have a leading axis of them.

    start: seed -> `TrainState`, fixed arrays.
    train: `TrainState`, fixed arrays, late base, rows, row numbers `(steps, batch)`, seeds `(steps, 4)`, rates ->
        `TrainState`, losses, number skipped.
    score: parameters, fixed arrays, late base, `_Best`, rows -> `_Best`, `_Now`.
    static: the flow without its arrays.
    """

    start: Ahead
    train: Ahead
    score: Ahead
    static: _Flow


@dataclass
class _DensityTask:
    """Minibatches of rows for the compiled functions; with restarts states have a leading axis of them.

    Each device has its part of the rows.
    """

    functions: _Functions
    late_base: Base
    draw_rows: Callable[[int], Rows]
    validation: Rows
    batch: int
    chunk: int
    seeds: Seeds
    devices: Devices

    def train(self, state: State, planned: Round, rates: np.ndarray) -> tuple[TrainState, np.ndarray, int]:
        rows = self.draw_rows(state.num_rounds)
        num = len(rows.x)
        epoch = num // self.batch
        rng = self.seeds.rng("minibatches", state.num_rounds)
        order = [rng.permutation(num)[: epoch * self.batch] for _ in range(-(-self.chunk // epoch))]
        index = np.concatenate(order).reshape(-1, self.batch)[: self.chunk].astype(np.int32)
        seeds = self.seeds.many(self.chunk, "train", state.num_rounds)
        placed = self.devices.placed(rows)
        return self.functions.train(state.train, state.fixed, self.late_base, placed, index, seeds, rates)

    def score(self, state: State) -> Score:
        best, now = self._scored(state.train.average, state, state.best)
        # more steps if the solver is too coarse: training would exploit its errors
        coarse = np.any(np.abs(now.gap) > _SOLVER_GAP)
        return Score(np.asarray(now.nll), best, with_more_steps(state.fixed) if coarse else state.fixed)

    def figures(self, state: State) -> dict[str, float]:
        return {"nll": float(np.min(state.best.nll))}

    def identity(self, settings: Settings, rows: Rows, start: State) -> dict[str, Any]:
        """Everything that distinguishes this fit from others."""
        return {
            "data": (rows, self.validation),
            "flow or objective": (
                [program(self.functions.start.jaxpr), program(self.functions.train.jaxpr)],
                (jax.tree.leaves(self.late_base), start.scores, start.best.log_prob),
            ),
            "setting": settings[3:],
            "key": self.seeds.entropy,
        }

    def last_unless_worse(self, state: State, never: _Best) -> _Best:
        """The best parameters if they score better than the last ones by more than chance; else the last ones."""
        last, _ = self._scored(state.train.average, state, never)
        return _last_unless_worse(state.best, last)

    def with_present_gap(self, state: State, best: _Best) -> _Best:
        """`best` with the present gap of the solver, whose steps may have been raised since the best was found."""
        if not continuous_flows(self.functions.static):
            return best
        return best._replace(gap=self._scored(best.params, state, best)[1].gap)

    def _scored(self, params: PyTree, state: State, best: _Best) -> tuple[_Best, _Now]:
        return self.functions.score(params, state.fixed, self.late_base, best, self.validation)


def train(
    make: Callable[[PRNGKeyArray], AbstractBijection],
    draw_rows: Callable[[int], Rows],
    validation: Rows,
    settings: Settings,
    seeds: Seeds,
    watch: Watch,
    devices: Devices,
    late_base: Callable[[], Base] | None = None,
) -> Trained:
    """Train the bijection of `make` on rows that `draw_rows` gives each round; keep the best one on `validation`.

    `late_base` finds the base during the compilation; the base in `settings` is then a stand-in with the same shapes.
    """
    rows = draw_rows(0)
    batch = min(settings.batch_size, len(rows.x))
    epoch = len(rows.x) // batch
    length = min(epoch * -(-settings.least_round // epoch), settings.num_steps)  # of a round
    policy = Patience(cosine_schedule(settings.num_steps, settings.learning_rate), length, settings.patience)

    began = time.perf_counter()
    several = settings.num_restarts > 1
    seed = seeds.many(settings.num_restarts, "start")
    seed = seed if several else seed[0]
    with ThreadPoolExecutor() as pool:
        batches, is_late = (length, batch), late_base is not None
        functions = _compile(pool, settings, make, rows, validation, seed, batches, devices, is_late=is_late)
        base = None if late_base is None else late_base()
        task = _DensityTask(functions, base, draw_rows, validation, batch, length, seeds, devices)
        start, fixed = functions.start(seed)
        none = np.full(np.shape(seed)[:-1], np.inf, jnp.result_type(float))
        never = _Best(start.params, none, np.full((*none.shape, len(validation.x)), np.nan, none.dtype), none)
        state = State(start, fixed, never, None)
        state = policy.start(state, task.score(state))
        functions.train.wait()
        compiled = time.perf_counter()
        state, ending = run(
            task,
            policy,
            state,
            watch=watch,
            checkpoint=Checkpoint(watch.checkpoint, lambda: task.identity(settings, rows, state)),
            num_steps=settings.num_steps,
            title="density",
        )
    best = task.last_unless_worse(state, never) if settings.prefers_last and state.losses else state.best
    best = task.with_present_gap(state, best)
    which = int(np.argmin(best.nll))
    arrays, best = on_one_device(eqx.combine(best.params, state.fixed)), jax.device_get(best)
    losses, validations = np.concatenate([none[..., None][..., :0], *state.losses], axis=-1), np.array(state.scores)
    if several:
        arrays, best = jax.tree.map(lambda leaf: leaf[which], (arrays, best))
        losses, validations = losses[which], validations[:, which]
    bijection, parameters = eqx.combine(arrays, functions.static)
    return Trained(
        bijection=bijection,
        base=with_parameters(settings.base if base is None else base, parameters),
        log_prob=best.log_prob,
        solver=SolverCheck.of(bijection, validation, float(best.gap)) if continuous_flows(bijection) else None,
        losses=losses,
        validation=validations,
        steps=np.minimum(length * np.arange(len(validations)), settings.num_steps),
        seconds={"compilation": compiled - began, "training": time.perf_counter() - compiled},
        num_skipped=state.num_skipped,
        ending=ending,
    )


def _last_unless_worse(best: _Best, last: _Best) -> _Best:
    """`best` if it scores more than one standard error better than `last`, row by row; else `last`.

    The best of many evaluations on few rows is partly luck: two moons with 150 rows ended at 1.365 by the best
    parameters, and at 1.347 by this rule.
    """
    better = np.asarray(best.log_prob, np.float64) - np.asarray(last.log_prob, np.float64)
    by_luck = better.mean(-1) <= better.std(-1) / np.sqrt(better.shape[-1])  # False for NaN
    some = np.asarray(by_luck)

    def choose(of_best: Any, of_last: Any) -> Any:
        return jnp.where(some.reshape(some.shape + (1,) * (np.ndim(of_best) - some.ndim)), of_last, of_best)

    return jax.tree.map(choose, best, last)


def _compile(
    pool: Executor,
    settings: Settings,
    make: Callable[[PRNGKeyArray], AbstractBijection],
    rows: Rows,
    validation: Rows,
    seed: Seed,
    batches: tuple[int, int],
    devices: Devices,
    *,
    is_late: bool,
) -> _Functions:
    matching, several = settings.matching, settings.num_restarts > 1
    objective = maximum_likelihood if matching is None else flow_matching(matching)
    parameters = parameters_of(settings.base) if settings.trains_base else {}
    late_base = settings.base if is_late else None

    def new(seed: Seed) -> _Flow:
        return _Flow(make(seed_key(seed)), parameters)

    def combined(late_base: Base, *parts: PyTree) -> tuple[AbstractBijection, Base]:
        bijection, parameters = eqx.combine(*parts, static)
        return bijection, with_parameters(settings.base if late_base is None else late_base, parameters)

    shapes = prototype(new, seed[0] if several else seed)
    is_array = jax.tree.map(lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct), shapes)
    static = eqx.partition(shapes, is_array)[1]

    def start(seed: Seed) -> tuple[TrainState, PyTree]:
        params, fixed = trained_and_fixed(eqx.filter(new(seed), is_array))
        return TrainState.init(params, averaged=True), fixed

    def train(
        state: TrainState, fixed: PyTree, late_base: Base, rows: Rows, index: Array, seeds: Array, rates: Array
    ) -> Any:
        def loss(params: PyTree, batch: tuple[Array, Array]) -> Array:
            index, seed = batch
            of_batch = jax.tree.map(lambda leaf: leaf[index], rows)
            return objective(*combined(late_base, params, fixed), seed_key(seed), of_batch, devices)

        return train_chunk(loss, state, (index, seeds), rates)

    def score(params: PyTree, fixed: PyTree, late_base: Base, best: _Best, rows: Rows) -> tuple[_Best, _Now]:
        bijection, base = combined(late_base, params, fixed)
        bijection = without_errors(bijection)
        nll, log_prob = mean_nll(bijection, rows, base, devices)
        gap = jnp.full_like(nll, jnp.nan)
        if matching is None and continuous_flows(bijection):
            gap = mean_nll(with_training_solver(bijection), rows, base, devices)[0] - nll
        new = _Best(params, nll, log_prob, gap)
        return jax.tree.map(lambda new, old: jnp.where(nll < best.nll, new, old), new, best), _Now(nll, gap)

    if several:
        start = jax.vmap(start)
        train = jax.vmap(train, in_axes=(0, 0, None, None, None, None, None))
        score = jax.vmap(score, in_axes=(0, 0, None, 0, None))
    state, fixed = jax.eval_shape(start, seed)
    nll, log_prob = jax.eval_shape(
        lambda: (jnp.zeros(seed.shape[:-1]), jnp.zeros((*seed.shape[:-1], len(validation.x))))
    )
    best = _Best(state.average, nll, log_prob, nll)
    return _Functions(
        start=Ahead(pool, start, seed, options=NO_OPTIMIZATION),
        train=Ahead(
            pool,
            train,
            state,
            fixed,
            late_base,
            devices.placed(rows),
            np.zeros(batches, np.int32),
            np.zeros((batches[0], 4), np.uint32),
            jnp.zeros(batches[0]),
            mesh=devices.mesh,
        ),
        score=Ahead(pool, score, state.average, fixed, late_base, best, validation, mesh=devices.mesh),
        static=static,
    )
