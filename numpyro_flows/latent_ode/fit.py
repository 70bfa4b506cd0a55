"""Series in, a latent ODE out that was trained on them by their evidence lower bound."""

import math
import os
import time
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree
from numpyro.infer import Trace_ELBO

from numpyro_flows.arguments import as_numbers, require_counts, require_key, require_numbers
from numpyro_flows.continuous.training_settings import MAX_TRAINING_STEPS
from numpyro_flows.flows import Recipe
from numpyro_flows.latent_ode.model import FLOW, LatentODE
from numpyro_flows.latent_ode.programs import PARAM_NAME
from numpyro_flows.latent_ode.series import Series, checked_window, observe_series
from numpyro_flows.modeling.model_run import model_run
from numpyro_flows.precision import full_precision
from numpyro_flows.training.checkpoint import Checkpoint, program
from numpyro_flows.training.loop import Round, run
from numpyro_flows.training.policies import Patience, Score
from numpyro_flows.training.seeds import Seed, Seeds, seed_key
from numpyro_flows.training.state import State
from numpyro_flows.training.steps import TrainState, cosine_schedule, train_chunk
from numpyro_flows.training.watch import Callback, Watch

_ROUND = 100  # steps between two looks at the validation series
_VALIDATION_DRAWS = 8  # of each series' z0
_MOST_SOLVER_ERROR = 0.1  # deviations of the noise, of a series on average: beyond it the solver takes twice the steps


class LatentODEFit(NamedTuple):
    """What `fit_latent_ode` found.

    Attributes:
        latent_ode: the trained one.
        losses: of each step, `(steps,)`, an estimate of the negative evidence lower bound, in nats a series.
        validation: that of the validation series after `steps` steps, one number a look, `(looks,)`.
        steps: training steps before each look, `(looks,)`.
        solver_error: `latent_ode.solver_error` of the validation series, on average.
        seconds: wall time, with compilation.
        num_skipped: steps left out because loss or gradient was not finite.
        why: what ended the training, and `reason`, the same in one word or two.

    Example:
        >>> import jax, numpy as np  # doctest: +SLOW
        >>> from numpyro_flows import fit_latent_ode
        >>> times = np.sort(np.random.default_rng(0).uniform(size=(20, 5)))
        >>> values = np.sin(times)[..., None]
        >>> fit = fit_latent_ode(
        ...     jax.random.key(0), times, values, latent_dim=2, flow=None, width=8, num_steps=10, progress_bar=False
        ... )
        >>> fit.losses.shape
        (10,)
    """

    latent_ode: LatentODE
    losses: Float[np.ndarray, " steps"]
    validation: Float[np.ndarray, " looks"]
    steps: Int[np.ndarray, " looks"]
    solver_error: float
    seconds: float
    num_skipped: int
    why: str
    reason: str


