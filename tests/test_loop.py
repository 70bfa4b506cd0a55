"""The host loop by itself: tasks in plain NumPy, whose parameter is the number of chunks that trained it."""

import math
import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.training.checkpoint import Checkpoint, program
from numpyro_flows.training.loop import run
from numpyro_flows.training.policies import Patience, Score
from numpyro_flows.training.reasons import Reason
from numpyro_flows.training.state import State
from numpyro_flows.training.steps import TrainState
from numpyro_flows.training.watch import Progress, Watch

QUIET = Watch()


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
        self.call("score")
        score = self.scores[state.num_rounds + (state.part > 0)]
        best = (score, state.train.params) if score < state.best[0] else state.best
        return Score(score, best, None)

    def figures(self, state: State) -> dict[str, float]:
        return {"best": state.best[0]}

    def run(
        self,
        num_steps: int,
        length: int,
        patience: float | None = math.inf,
        watch: Watch = QUIET,
        parts: dict[str, Any] | None = None,
    ) -> Any:
        policy = Patience(np.ones(num_steps), length, patience)
        state = State(TrainState(0, ()), None, (math.inf, 0), None)
        checkpoint = Checkpoint(watch.checkpoint, lambda: parts or {})
        return run(
            self,
            policy,
            policy.start(state, self.score(state)),
            watch=watch,
            checkpoint=checkpoint,
            num_steps=num_steps,
            title="counting",
        )


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
        ({("score", 1): KeyboardInterrupt()}, Reason.INTERRUPTED, (2.0, 2), 6),  # and scored again
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


def test_a_callback_is_told_of_each_round_and_may_stop():
    told: list[Progress] = []
    state, ending = Counting(3.0, 2.0, 1.0).run(12, length=4, watch=Watch(callback=told.append))
    assert [progress.step for progress in told] == [4, 8, 12]
    assert [progress.losses.shape for progress in told] == [(4,)] * 3
    assert [progress.figures["best"] for progress in told] == [2.0, 1.0, 1.0]
    assert ending.reason == Reason.BUDGET
    stop = Watch(callback=lambda progress: progress.figures["best"] < 2.5)
    state, ending = Counting(3.0, 2.0, 1.0).run(12, length=4, watch=stop)
    assert (state.step, state.best, ending.reason) == (4, (2.0, 2), Reason.CALLBACK)


@pytest.mark.parametrize(
    ("answer", "stops"),
    [(True, True), (np.True_, True), (jnp.array(True), True), (False, False), (None, False), (1, False), ("a", False)],
)
def test_what_stops(answer, stops):
    _, ending = Counting(3.0, 2.0, 1.0).run(12, length=4, watch=Watch(callback=lambda progress: answer))
    assert ending.reason == (Reason.CALLBACK if stops else Reason.BUDGET)


def test_a_callback_that_raises_loses_nothing():
    with pytest.warns(UserWarning, match=r"the callback raised ZeroDivisionError"):
        state, ending = Counting(3.0, 2.0, 1.0).run(12, length=4, watch=Watch(callback=lambda progress: 1 / 0))
    assert (state.best, ending.reason) == ((2.0, 2), Reason.ERROR)


WHOLE = (3.0, 2.0, 1.5, 1.0)
ROUNDS: dict[str, Any] = {"num_steps": 18, "length": 6}  # three rounds of two chunks


@pytest.mark.parametrize("call", [("train", number) for number in range(6)] + [("score", number) for number in (1, 2)])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), BROKEN, SystemExit()], ids=["ctrl-c", "device", "exit"])
def test_a_run_goes_on_from_its_checkpoint(tmp_path, call, error):
    """Bit for bit, whatever ended it."""
    whole, whole_ending = Counting(*WHOLE).run(**ROUNDS)
    watch = Watch(checkpoint=tmp_path / "run.ckpt")
    first = Counting(*WHOLE, raising={call: error})
    if isinstance(error, SystemExit):
        with pytest.raises(SystemExit):
            first.run(**ROUNDS, watch=watch)
    else:
        first.run(**ROUNDS, watch=watch)
    second = Counting(*WHOLE)
    state, ending = second.run(**ROUNDS, watch=watch)
    assert second.calls["train"] == 6 - (call[1] if call[0] == "train" else 2 * call[1])  # none is trained twice
    assert (state.train.params, state.best, state.step, state.num_skipped) == (6, whole.best, 18, whole.num_skipped)
    np.testing.assert_array_equal(np.concatenate(state.losses), np.concatenate(whole.losses))
    np.testing.assert_array_equal(state.scores, whole.scores)
    assert ending == whole_ending


