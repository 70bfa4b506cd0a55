"""Densities of discrete columns, angles and real columns together, by the chain rule."""

import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import ArrayLike, Float, Int, PRNGKeyArray

from numpyro_flows.arguments import described
from numpyro_flows.bijections import AbstractBijection, StandardizedCondition
from numpyro_flows.continuous import FlowMatching
from numpyro_flows.density.angles import recipe_of_angles, uniform_angles
from numpyro_flows.density.base import Base
from numpyro_flows.density.defaults import LIKELIHOOD_ROUND, Options, split, usual_batch
from numpyro_flows.density.discrete import maker, no_base
from numpyro_flows.density.fitting import Settings, Trained, train
from numpyro_flows.density.losses import Rows, log_prob_rows
from numpyro_flows.density.mixed_data import MixedData, take_apart
from numpyro_flows.density.moments import mean_and_deviation
from numpyro_flows.density.observations import checked_condition, checked_weights, observe, weights_of
from numpyro_flows.density.outliers import near_rows
from numpyro_flows.density.result import DensityFit, MixedFit, Score
from numpyro_flows.flows import Recipe
from numpyro_flows.modeling.discrete import DiscreteFactor
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.modeling.mixed import MixedDistribution, wrap
from numpyro_flows.training.devices import Devices
from numpyro_flows.training.seeds import Seeds
from numpyro_flows.training.watch import Watch

_BLOCK = 1_000  # rows scored at once


class _Split(NamedTuple):
    """Row numbers to train on, to stop by, and to test on."""

    train: Int[np.ndarray, " some"]
    held: Int[np.ndarray, " some"]
    test: Int[np.ndarray, " some"]


class _Training(NamedTuple):
    """What the trainings of angles and of discrete columns share."""

    split: _Split
    weights: Float[np.ndarray, " num"]
    seeds: Seeds
    options: Options
    checkpoint: str | os.PathLike | None

    def rows(self, x: Any, condition: Any, index: Int[np.ndarray, " some"]) -> Rows:
        """Some rows, in JAX's precision."""
        dtype = jnp.result_type(float)
        weights = weights_of(self.weights, index, "of a split")
        return Rows(x[index].astype(dtype), condition[index].astype(dtype), weights.astype(dtype))

    def run(
        self, name: str, make: Callable[[PRNGKeyArray], Any], x: Any, condition: Any, base: Base
    ) -> tuple[Any, DensityFit]:
        """The bijection that `make` gives, trained on a base, and how it was trained."""
        options = self.options
        devices = Devices.of(options.mesh)
        watch = Watch(options.progress_bar, options.callback, checkpoint_of(self.checkpoint, name))
        rows, held, tested = (self.rows(x, condition, index) for index in self.split)
        settings = Settings(
            matching=None,
            base=base,
            trains_base=False,
            least_round=LIKELIHOOD_ROUND,
            prefers_last=False,
            num_steps=options.num_steps,
            batch_size=options.batch_size or usual_batch(len(rows.x)),
            learning_rate=options.learning_rate,
            patience=options.patience,
            num_restarts=options.num_restarts,
        )
        trained = train(make, lambda number: rows, held, settings, self.seeds, devices.watched(watch), devices)
        if trained.ending.failed:
            warnings.warn(f"the fit of {name} is not finished: {trained.ending.why}", UserWarning, stacklevel=5)
        test = None
        if len(tested.x):
            log_prob = jax.jit(lambda rows: log_prob_rows(trained.bijection, rows, base))(tested)
            test = Score.of(np.asarray(log_prob, np.float64), tested.weights)
        return trained.bijection, _report(
            trained, Score.of(np.asarray(trained.log_prob, np.float64), held.weights), test
        )


