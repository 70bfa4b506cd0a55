"""The host loop by itself: tasks in plain NumPy, whose parameter is the number of chunks that trained it."""

import math
from typing import Any

import jax
import numpy as np
import pytest
from tqdm.auto import tqdm

from numpyro_flows.training.loop import State, run
from numpyro_flows.training.policies import Patience, Score
from numpyro_flows.training.reasons import Reason
from numpyro_flows.training.steps import TrainState


class Counting:
    """Each chunk of three steps adds one; `scores` are said after the start and each round, then nothing better.

    `raising` maps names of calls, such as `("score", 1)` for that after the first round, to what they raise.
    """

    chunk = 3

    def __init__(self, *scores: float, loss: float = 1.0, raising: dict[tuple[str, int], BaseException] | None = None):
        self.scores = [*scores, *[math.inf] * 100]
        self.loss = loss
        self.raising = raising or {}
        self.rates: list[np.ndarray] = []
        self.calls = {"train": 0, "score": 0}

    def call(self, name: str) -> int:
        number = self.calls[name]
        self.calls[name] += 1
        if (name, number) in self.raising:
            raise self.raising[name, number]
        return number

    def train(self, state: State, planned: Any, rates: np.ndarray) -> Any:
        self.call("train")
        self.rates.append(rates)
        return state.train._replace(params=state.train.params + 1), np.full(3, self.loss), 1

    def score(self, state: State) -> Score:
        score = self.scores[self.call("score")]
        best = (score, state.train.params) if score < state.best[0] else state.best
        return Score(score, best, None)

    def shown(self, state: State) -> dict[str, str]:
        return {"best": str(state.best)}

    def run(self, num_steps: int, length: int, patience: float | None = math.inf) -> Any:
        policy = Patience(np.ones(num_steps), length, patience)
        state = State(TrainState(0, ()), None, (math.inf, 0), None)
        return run(self, policy, policy.start(state, self.score(state)), tqdm(disable=True))


def test_steps_that_fill_up_a_chunk_have_no_rate_and_no_loss():
    task = Counting(3.0, 2.0, 1.0)
    state, ending = task.run(7, length=4)
    np.testing.assert_array_equal(np.concatenate(task.rates), [1, 1, 1, 1, 0, 0, 1, 1, 1])
    assert np.concatenate(state.losses).shape == (7,)
    assert (state.step, state.num_rounds, state.num_skipped) == (7, 2, 3)
    assert state.best == (1.0, 3)
    np.testing.assert_array_equal(state.scores, [3.0, 2.0, 1.0])
    assert ending == (Reason.BUDGET, "all 7 steps taken")


def test_patience():
    """By default as many steps as the best score took, and at least 250."""
    _, ending = Counting(3.0, 2.0).run(10_000, length=3, patience=9)
    assert ending == (Reason.NO_IMPROVEMENT, "stopped because validation did not improve in 9 steps")
    state, ending = Counting(*np.arange(200.0, 100.0, -1.0)).run(10_000, length=3, patience=None)
    assert state.best == (101.0, 99)
    assert ending.why.endswith("in 297 steps")
    _, ending = Counting(3.0).run(10_000, length=3, patience=None)
    assert ending.why.endswith("in 252 steps")


def test_losses_that_are_not_finite():
    state, ending = Counting(3.0, 2.0, loss=np.nan).run(100, length=3)
    assert (state.num_rounds, ending.reason) == (1, Reason.NOT_FINITE)


BROKEN = jax.errors.JaxRuntimeError("out of memory")


@pytest.mark.parametrize(
    ("raising", "reason", "best", "num_losses"),
    [
        ({("train", 0): KeyboardInterrupt()}, Reason.INTERRUPTED, (3.0, 0), 0),
        ({("train", 1): KeyboardInterrupt()}, Reason.INTERRUPTED, (2.0, 1), 3),
        ({("train", 1): BROKEN}, Reason.ERROR, (2.0, 1), 3),
        ({("score", 1): KeyboardInterrupt()}, Reason.INTERRUPTED, (1.0, 2), 6),  # and scored again
        ({("score", 1): KeyboardInterrupt(), ("score", 2): KeyboardInterrupt()}, Reason.INTERRUPTED, (3.0, 0), 6),
        ({("score", 1): BROKEN}, Reason.ERROR, (3.0, 0), 6),
        ({("train", 1): KeyboardInterrupt(), ("score", 1): BROKEN}, Reason.ERROR, (3.0, 0), 3),
    ],
)
def test_nothing_is_lost(raising, reason, best, num_losses):
    state, ending = Counting(3.0, 2.0, 1.0, raising=raising).run(12, length=6)
    assert ending.reason == reason
    assert state.best == best
    assert sum(map(len, state.losses)) == num_losses


def test_ctrl_c_between_two_rounds(monkeypatch):
    calls = iter([False, True])
    update = Patience.update

    def interrupted_update(self: Patience, state: State, score: Score) -> State:
        if next(calls):
            raise KeyboardInterrupt
        return update(self, state, score)

    monkeypatch.setattr(Patience, "update", interrupted_update)
    state, ending = Counting(3.0, 2.0, 1.0).run(12, length=6)
    assert (state.best, ending.reason) == ((2.0, 2), Reason.INTERRUPTED)
    assert sum(map(len, state.losses)) == 12
