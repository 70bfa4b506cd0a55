"""From a checked table to its density: prepare, train, compare with simple densities, and score."""

import time
import warnings

import jax
import numpy as np
from jaxtyping import ArrayLike, Float
from scipy.special import stdtrit

from numpyro_flows.bijections import AbstractBijection, Identity
from numpyro_flows.bijections.noise import estimates
from numpyro_flows.density.base import Base
from numpyro_flows.density.baselines import Baselines, blank_base, in_double
from numpyro_flows.density.conditions import through
from numpyro_flows.density.fitting import Settings, Trained, train
from numpyro_flows.density.losses import log_prob_rows
from numpyro_flows.density.preparation import Preparation
from numpyro_flows.density.recipes import maker
from numpyro_flows.density.result import DensityFit, Score
from numpyro_flows.density.table import Table
from numpyro_flows.flows import Recipe
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.training.devices import Devices
from numpyro_flows.training.watch import Watch

_CONFIDENCE, _LEAST_GAIN = 0.95, 0.01  # nats by which a flow must be better than the mixture to be kept
_CLOSE = 0.02  # nats by which training's solver may differ from the flow's own at the end


def estimate(
    table: Table,
    flow: Recipe | FlowDistribution,
    settings: Settings,
    watch: Watch,
    devices: Devices,
    *,
    chooses_base: bool,
) -> FlowDistribution:
    """The flow trained on the table, or the mixture of Gaussians if the flow was not better.

    `chooses_base`: whether training starts from such a mixture, if there is no condition.
    """
    began = time.perf_counter()
    seeds, is_new = table.seeds, not isinstance(flow, FlowDistribution)
    first, log_det = table.draw(table.train, "to train on")
    layout = None if table.conditions is None else table.conditions.layout
    preparation = Preparation.of(first, seeds, layout) if is_new else Preparation.identity(first)
    prepared, of_preparation = preparation.rows(first)
    baselines = None
    if is_new and table.conditions is None:
        baselines = Baselines.of(first, prepared, seeds, mixture=chooses_base)
    on_mixture = baselines is not None and baselines.stacks and settings.matching is None
    if on_mixture:
        settings = settings._replace(base=blank_base(prepared.x.shape[1]))
    first_volume = np.mean(first.weights * (log_det + of_preparation))
    del first, log_det, of_preparation  # as large as the data
    held, held_log_det = table.draw(table.held, "to stop by")
    held_prepared, of_preparation = preparation.rows(held)
    held_volume = held_log_det + of_preparation
    ready = time.perf_counter()
    trained = train(
        (lambda key: flow.bijection)
        if isinstance(flow, FlowDistribution)
        else maker(through(flow, table.conditions), prepared),
        lambda number: table.round(number, preparation) if table.changes else prepared,
        held_prepared,
        settings,
        seeds,
        watch,
        devices,
        late_base=(lambda: baselines.base) if baselines is not None and on_mixture else None,
    )
    _warn_of(trained)
    scores = {} if baselines is None else baselines.scores(held, held_log_det, preparation)
    kept, held_out = "flow", Score.of(np.asarray(trained.log_prob, np.float64) + held_volume, held.weights)
    bijection, base = trained.bijection, trained.base
    mixture = baselines.mixture if baselines is not None and on_mixture else None
    if baselines is not None and mixture is not None:
        base = mixture.distribution  # without what it was filled with
        if not _better(trained.log_prob, mixture.log_prob(in_double(held_prepared).x), held.weights):
            everything = table.draw(np.concatenate([table.train, table.held]), "to train on at last")[0]
            kept, held_out, bijection = "mixture", scores["mixture"], Identity(bijection.shape)
            base = baselines.refitted(everything, preparation, seeds).distribution
    whole = preparation.fold(bijection) if is_new else bijection
    density = FlowDistribution(whole, base, constrain=table.observations.constrain)
    density.fit = DensityFit(
        losses=trained.losses - first_volume,
        validation=trained.validation - np.mean(held.weights * held_volume),
        steps=trained.steps,
        held_out=held_out,
        test=_tested(table, preparation, bijection, base),
        seconds={"preparation": ready - began, **trained.seconds},
        num_skipped=trained.num_skipped,
        why=trained.ending.why,
        reason=str(trained.ending.reason),
        solver=trained.solver,
        baselines=scores,
        kept=kept,
    )
    return density


def _tested(table: Table, preparation: Preparation, bijection: AbstractBijection, base: Base) -> Score | None:
    if not len(table.test):
        return None
    rows, log_det = table.draw(table.test, "to test on")
    rows, of_preparation = preparation.rows(rows)
    log_prob = jax.jit(lambda rows: log_prob_rows(bijection, rows, base))(rows)
    return Score.of(np.asarray(log_prob, np.float64) + log_det + of_preparation, rows.weights)


def _better(flow: ArrayLike, mixture: np.ndarray, weights: Float[np.ndarray, " num"]) -> bool:
    """Whether the flow's densities of the rows are larger by more than chance; training was stopped by these rows."""
    gains = weights * (np.asarray(flow, np.float64) - mixture)
    num = len(gains)
    chance = stdtrit(num - 1, _CONFIDENCE) * gains.std(ddof=1) / np.sqrt(num) if num > 1 else np.inf
    return bool(gains.mean() > max(chance, _LEAST_GAIN))


def _warn_of(trained: Trained) -> None:
    if trained.ending.failed:
        warnings.warn(f"the fit is not finished: {trained.ending.why}", UserWarning, stacklevel=4)
    if trained.solver is not None and abs(trained.solver.gap) > _CLOSE:
        warnings.warn(
            f"the solver of training, of {trained.solver.num_steps} steps, is too coarse: its score of the validation "
            f"rows is off by {trained.solver.gap:.2g} nats; train with penalties or more steps",
            UserWarning,
            stacklevel=4,
        )
    if estimated := estimates(trained.bijection):
        warnings.warn(
            f"log densities of this flow are random estimates: {', '.join(estimated)}", UserWarning, stacklevel=4
        )
