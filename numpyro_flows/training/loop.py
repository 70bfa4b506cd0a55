"""The one host loop of all fits: rounds of compiled steps, each scored, until a policy says that it is enough.

A `State` is all that a run is. A `Task` has the compiled functions; a `Policy` decides, from the state alone, which
round comes next or why there is none. What can go wrong on the way (Ctrl-C, errors of the device) is dealt with here.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree
from tqdm.auto import tqdm

from numpyro_flows.training.reasons import INTERRUPTED, Ending, failed
from numpyro_flows.training.steps import TrainState


class State(NamedTuple):
    """All that a run is.

    train: parameters, and the optimiser's moments.
    fixed: the arrays that steps leave as they are; between rounds a policy may change them.
    best: what would be returned now, with its score, as the task has it.
    plan: what the policy keeps in mind.
    step: steps taken in the rounds before this one.
    part: compiled chunks taken of this round.
    num_rounds: rounds that are over.
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


class Round(NamedTuple):
    """Steps at these learning rates; `forward` is the task's: the share of the forward KL, say."""

    rates: Float[np.ndarray, " steps"]
    forward: float = 0.0


class Task(Protocol):
    """The compiled functions of a training.

    chunk: steps of one call of `train`.
    """

    chunk: int

    def train(self, state: State, planned: Round, rates: np.ndarray) -> tuple[TrainState, Any, Any]:
        """The state after chunk number `state.part`, its losses, and the number of steps skipped."""
        ...

    def score(self, state: State) -> Any:
        """What the policy decides by."""
        ...

    def shown(self, state: State) -> dict[str, str]:
        """What the progress bar shows."""
        ...


class Policy(Protocol):
    """Which round comes next; every method is a pure function."""

    def next(self, state: State) -> Round | Ending: ...

    def update(self, state: State, score: Any) -> State:
        """The state after a round with this score: what is kept, and where the next one begins."""
        ...


def run(task: Task, policy: Policy, state: State, progress: tqdm) -> tuple[State, Ending]:
    """Train until the policy ends it.

    Ctrl-C, and an error of the device, end the training with a score of what was trained by then; a second Ctrl-C gives
    back what was best before.
    """
    try:
        with progress:
            while True:
                planned = policy.next(state)
                if isinstance(planned, Ending):
                    return state, planned
                trained, ending = _train(task, state, planned, progress)
                if trained.part == 0:
                    return state, ending or INTERRUPTED
                # what is left where the score cannot be had
                state = state._replace(losses=trained.losses, num_skipped=trained.num_skipped)
                score, interrupted = _scored(task, trained)
                ending = ending or (INTERRUPTED if interrupted else None)
                taken = min(trained.part * task.chunk, len(planned.rates))
                state = policy.update(trained, score)
                state = state._replace(step=state.step + taken, part=0, num_rounds=state.num_rounds + 1)
                if ending is not None:
                    return state, ending
                progress.set_postfix(task.shown(state))
    except KeyboardInterrupt:
        return state, INTERRUPTED
    except jax.errors.JaxRuntimeError as error:
        return state, failed(error)


def _train(task: Task, state: State, planned: Round, progress: tqdm) -> tuple[State, Ending | None]:
    """The state after a round's chunks, and what ended it early, if anything did."""
    num_steps = len(planned.rates)
    num_chunks = -(-num_steps // task.chunk)
    # the steps that fill up the last chunk have learning rate 0
    rates = np.pad(planned.rates, (0, num_chunks * task.chunk - num_steps)).astype(jnp.result_type(float))
    try:
        while state.part < num_chunks:
            first = state.part * task.chunk
            train, losses, skipped = jax.block_until_ready(
                task.train(state, planned, rates[first : first + task.chunk])
            )
            taken = min(task.chunk, num_steps - first)
            state = state._replace(
                train=train,
                part=state.part + 1,
                num_skipped=state.num_skipped + int(np.sum(skipped)),
                losses=(*state.losses, np.asarray(losses)[..., :taken]),
            )
            progress.update(taken)
            progress.set_postfix(task.shown(state))
    except KeyboardInterrupt:
        return state, INTERRUPTED
    except jax.errors.JaxRuntimeError as error:
        return state, failed(error)
    return state, None


def _scored(task: Task, state: State) -> tuple[Any, bool]:
    """The score, and whether Ctrl-C came meanwhile: it is then computed again, so that what was trained is not lost."""
    try:
        return task.score(state), False
    except KeyboardInterrupt:
        return task.score(state), True
