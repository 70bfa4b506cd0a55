"""Training of a bijection on rows of data by maximum likelihood, stopped by rows that it was not trained on."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.objectives import standard_normal_log_prob
from numpyro_flows.stages import Ahead, Seed, prototype, seed_key, split
from numpyro_flows.training import TrainState, cosine_schedule, train_chunk

_BLOCK = 1000  # rows scored at once
_LEAST_PATIENCE = 250  # steps
_LEAST_ROUND = 50  # steps between two looks at the validation rows, where an epoch has fewer


class Rows(NamedTuple):
    """What a flow is trained on or scored by, in NumPy or on the device.

    x: vectors `(num, dim)`.
    condition: of each, `(num, cond_dim)`, or None.
    weights: `(num,)`, of mean 1.
    """

    x: Any
    condition: Any
    weights: Any


class Settings(NamedTuple):
    """The numbers of a training, as `fit_density` takes them."""

    num_steps: int
    batch_size: int
    learning_rate: float
    patience: int | None
    num_restarts: int


class Trained(NamedTuple):
    """A trained bijection, and how it came about.

    log_prob: of the validation rows.
    losses: of every step, and `num_skipped`, the number of steps that were not finite and changed nothing.
    validation: mean negative log likelihood of the validation rows at each look, after so many `steps`.
    why: what ended the training, and `failed`, whether that was a failure.
    """

    bijection: AbstractBijection
    log_prob: Float[np.ndarray, " rows"]
    losses: Float[np.ndarray, " steps"]
    validation: Float[np.ndarray, " looks"]
    steps: Int[np.ndarray, " looks"]
    seconds: dict[str, float]
    num_skipped: int
    why: str
    failed: bool


def log_prob_rows(bijection: AbstractBijection, rows: Rows) -> Float[Array, " num"]:
    """`log N(f^-1(x); 0, I) + log |det df^-1/dx|` of every row, in blocks, so that memory does not grow with them."""

    def log_prob(x: Array, condition: Array | None) -> Array:
        base, log_det = bijection.inverse_and_log_det(x, condition)
        return standard_normal_log_prob(base) + log_det

    num = len(rows.x)
    num_blocks = -(-num // _BLOCK)
    if num_blocks == 1:
        return jax.vmap(log_prob)(rows.x, rows.condition)
    block = -(-num // num_blocks)
    filled = jax.tree.map(
        lambda leaf: jnp.resize(leaf, (num_blocks * block, *leaf.shape[1:])), (rows.x, rows.condition)
    )
    blocks = jax.tree.map(lambda leaf: leaf.reshape(num_blocks, block, *leaf.shape[1:]), filled)
    return jax.lax.map(lambda block: jax.vmap(log_prob)(*block), blocks).reshape(-1)[:num]


class _Best(NamedTuple):
    params: PyTree
    nll: Any
    log_prob: Any


class _Functions(NamedTuple):
    """Compiled side by side. With restarts all but rows, batches and rates have a leading axis of them.

    start: seed -> `TrainState`, fixed arrays.
    train: `TrainState`, fixed arrays, rows, row numbers `(steps, batch)`, rates -> `TrainState`, losses, number
        skipped.
    score: parameters, fixed arrays, `_Best`, rows -> `_Best`, mean negative log likelihood.
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
    num_epochs = -(-_LEAST_ROUND // epoch)  # of one round
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
        tqdm(total=settings.num_steps, desc="maximum likelihood", unit="step", disable=not progress_bar) as progress,
    ):
        functions = _compile(pool, make, rows, validation, seed, (steps, batch), several)
        state, fixed = functions.start(seed)
        never = np.full(np.shape(seed)[:-1], np.inf, rates.dtype)
        unknown = np.full((*never.shape, len(validation.x)), np.nan, rates.dtype)
        best, nll = functions.score(state.average, fixed, _Best(state.params, never, unknown), validation)
        validations.append(np.asarray(nll))
        functions.train.wait()
        compiled, since = time.perf_counter(), 0
        try:
            for rates_of_round in rates:
                order = [rng.permutation(len(rows.x))[: epoch * batch] for _ in range(num_epochs)]
                index = np.concatenate(order).reshape(-1, batch)[:steps].astype(np.int32)
                state, loss, skipped = functions.train(state, fixed, rows, index, rates_of_round)
                best, nll = functions.score(state.average, fixed, best, validation)
                since = 0 if np.any(np.asarray(nll) < np.min(validations, axis=0)) else since + steps
                losses.append(np.asarray(loss))
                validations.append(np.asarray(nll))
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
    which = int(np.argmin(best.nll))
    arrays = eqx.combine(best.params, fixed)
    log_prob, losses, validations = np.asarray(best.log_prob), np.array(losses), np.array(validations)
    if several:
        arrays = jax.tree.map(lambda leaf: leaf[which], arrays)
        log_prob, losses, validations = log_prob[which], losses[:, which], validations[:, which]
    return Trained(
        bijection=eqx.combine(arrays, functions.static),
        log_prob=log_prob,
        losses=losses.reshape(-1)[: settings.num_steps],
        validation=validations,
        steps=np.minimum(steps * np.arange(len(validations)), settings.num_steps),
        seconds={"compilation": compiled - began, "training": time.perf_counter() - compiled},
        num_skipped=num_skipped,
        why=why or f"all {settings.num_steps} steps taken",
        failed=failed,
    )


def _compile(
    pool: Executor,
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
        params, fixed = split(eqx.filter(make(seed_key(seed)), is_array))
        return TrainState.init(params, averaged=True), fixed

    def train(state: TrainState, fixed: PyTree, rows: Rows, index: Array, rates: Array) -> Any:
        def loss(params: PyTree, index: Int[Array, " batch"]) -> Array:
            batch = jax.tree.map(lambda leaf: leaf[index], rows)
            return _nll(eqx.combine(params, fixed, static), batch)[0]

        return train_chunk(loss, state, index, rates)

    def score(params: PyTree, fixed: PyTree, best: _Best, rows: Rows) -> tuple[_Best, Array]:
        nll, log_prob = _nll(eqx.combine(params, fixed, static), rows)
        new = _Best(params, nll, log_prob)
        return jax.tree.map(lambda new, old: jnp.where(nll < best.nll, new, old), new, best), nll

    if several:
        start = jax.vmap(start)
        train = jax.vmap(train, in_axes=(0, 0, None, None, None))
        score = jax.vmap(score, in_axes=(0, 0, 0, None))
    state, fixed = jax.eval_shape(start, seed)
    nll, log_prob = jax.eval_shape(
        lambda: (jnp.zeros(seed.shape[:-1]), jnp.zeros((*seed.shape[:-1], len(validation.x))))
    )
    return _Functions(
        start=Ahead(pool, start, seed, options={"xla_backend_optimization_level": 0}),
        train=Ahead(pool, train, state, fixed, rows, np.zeros(batches, np.int32), jnp.zeros(batches[0])),
        score=Ahead(pool, score, state.average, fixed, _Best(state.average, nll, log_prob), validation),
        static=static,
    )


def _nll(bijection: AbstractBijection, rows: Rows) -> tuple[Array, Float[Array, " num"]]:
    log_prob = log_prob_rows(bijection, rows)
    return -jnp.mean(rows.weights * log_prob), log_prob