def test_a_run_that_is_over_is_not_trained_again(tmp_path):
    watch = Watch(checkpoint=tmp_path / "run.ckpt")
    whole = Counting(*WHOLE).run(**ROUNDS, watch=watch)
    again = Counting(*WHOLE)
    assert again.run(**ROUNDS, watch=watch)[1] == whole[1]
    assert again.calls["train"] == 0


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    watch = Watch(checkpoint=tmp_path / "run.ckpt")
    parts = {"data": np.arange(3.0), "setting": (1, None), "key": "some text"}
    Counting(*WHOLE).run(**ROUNDS, watch=watch, parts=parts)
    Counting(*WHOLE).run(**ROUNDS, watch=watch, parts=dict(parts))
    for name, other in {"data": np.arange(3.0) + 1e-9, "setting": (2, None), "key": "some Text"}.items():
        with pytest.raises(ValueError, match=rf"got '.*run.ckpt' of a fit with another {name}: remove the file"):
            Counting(*WHOLE).run(**ROUNDS, watch=watch, parts=parts | {name: other})
    (tmp_path / "run.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="expected a whole file"):
        Counting(*WHOLE).run(**ROUNDS, watch=watch, parts=parts)


def test_what_a_program_is_known_by():
    """Not the order of its equations; but these, in inner functions too, and their constants."""
    x = jnp.ones(2)

    def of(function):
        equations, constants = program(jax.make_jaxpr(function)(x, x))
        return f"{equations} {[np.asarray(constant).tolist() for constant in constants]}"

    def reordered(a, b):
        d, c = jnp.cos(b), jnp.sin(a)
        return c - d

    assert of(lambda a, b: jnp.sin(a) - jnp.cos(b)) == of(reordered)
    others = [
        lambda a, b: jnp.sin(a) - jnp.cos(2.0 * b),
        lambda a, b: jnp.sin(a) - jnp.cos(2.5 * b),
        lambda a, b: jax.lax.cond(a[0] > 0, lambda: jnp.sin(a), lambda: b),
        lambda a, b: jax.lax.cond(a[0] > 0, lambda: jnp.cos(a), lambda: b),
        lambda a, b: a + np.array([1.0, 2.0]),
        lambda a, b: a + np.array([1.0, 2.5]),
    ]
    assert len({of(function) for function in (reordered, *others)}) == len(others) + 1


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    """At the start it is an error; later the fit goes on."""
    with pytest.raises(FileNotFoundError):
        Counting(*WHOLE).run(**ROUNDS, watch=Watch(checkpoint=tmp_path / "no folder" / "run.ckpt"))
    folder = tmp_path / "folder"
    folder.mkdir()
    callback = {3: lambda: folder.rename(tmp_path / "away"), 6: lambda: None}
    watch = Watch(checkpoint=folder / "run.ckpt", callback=lambda progress: callback[progress.step]())
    with pytest.warns(UserWarning, match="could not be written"):
        _, ending = Counting(*WHOLE).run(6, length=3, watch=watch)
    assert ending.reason == Reason.BUDGET


def test_sigterm_writes_first(tmp_path):
    """And then does what it did before."""
    terminated: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(number))
    try:
        watch = Watch(checkpoint=tmp_path / "run.ckpt")
        task = Counting(*WHOLE)
        train = task.train

        def terminated_train(state: State, planned: Any, rates: np.ndarray) -> Any:
            if state.part == 1:
                held = (tmp_path / "run.ckpt").read_bytes()
                signal.raise_signal(signal.SIGTERM)
                assert (tmp_path / "run.ckpt").read_bytes() != held
            return train(state, planned, rates)

        task.train = terminated_train
        task.run(12, length=6, watch=watch)
        assert terminated == [signal.SIGTERM] * 2  # in each round
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_file_is_written(tmp_path, monkeypatch, number):
    """The file that is being written becomes whole, and no other is left."""
    taken: list[int] = []

    def handler(number: int, frame: Any) -> None:
        taken.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt

    before = {each: signal.signal(each, handler) for each in (signal.SIGTERM, signal.SIGINT)}
    fsync, calls = os.fsync, iter(range(100))

    def interrupted_fsync(descriptor: int) -> None:
        if next(calls) == 2:  # of the file, after its first writing and the folder's
            signal.raise_signal(number)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted_fsync)
    try:
        state, _ = Counting(*WHOLE).run(**ROUNDS, watch=Watch(checkpoint=tmp_path / "run.ckpt"))
    finally:
        for each, old in before.items():
            signal.signal(each, old)
    assert taken == [number]
    assert [path.name for path in tmp_path.iterdir()] == ["run.ckpt"]
    again, _ = Counting(*WHOLE).run(**ROUNDS, watch=Watch(checkpoint=tmp_path / "run.ckpt"))
    assert again.train.params == 6
    if number == signal.SIGINT:
        assert state.train.params == 2
