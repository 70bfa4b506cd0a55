"""All that a run of training is."""

from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from numpyro_flows.training.steps import TrainState


class State(NamedTuple):
    """All that a run is.

    train: parameters, and the optimiser's moments.
    fixed: the arrays that steps leave as they are; between rounds a policy may change them.
    best: what would be returned now, with its score, as the task has it.
    plan: what the policy keeps in mind, numbers of fixed kinds.
    step: steps taken in the rounds before this one.
    part: compiled chunks taken of this round.
    num_rounds: rounds that are over; with `part` it numbers the seeds.
    num_skipped: steps left out as their loss or gradient was not finite.
    losses: of every step, a chunk an array, along the last axis.
    scores: of every round, and of the start.
    """

    train: TrainState
    fixed: PyTree
    best: PyTree
    plan: PyTree
    step: int = 0
    part: int = 0
    num_rounds: int = 0
    num_skipped: int = 0
    losses: tuple[np.ndarray, ...] = ()
    scores: tuple[np.ndarray, ...] = ()