def fit_mixed(
    fit_density: Callable[..., Any],
    rng_key: PRNGKeyArray,
    data: Any,
    support: Any,
    *,
    flow: Recipe | FlowDistribution,
    base: dist.Distribution | None,
    condition: ArrayLike | None,
    weights: ArrayLike | None,
    checkpoint: str | os.PathLike | None,
    options: Options,
) -> MixedDistribution:
    """`fit_density` for supports that are discrete or `constraints.circular`; it is passed in, to fit the real columns.

    All parts are trained on the same rows. A checkpoint has a file for each part, whose name ends in that of the part.
    """
    if isinstance(flow, FlowDistribution | MixedDistribution):
        raise ValueError(
            f"flow expected a recipe for data with angles or whole numbers, got {described(flow)}, and training of "
            "such a distribution cannot continue: leave flow out"
        )
    of_kinds = take_apart(data, support)
    if base is not None and of_kinds.linear is None:
        raise ValueError("base expected None for data without real columns, got a distribution: leave it out")
    conditions = checked_condition(condition, len(of_kinds.values))
    conditions = np.zeros((len(of_kinds.values), 0)) if conditions is None else conditions
    all_weights = checked_weights(weights, of_kinds.values)
    while of_kinds.linear is not None:  # until none is left: the real columns' fit must not leave out any more
        with warnings.catch_warnings(action="ignore"):  # the real columns' fit has the same
            observations = observe(*of_kinds.linear)
        near = near_rows(observations, np.hstack([_turns(of_kinds), conditions]), all_weights)
        if near.all():
            break
        of_kinds, conditions, all_weights = of_kinds.only(near), conditions[near], all_weights[near]
    num, seeds = len(of_kinds.values), Seeds.of(rng_key)
    # the same split as that of the real columns, whose key this is
    parts_of_rows = _Split(*split(seeds.rng("split"), num, options.validation, options.test))
    training = _Training(parts_of_rows, all_weights, seeds, options, checkpoint)
    fits: dict[str, DensityFit] = {}
    discrete, codes = None, np.zeros((num, 0))
    if of_kinds.columns.discrete:
        discrete, codes, fits["discrete"] = _fit_discrete(training, of_kinds, conditions)
    angles = None
    if of_kinds.columns.angles:
        turned = np.asarray(wrap(jnp.asarray(of_kinds.values[:, list(of_kinds.columns.angles)])))
        recipe = recipe_of_angles(flow, alone=of_kinds.linear is None, dim=turned.shape[1])
        angles, fits["angles"] = _fit_angles(training, recipe, turned, np.hstack([codes, conditions]))
    linear = None
    if of_kinds.linear is not None:
        seen = np.hstack([codes, _turns(of_kinds), conditions])
        rows, inside = of_kinds.linear
        linear = fit_density(
            rng_key,
            rows,
            flow=flow,
            base=base,
            condition=seen if seen.shape[1] else None,
            support=inside,
            weights=all_weights,
            checkpoint=checkpoint_of(checkpoint, "linear"),
            **options._asdict(),
        )
        fits["linear"] = linear.fit
    mixed = MixedDistribution(of_kinds.columns, discrete, angles, linear, cond_dim=conditions.shape[1])
    held, test = (_whole_score(mixed, of_kinds.values, conditions, training, index) for index in parts_of_rows[1:])
    mixed.fit = _summed(fits, held, test)
    return mixed


def require_likelihood(objective: str | FlowMatching, dequantize: Any, embedding: Any, **shares: float) -> None:
    """Raise a ValueError for options that do not work with angles or whole numbers."""
    if embedding is not None:
        raise ValueError(
            "embedding expected None for data with angles or whole numbers, got "
            f"{described(embedding)}: leave it out, and give condition as an array (num, cond_dim)"
        )
    if objective != "maximum_likelihood":
        raise ValueError(
            "objective expected 'maximum_likelihood' for data with angles or whole numbers, got "
            f"{objective if isinstance(objective, str) else described(objective)!r}: leave it out"
        )
    for name, share in shares.items():
        if share:
            raise ValueError(f"{name} expected 0 for data with angles or whole numbers, got {share}: leave it out")
    if dequantize:
        raise ValueError(
            "dequantize expected False for angles or whole numbers, got True: discrete columns have exact "
            "probabilities. Leave it out"
        )


