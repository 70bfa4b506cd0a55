"""Training of a bijection on rows of data, stopped by the likelihood of rows that it was not trained on."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.bijections.compose import trained_and_fixed
from numpyro_flows.continuous.training_form import (
    continuous_flows,
    num_evaluations,
    with_more_steps,
    with_training_solver,
    without_errors,
)
from numpyro_flows.density.losses import Objective, Rows, maximum_likelihood, mean_nll
from numpyro_flows.files.rules import InFiles
from numpyro_flows.training.ahead import Ahead, prototype
from numpyro_flows.training.seeds import Seed, seed_key
from numpyro_flows.training.steps import TrainState, cosine_schedule, train_chunk

_LEAST_PATIENCE = 250  # steps
_SOLVER_GAP = 0.01  # nats between training's solver and the flow's own, from which training takes twice the steps
_COUNTED_ROWS = 100  # to tell how often a field is evaluated


class Settings(NamedTuple):
    """The numbers of a training, as `fit_density` takes them, and its loss."""

    objective: Objective
    least_round: int  # steps between two looks at the validation rows, where an epoch has fewer
    prefers_last: bool  # whether the last parameters are kept unless the best were better beyond chance
    num_steps: int
    batch_size: int
    learning_rate: float
    patience: int | None
    num_restarts: int


class SolverCheck(InFiles):
    """How a continuous flow's solver in training compares with its own, on the validation rows.

    gap: mean negative log likelihood by training's solver minus that by the flow's own, in nats; NaN where training
        solved nothing.
    num_steps: solver steps of training at the end.
    """

    FILE_KINDS: ClassVar = {"gap": float, "num_steps": int, "num_evaluations": float}

    def __init__(self, gap: float, num_steps: int, num_evaluations: float | Callable[[], float]):
        self.gap = gap
        self.num_steps = num_steps
        self._count = num_evaluations

    @cached_property
    def num_evaluations(self) -> float:
        """Of the field, for the density of one row, on average; counted when it is first asked for, or saved."""
        return self._count() if callable(self._count) else self._count

    @classmethod
    def of(cls, bijection: AbstractBijection, rows: Rows, gap: float) -> "SolverCheck":
        """The check of a bijection that was trained to a given gap."""
        num_steps = int(max(np.max(flow.training.num_steps) for flow in continuous_flows(bijection)))
        some = jax.tree.map(lambda leaf: leaf[:_COUNTED_ROWS], rows)
        return cls(gap, num_steps, partial(_mean_evaluations, bijection, some))

    def __repr__(self) -> str:
        return f"SolverCheck(gap={self.gap:.3g}, num_steps={self.num_steps})"


def _mean_evaluations(bijection: AbstractBijection, rows: Rows) -> float:
    count = jax.jit(jax.vmap(lambda x, condition: num_evaluations(bijection, x, condition)))
    return float(np.mean(count(rows.x, rows.condition)))


class Trained(NamedTuple):
    """A trained bijection, and how it came about.

    log_prob: of the validation rows.
    solver: of a continuous flow; None for others.
    losses: of every step, and `num_skipped`, the number of steps that were not finite and changed nothing.
    validation: mean negative log likelihood of the validation rows at each look, after so many `steps`.
    why: what ended the training, and `failed`, whether that was a failure.
    """

    bijection: AbstractBijection
    log_prob: Float[np.ndarray, " rows"]
    solver: SolverCheck | None
    losses: Float[np.ndarray, " steps"]
    validation: Float[np.ndarray, " looks"]
    steps: Int[np.ndarray, " looks"]
    seconds: dict[str, float]
    num_skipped: int
    why: str
    failed: bool


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
    train: `TrainState`, fixed arrays, rows, row numbers `(steps, batch)`, seeds `(steps, 4)`, rates -> `TrainState`,
        losses, number skipped.
    score: parameters, fixed arrays, `_Best`, rows -> `_Best`, `_Now`.
    static: the bijection without its arrays.
    """

    start: Ahead
    train: Ahead
    score: Ahead
    static: AbstractBijection


