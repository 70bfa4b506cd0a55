"""The one host loop of all fits: rounds of compiled steps, each scored, until a policy ends them.

A `State` is the whole state of a run. A `Task` has the compiled functions. A `Policy` decides, from the state alone,
which round comes next, or why there is none. This module handles interruptions: Ctrl-C and errors of the device.
"""

import logging
import warnings
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from numpyro_flows.training.checkpoint import Checkpoint
from numpyro_flows.training.reasons import INTERRUPTED, Ending, Reason, failed
from numpyro_flows.training.state import State
from numpyro_flows.training.steps import TrainState
from numpyro_flows.training.watch import Progress, Watch

_LOG = logging.getLogger("numpyro_flows")


class Round(NamedTuple):
    """Steps at these learning rates; `forward` is for the task, such as the weight of the forward KL."""

    rates: Float[np.ndarray, " steps"]
    forward: float = 0.0


class Task(Protocol):
    """The compiled functions of a training."""

    @property
    def chunk(self) -> int:
        """Steps of one call of `train`."""
        ...

    def train(self, state: State, planned: Round, rates: np.ndarray) -> tuple[TrainState, Any, Any]:
        """The state after chunk number `state.part`, its losses, and the number of steps skipped."""
        ...

    def score(self, state: State) -> Any:
        """The score that the policy decides by."""
        ...

    def figures(self, state: State) -> dict[str, float]:
        """The figures of the best state so far, for the progress bar and callbacks."""
        ...


class Policy(Protocol):
    """The choice of the next round; every method is a pure function."""

    def next(self, state: State) -> Round | Ending: ...

    def update(self, state: State, score: Any) -> State:
        """The state after a round with this score: the best result, and the start of the next round."""
        ...


def run(
    task: Task, policy: Policy, state: State, *, watch: Watch, checkpoint: Checkpoint, num_steps: int, title: str
) -> tuple[State, Ending]:
    """Train until the policy ends it, starting from the checkpoint if there is one.

    Ctrl-C, and an error of the device, end the training with a score of the state so far; a second Ctrl-C returns the
    best state before. The checkpoint then has the training state without the early score.
    """
    state = checkpoint.resume(state)
    initial = min(state.step + state.part * task.chunk, num_steps)
    progress = tqdm(total=num_steps, initial=initial, desc=title, unit="step", disable=not watch.progress_bar)
    enough: Ending | None = None
    try:
        with progress, checkpoint.written_on_sigterm():
            while True:
                planned = policy.next(state)
                planned = enough if enough and isinstance(planned, Round) else planned
                if isinstance(planned, Ending):
                    return state, planned
                trained, ending = _train(task, state, planned, progress, checkpoint, watch)
                if trained.part == 0:
                    return state, ending or INTERRUPTED
                # the best state before, if the score cannot be computed
                state = state._replace(losses=trained.losses, num_skipped=trained.num_skipped)
                score, interrupted = _scored(task, trained)
                ending = ending or (INTERRUPTED if interrupted else None)
                taken = min(trained.part * task.chunk, len(planned.rates))
                state = policy.update(trained, score)
                state = state._replace(step=state.step + taken, part=0, num_rounds=state.num_rounds + 1)
                if ending is not None:
                    return state, ending
                checkpoint.keep(state)
                checkpoint.write()
                figures = task.figures(state)
                progress.set_postfix(figures)
                _LOG.debug("%s, step %d: %s", title, state.step, figures)
                enough = _called(watch, task, state, -(-taken // task.chunk))
    except KeyboardInterrupt:
        return state, INTERRUPTED
    except jax.errors.JaxRuntimeError as error:
        return state, failed(error)
    finally:
        checkpoint.write()


def _called(watch: Watch, task: Task, state: State, num_chunks: int) -> Ending | None:
    """The ending caused by a callback, if it ends the fit."""
    if watch.callback is None:
        return None
    losses = np.concatenate(state.losses[-num_chunks:], axis=-1)
    try:
        answer = watch.callback(Progress(state.step, losses, task.figures(state)))
    except Exception as error:
        warnings.warn(f"the callback raised {error!r}, so the fit ended", UserWarning, stacklevel=2)
        return failed(error)
    stop = np.asarray(answer)  # of JAX's or NumPy's booleans too
    return Ending(Reason.CALLBACK, "stopped by the callback") if stop.dtype == bool and stop.all() else None


def _train(
    task: Task, state: State, planned: Round, progress: tqdm, checkpoint: Checkpoint, watch: Watch
) -> tuple[State, Ending | None]:
    """The state after a round's chunks, and what ended it early, if anything did."""
    num_steps = len(planned.rates)
    num_chunks = -(-num_steps // task.chunk)
    figures = task.figures(state)  # of the best state, which the bar shows during the next round too
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
            checkpoint.keep(state)
            progress.update(taken)
            progress.set_postfix(figures | {"loss": float(np.mean(state.losses[-1]))})
            if watch.check is not None:
                watch.check()
    except KeyboardInterrupt:
        return state, INTERRUPTED
    except jax.errors.JaxRuntimeError as error:
        return state, failed(error)
    return state, None


def _scored(task: Task, state: State) -> tuple[Any, bool]:
    """The score, and whether Ctrl-C came meanwhile; then the score is computed again, so that no training is lost."""
    try:
        return task.score(state), False
    except KeyboardInterrupt:
        return task.score(state), True
