"""Rounds of equal length, until a score no longer improves."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from numpyro_flows.training.loop import Round
from numpyro_flows.training.reasons import Ending, Reason
from numpyro_flows.training.state import State

_LEAST_PATIENCE = 250  # steps


class Score(NamedTuple):
    """The score of a task after a round.

    value: smaller values are better; an array for trainings that run side by side.
    best: the best state so far, in the task's form.
    fixed: the arrays that the next round holds fixed.
    """

    value: Any
    best: PyTree
    fixed: PyTree


@dataclass(frozen=True, eq=False)
class Patience:
    """Rounds of `length` steps at `rates`, until no score was better in `patience` steps.

    By default `patience` is the number of steps to the best score, and at least 250.
    """

    rates: Float[np.ndarray, " steps"]
    length: int
    patience: float | None = None

    def start(self, state: State, score: Score) -> State:
        """The state before the first round: its plan is the number of steps since the best score."""
        return state._replace(plan=0, best=score.best, fixed=score.fixed, scores=(np.asarray(score.value),))

    def next(self, state: State) -> Round | Ending:
        since, num_steps = state.plan, len(self.rates)
        if state.losses and not np.isfinite(state.losses[-1]).any():
            return Ending(Reason.NOT_FINITE, "stopped because the loss is not finite")
        best_after = self.length * state.num_rounds - since
        if since >= (max(best_after, _LEAST_PATIENCE) if self.patience is None else self.patience):
            return Ending(Reason.NO_IMPROVEMENT, f"stopped because validation did not improve in {since} steps")
        if state.step == num_steps:
            return Ending(Reason.BUDGET, f"all {num_steps} steps taken")
        return Round(self.rates[state.step : state.step + self.length])

    def update(self, state: State, score: Score) -> State:
        better = np.any(np.asarray(score.value) < np.nanmin([np.full_like(score.value, np.inf), *state.scores], axis=0))
        since = 0 if better else state.plan + self.length
        scores = (*state.scores, np.asarray(score.value))
        return state._replace(plan=since, best=score.best, fixed=score.fixed, scores=scores)