def train(
    make: Callable[[PRNGKeyArray], AbstractBijection],
    draw_rows: Callable[[], Rows],
    validation: Rows,
    settings: Settings,
    seeds: Iterator[Seed],
    rng: np.random.Generator,
    *,
    progress_bar: bool,
) -> Trained:
    """Train what `make` gives on the rows that `draw_rows` gives each round; keep what is best on `validation`."""
    rows = draw_rows()
    batch = min(settings.batch_size, len(rows.x))
    epoch = len(rows.x) // batch
    num_epochs = -(-settings.least_round // epoch)  # of one round
    steps = min(epoch * num_epochs, settings.num_steps)
    num_rounds = -(-settings.num_steps // steps)
    # the steps that fill up the last round have learning rate 0
    rates = np.pad(
        cosine_schedule(settings.num_steps, settings.learning_rate), (0, num_rounds * steps - settings.num_steps)
    )
    rates = rates.astype(jnp.result_type(float)).reshape(num_rounds, steps)

    began = time.perf_counter()
    several = settings.num_restarts > 1
    seed = np.stack([next(seeds) for _ in range(settings.num_restarts)])
    seed = seed if several else seed[0]
    losses, validations, num_skipped, why, failed = [], [], 0, "", False
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=settings.num_steps, desc="density", unit="step", disable=not progress_bar) as progress,
    ):
        functions = _compile(pool, settings.objective, make, rows, validation, seed, (steps, batch), several)
        state, fixed = functions.start(seed)
        never = np.full(np.shape(seed)[:-1], np.inf, rates.dtype)
        unknown = np.full((*never.shape, len(validation.x)), np.nan, rates.dtype)
        best, now = functions.score(state.average, fixed, _Best(state.params, never, unknown, never), validation)
        fixed = _with_steps_enough(fixed, now)
        validations.append(np.asarray(now.nll))
        functions.train.wait()
        compiled, since = time.perf_counter(), 0
        try:
            for rates_of_round in rates:
                order = [rng.permutation(len(rows.x))[: epoch * batch] for _ in range(num_epochs)]
                index = np.concatenate(order).reshape(-1, batch)[:steps].astype(np.int32)
                noise = rng.integers(2**32, size=(steps, 4), dtype=np.uint32)
                state, loss, skipped = functions.train(state, fixed, rows, index, noise, rates_of_round)
                best, now = functions.score(state.average, fixed, best, validation)
                since = 0 if np.any(np.asarray(now.nll) < np.min(validations, axis=0)) else since + steps
                losses.append(np.asarray(loss))
                validations.append(np.asarray(now.nll))
                fixed = _with_steps_enough(fixed, now)
                num_skipped += int(np.sum(skipped))
                progress.update(min(steps, settings.num_steps - progress.n))
                progress.set_postfix(nll=f"{np.min(best.nll):.3f}")
                if not np.isfinite(losses[-1]).any():
                    why, failed = "stopped because the loss is not finite", True
                    break
                best_after = steps * len(losses) - since
                if since >= (max(best_after, _LEAST_PATIENCE) if settings.patience is None else settings.patience):
                    why = f"stopped because validation did not improve in {since} steps"
                    break
                rows = draw_rows()
        except KeyboardInterrupt:
            why = "interrupted"
        except jax.errors.JaxRuntimeError as error:
            why, failed = f"stopped by an error: {error}", True
    if settings.prefers_last and losses:
        last, _ = functions.score(state.average, fixed, _Best(state.params, never, unknown, never), validation)
        best = _last_unless_worse(best, last)
    if continuous_flows(functions.static):  # its steps may have been raised since the best was found
        _, now = functions.score(best.params, fixed, best, validation)
        best = best._replace(gap=now.gap)
    which = int(np.argmin(best.nll))
    arrays, best = eqx.combine(best.params, fixed), jax.device_get(best)
    losses, validations = np.array(losses), np.array(validations)
    if several:
        arrays, best = jax.tree.map(lambda leaf: leaf[which], (arrays, best))
        losses, validations = losses[:, which], validations[:, which]
    bijection = eqx.combine(arrays, functions.static)
    return Trained(
        bijection=bijection,
        log_prob=best.log_prob,
        solver=SolverCheck.of(bijection, validation, float(best.gap)) if continuous_flows(bijection) else None,
        losses=losses.reshape(-1)[: settings.num_steps],
        validation=validations,
        steps=np.minimum(steps * np.arange(len(validations)), settings.num_steps),
        seconds={"compilation": compiled - began, "training": time.perf_counter() - compiled},
        num_skipped=num_skipped,
        why=why or f"all {settings.num_steps} steps taken",
        failed=failed,
    )


