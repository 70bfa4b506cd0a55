"""The state of a training run."""

from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from numpyro_flows.training.steps import TrainState


class State(NamedTuple):
    """The whole state of a training run.

    train: parameters, and the optimiser's moments.
    fixed: the arrays that steps leave unchanged; between rounds a policy may change them.
    best: the result that would be returned now, with its score, in the task's form.
    plan: numbers that the policy remembers, of fixed types.
    step: number of steps taken in the rounds before this one.
    part: number of compiled chunks taken in this round.
    num_rounds: number of finished rounds; with `part` it numbers the seeds.
    num_skipped: number of steps skipped because their loss or gradient was not finite.
    losses: loss of every step, one array for each chunk, along the last axis.
    scores: score of every round, and of the start.
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