def checkpoint_of(checkpoint: str | os.PathLike | None, part: str) -> str | None:
    """The file of a part's training."""
    return None if checkpoint is None else f"{os.fspath(checkpoint)}.{part}"


def _fit_discrete(
    training: _Training, data: MixedData, conditions: Float[np.ndarray, "num cond_dim"]
) -> tuple[DiscreteFactor, Float[np.ndarray, "num code"], DensityFit]:
    """The factor of the discrete columns, and their codes for later factors."""
    values = data.values[:, list(data.columns.discrete)]
    loc, scale = mean_and_deviation(conditions[training.split.train], training.weights[training.split.train])
    index = training.split.train
    make = maker(data.bounds, values[index], training.weights[index], conditions.shape[1])
    trained, fit = training.run("discrete", make, values, (conditions - loc) / scale, no_base(values.shape[1]))
    factor = DiscreteFactor(trained.columns, jnp.asarray(loc, float), jnp.asarray(scale, float))
    return factor, np.asarray(factor.encode(jnp.asarray(values, float))), fit


def _fit_angles(
    training: _Training,
    recipe: Recipe,
    angles: Float[np.ndarray, "num dim"],
    conditions: Float[np.ndarray, "num cond_dim"],
) -> tuple[FlowDistribution, DensityFit]:
    dim, cond_dim = angles.shape[1], conditions.shape[1]
    options = {"cond_dim": cond_dim} if cond_dim else {}
    loc, scale = mean_and_deviation(conditions[training.split.train], training.weights[training.split.train])
    bijection, fit = training.run(
        "angles", lambda key: recipe(key, dim, **options), angles, (conditions - loc) / scale, uniform_angles(dim)
    )
    whole: AbstractBijection = StandardizedCondition(bijection, loc, scale) if cond_dim else bijection
    flow = FlowDistribution(whole, uniform_angles(dim))
    flow.fit = fit
    return flow, fit


def _turns(data: MixedData) -> Float[np.ndarray, "num twice"]:
    """The angles as real columns see them: cosines, then sines."""
    angles = data.values[:, list(data.columns.angles)]
    return np.hstack([np.cos(angles), np.sin(angles)])


def _whole_score(
    mixed: MixedDistribution, values: Any, conditions: Any, training: _Training, index: Int[np.ndarray, " some"]
) -> Score | None:
    """Score of whole rows, by the density that users get."""
    if not len(index):
        return None
    rows = training.rows(values, conditions, index)

    def log_prob(row: tuple[Any, Any]) -> Any:
        event = row[0].reshape(mixed.event_shape)
        return (mixed.given(row[1]) if mixed.cond_dim else mixed).log_prob(event)

    log_probs = jax.jit(lambda rows: jax.lax.map(log_prob, rows, batch_size=_BLOCK))(rows[:2])
    return Score.of(np.asarray(log_probs, np.float64), np.asarray(rows.weights, np.float64))


def _report(trained: Trained, held_out: Score, test: Score | None) -> DensityFit:
    return DensityFit(
        losses=trained.losses,
        validation=trained.validation,
        steps=trained.steps,
        held_out=held_out,
        test=test,
        seconds={"preparation": 0.0, **trained.seconds},
        num_skipped=trained.num_skipped,
        why=trained.ending.why,
        reason=str(trained.ending.reason),
        solver=None,
        baselines={},
        kept="flow",
    )


def _summed(fits: dict[str, DensityFit], held_out: Score | None, test: Score | None) -> MixedFit:
    assert held_out is not None
    return MixedFit(
        held_out=held_out,
        test=test,
        seconds={
            key: sum(fit.seconds.get(key, 0.0) for fit in fits.values())
            for key in ("preparation", "compilation", "training")
        },
        num_skipped=sum(fit.num_skipped for fit in fits.values()),
        why="; ".join(f"{name}: {fit.why}" for name, fit in fits.items()),
        reason="; ".join(f"{name}: {fit.reason}" for name, fit in fits.items()),
        parts=fits,
    )