def _last_unless_worse(best: _Best, last: _Best) -> _Best:
    """`best` where it scores more than one standard error better than `last`, row by row; else `last`.

    Of many looks at few rows the best is one of luck: two moons with 150 rows ended at 1.365 by it, at 1.347 without.
    """
    better = np.asarray(best.log_prob, np.float64) - np.asarray(last.log_prob, np.float64)
    by_luck = better.mean(-1) <= better.std(-1) / np.sqrt(better.shape[-1])  # False for NaN
    some = np.asarray(by_luck)

    def choose(of_best: Any, of_last: Any) -> Any:
        return jnp.where(some.reshape(some.shape + (1,) * (np.ndim(of_best) - some.ndim)), of_last, of_best)

    return jax.tree.map(choose, best, last)


def _with_steps_enough(fixed: PyTree, now: "_Now") -> PyTree:
    """More steps for a solver that is too coarse: one that training learns to cheat."""
    return with_more_steps(fixed) if np.any(np.abs(now.gap) > _SOLVER_GAP) else fixed


def _compile(
    pool: Executor,
    objective: Objective,
    make: Callable[[PRNGKeyArray], AbstractBijection],
    rows: Rows,
    validation: Rows,
    seed: Seed,
    batches: tuple[int, int],
    several: bool,
) -> _Functions:
    one = seed[0] if several else seed
    shapes = prototype(lambda seed: make(seed_key(seed)), one)
    is_array = jax.tree.map(lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct), shapes)
    static = eqx.partition(shapes, is_array)[1]

    def start(seed: Seed) -> tuple[TrainState, PyTree]:
        params, fixed = trained_and_fixed(eqx.filter(make(seed_key(seed)), is_array))
        return TrainState.init(params, averaged=True), fixed

    def train(state: TrainState, fixed: PyTree, rows: Rows, index: Array, seeds: Array, rates: Array) -> Any:
        def loss(params: PyTree, batch: tuple[Array, Array]) -> Array:
            index, seed = batch
            of_batch = jax.tree.map(lambda leaf: leaf[index], rows)
            return objective(eqx.combine(params, fixed, static), seed_key(seed), of_batch)

        return train_chunk(loss, state, (index, seeds), rates)

    def score(params: PyTree, fixed: PyTree, best: _Best, rows: Rows) -> tuple[_Best, _Now]:
        bijection = without_errors(eqx.combine(params, fixed, static))
        nll, log_prob = mean_nll(bijection, rows)
        gap = jnp.full_like(nll, jnp.nan)
        if objective is maximum_likelihood and continuous_flows(bijection):
            gap = mean_nll(with_training_solver(bijection), rows)[0] - nll
        new = _Best(params, nll, log_prob, gap)
        return jax.tree.map(lambda new, old: jnp.where(nll < best.nll, new, old), new, best), _Now(nll, gap)

    if several:
        start = jax.vmap(start)
        train = jax.vmap(train, in_axes=(0, 0, None, None, None, None))
        score = jax.vmap(score, in_axes=(0, 0, 0, None))
    state, fixed = jax.eval_shape(start, seed)
    nll, log_prob = jax.eval_shape(
        lambda: (jnp.zeros(seed.shape[:-1]), jnp.zeros((*seed.shape[:-1], len(validation.x))))
    )
    return _Functions(
        start=Ahead(pool, start, seed, options={"xla_backend_optimization_level": 0}),
        train=Ahead(
            pool,
            train,
            state,
            fixed,
            rows,
            np.zeros(batches, np.int32),
            np.zeros((batches[0], 4), np.uint32),
            jnp.zeros(batches[0]),
        ),
        score=Ahead(pool, score, state.average, fixed, _Best(state.average, nll, log_prob, nll), validation),
        static=static,
    )