def fit_latent_ode(
    rng_key: PRNGKeyArray,
    times: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike | None = None,
    covariates: ArrayLike | None = None,
    *,
    window: tuple[float, float] | None = None,
    latent_dim: int = 4,
    flow: Recipe | None = FLOW,
    width: int = 32,
    num_steps: int = 5_000,
    batch_size: int = 50,
    learning_rate: float = 1e-2,
    validation: float = 0.1,
    progress_bar: bool = True,
    callback: Callback | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> LatentODEFit:
    """Fit a latent ODE to irregularly observed series, by the evidence lower bound of its NumPyro model and guide.

    Adam takes random series in compiled rounds of 100 steps, at a rate that rises and then falls as a cosine. After
    each the parameters' average is scored on series that were not trained on, and the best is kept. Where the few
    solver steps of training are no longer accurate there, they are doubled.

    Args:
        rng_key: random key, of either style.
        times: sorted along a series, `(num, length)`.
        values: `(num, length, obs_dim)`.
        mask: false where there is no value (padding, or a gap): of whole times, `(num, length)`, or of each feature,
            `(num, length, obs_dim)`, for example `np.isfinite(values)`; None: all are there.
        covariates: known constants of each series, for example a dose, `(num, cov_dim)`; None: none. Field, encoder and
            flow see them standardised by their mean and standard deviation.
        window: of time; its start is the time of `z0`; by default from the earliest to the latest time.
        latent_dim: length of `z`.
        flow: recipe of the map from the base to `z0`; None: `z0 ~ N(0, I)`.
        width: of the networks' layers.
        num_steps: training steps.
        batch_size: series in a step.
        learning_rate: peak learning rate of Adam.
        validation: share of the series to choose by.
        progress_bar: whether to show one.
        callback: called after each round with `step`, `losses` and `figures` ("nll", of the best on the validation
            series); where it returns True, the fit ends there.
        checkpoint: path of a file that the training is written to after each round, on Ctrl-C and on SIGTERM. A second
            call with the same arguments continues it, and ends bit for bit like an uninterrupted one.

    Returns:
        The trained latent ODE, and how it came about. Ctrl-C ends the training and returns what was fitted by then.

    Raises:
        TypeError: if times or values are not numbers, or the mask is not boolean.
        ValueError: for wrong shapes, and times that are not sorted or are before the window. For values or covariates
            that are not finite or are constant, features that no series has, and series without a value. For fewer
            than two series, numbers out of their range, and a checkpoint of another fit.

    Source: Rubanova, Chen, Duvenaud 2019, arXiv 1907.03907.

    Example:
        >>> import jax, numpy as np  # doctest: +SLOW
        >>> from numpyro_flows import fit_latent_ode
        >>> times = np.sort(np.random.default_rng(0).uniform(size=(20, 5)))
        >>> values = np.sin(times)[..., None]
        >>> fit = fit_latent_ode(
        ...     jax.random.key(0), times, values, latent_dim=2, flow=None, width=8, num_steps=10, progress_bar=False
        ... )
        >>> fit.latent_ode.sample(jax.random.key(1), 3, np.linspace(0.1, 2, 7)).shape
        (3, 7, 1)
    """
    require_key(rng_key)
    require_counts(num_steps=num_steps, batch_size=batch_size)
    require_numbers("(0, inf)", learning_rate=learning_rate)
    require_numbers("(0, 1)", validation=validation)
    watch = Watch(progress_bar, callback, checkpoint).checked()
    start_time = None if window is None else checked_window(window)[0]
    cov_dim = _number_of(covariates)
    series = observe_series(times, values, mask, covariates, obs_dim=None, cov_dim=cov_dim, start=start_time)
    num = len(series.times)
    if num < 2:
        raise ValueError(f"expected at least 2 series, one of them to choose by, got {num}")
    center, spread = _center_and_spread("values", np.where(series.mask, series.values, np.nan))
    cov_center, cov_spread = (None, None) if cov_dim is None else _center_and_spread("covariates", series.covariates)
    obs_times = series.times[series.mask.any(-1)]
    if window is None:
        window = float(obs_times.min()), float(obs_times.max())
        if not window[1] > window[0]:
            raise ValueError(f"times expected at least two different ones, got {window[0]} alone")

    seeds = Seeds.of(rng_key)
    start = LatentODE(
        seeds.key("start"),
        series.values.shape[2],
        latent_dim=latent_dim,
        flow=flow,
        width=width,
        window=window,
        center=center,
        spread=spread,
        cov_dim=cov_dim,
        cov_center=cov_center,
        cov_spread=cov_spread,
    )
    order = seeds.rng("split").permutation(num)
    num_held = min(max(round(validation * num), 1), num - 1)
    held, rows = (
        jax.tree.map(lambda leaf, some=some: jnp.asarray(leaf[some]), series) for some in np.split(order, [num_held])
    )
    params, rest = eqx.partition(start, eqx.is_inexact_array)
    task = _LatentODETask(rows, held, min(batch_size, num - num_held), seeds)
    policy = Patience(cosine_schedule(num_steps, learning_rate), _ROUND, patience=math.inf)
    began = time.perf_counter()
    state = State(TrainState.init(params, averaged=True), rest, _Best(params, math.inf), None)
    state = policy.start(state, task.score(state))
    state, ending = run(
        task,
        policy,
        state,
        watch=watch,
        checkpoint=Checkpoint(watch.checkpoint, lambda: task.identity(state, policy)),
        num_steps=num_steps,
        title="latent ODE",
    )
    if ending.failed:
        warnings.warn(f"the fit is not finished: {ending.why}", UserWarning, stacklevel=2)
    solver_error = task.solver_error(state.best.params, state.fixed)
    if not solver_error < 2 * _MOST_SOLVER_ERROR:
        warnings.warn(
            f"the solver steps of training are {solver_error:.2f} noise deviations wrong: the losses are not those of "
            "the paths that predictions follow",
            UserWarning,
            stacklevel=2,
        )
    return LatentODEFit(
        latent_ode=eqx.combine(state.best.params, state.fixed),
        losses=np.concatenate([np.zeros(0), *state.losses]),
        validation=np.array(state.scores),
        steps=np.minimum(_ROUND * np.arange(len(state.scores)), num_steps),
        solver_error=solver_error,
        seconds=time.perf_counter() - began,
        num_skipped=state.num_skipped,
        why=ending.why,
        reason=ending.reason,
    )


def _number_of(covariates: ArrayLike | None) -> int | None:
    if covariates is None:
        return None
    shape = as_numbers(covariates, "covariates").shape
    if len(shape) != 2:
        raise ValueError(f"covariates expected the shape (num, cov_dim), got {shape}")
    return shape[1]


def _center_and_spread(name: str, numbers: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each coordinate, the last axis, over what is not NaN."""
    columns = np.asarray(numbers, np.float64).reshape(-1, np.shape(numbers)[-1])
    if np.isnan(columns).all(0).any():
        empty = np.flatnonzero(np.isnan(columns).all(0))
        raise ValueError(f"{name} expected each coordinate in at least one series, got none of: {empty.tolist()}")
    constant = np.flatnonzero(np.nanmin(columns, 0) == np.nanmax(columns, 0))
    if constant.size:
        raise ValueError(f"{name} expected coordinates that vary, got constant ones: {constant.tolist()}")
    return np.nanmean(columns, 0).tolist(), np.nanstd(columns, 0).tolist()


class _Best(NamedTuple):
    params: PyTree
    nll: float


class _LatentODETask:
    """Random series for the compiled steps, and the loss of those that are held back."""

    chunk = _ROUND

    def __init__(self, series: Series, held: Series, batch_size: int, seeds: Seeds):
        self.series, self.held = series, held
        self.batch_size = batch_size
        self.held_seed, self.seeds = seeds.one("validation"), seeds

    def train(self, state: State, planned: Round, rates: np.ndarray) -> tuple[TrainState, Array, Array]:
        seeds = self.seeds.many(self.chunk, "train", state.num_rounds)
        return _train(state.train, state.fixed, self.series, self.batch_size, seeds, jnp.asarray(rates))

    def score(self, state: State) -> Score:
        nll, error = map(float, _score(state.train.average, state.fixed, self.held, self.held_seed))
        best = _Best(state.train.average, nll) if nll < state.best.nll else state.best
        return Score(nll, best, state.fixed if error < _MOST_SOLVER_ERROR else _with_more_steps(state.fixed))

    def figures(self, state: State) -> dict[str, float]:
        return {"nll": float(state.best.nll)}

    def identity(self, state: State, policy: Patience) -> dict[str, Any]:
        """What makes the fit this one and no other."""
        seeds, rates = self.seeds.many(self.chunk, "train"), jnp.zeros(self.chunk)
        jaxpr, *_ = eqx.filter_make_jaxpr(_train)(state.train, state.fixed, self.series, self.batch_size, seeds, rates)
        return {
            "data": (self.series, self.held),
            "flow or width": (program(jaxpr), state.train.params, state.fixed, state.scores),
            "setting": (policy.rates, self.batch_size),
            "key": self.seeds.entropy,
        }

    def solver_error(self, params: PyTree, rest: PyTree) -> float:
        return float(_score(params, rest, self.held, self.held_seed)[1])


@model_run()
def negative_elbo(
    params: PyTree,
    latent_ode: LatentODE,
    series: Series,
    key: PRNGKeyArray,
    *,
    batch_size: int | None,
    num_draws: int = 1,
) -> Array:
    """The loss: NumPyro's negative evidence lower bound of model and guide, in nats a series."""
    elbo = Trace_ELBO(num_particles=num_draws)
    loss = elbo.loss(key, {PARAM_NAME: params}, latent_ode.model, latent_ode.guide, *series, batch_size=batch_size)
    return jnp.asarray(loss) / len(series.times)


@eqx.filter_jit
@full_precision()
def _train(
    state: TrainState, rest: PyTree, series: Series, batch_size: int, seeds: Seed, rates: Array
) -> tuple[TrainState, Array, Array]:
    def loss(params: PyTree, seed: Seed) -> Array:
        return negative_elbo(params, eqx.combine(params, rest), series, seed_key(seed), batch_size=batch_size)

    return train_chunk(loss, state, seeds, rates)


@eqx.filter_jit
@full_precision()
def _score(params: PyTree, rest: PyTree, series: Series, seed: Seed) -> tuple[Array, Array]:
    """The loss where the encoder sees all observations, and the mean solver error."""
    latent_ode = eqx.combine(params, eqx.tree_at(lambda m: m.dropout, rest, 0.0))
    loss = negative_elbo(params, latent_ode, series, seed_key(seed), batch_size=None, num_draws=_VALIDATION_DRAWS)
    return loss, latent_ode._solver_error(series).mean()


def _with_more_steps(rest: Any) -> Any:
    steps = jnp.minimum(2 * rest.training.num_steps, MAX_TRAINING_STEPS).astype(rest.training.num_steps.dtype)
    return eqx.tree_at(lambda m: m.training.num_steps, rest, steps)
