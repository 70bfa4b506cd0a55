"""The one optimisation loop: compiled chunks of steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

Loss = Callable[[PyTree, Any], Scalar]
"""`loss(params, batch)`: a scalar to minimise, differentiable in `params`; a batch is a random key, or rows of data."""

_CLIP_NORM = 10.0  # gradients are clipped to this norm
_WARMUP = 0.1  # share of the steps over which the rate rises

Optimizer = Callable[[float | Array], optax.GradientTransformation]
"""An optimiser of a learning rate, as `optax.adam` is."""


def clipped_adam(learning_rate: float | Array) -> optax.GradientTransformation:
    """Adam with gradients clipped to a norm of 10."""
    # array by array: as one flat vector (`optax.flatten`) 400,000 parameters took three times as long a step, for a
    # tenth of a second less to compile
    return optax.chain(optax.clip_by_global_norm(_CLIP_NORM), optax.adam(learning_rate))


# Averaging covers about 200 steps, fewer at first, so that the start is soon forgotten. On two moons by maximum
# likelihood the average scored 0.02 nats better on fresh rows than the parameters themselves.
_DECAY = 0.995
_FORGETTING = 10


class TrainState(NamedTuple):
    """The state that a chunk of steps carries on: parameters, the optimiser's moments and, if wanted, an average.

    The average of the parameters is exponential, and smooths the noise of minibatches (Polyak, Juditsky 1992).
    """

    params: PyTree
    optimizer: optax.OptState
    average: PyTree | None = None

    @classmethod
    def init(cls, params: PyTree, *, optimizer: Optimizer = clipped_adam, averaged: bool = False) -> "TrainState":
        """The state before the first step."""
        return cls(params, optimizer(0.0).init(params), params if averaged else None)


def train_chunk(
    loss: Loss,
    state: TrainState,
    batches: PyTree,
    learning_rates: Float[Array, " steps"],
    optimizer: Optimizer = clipped_adam,
) -> tuple[TrainState, Float[Array, " steps"], Int[Array, ""]]:
    """Take one step for each of `batches` and each learning rate, in one `lax.scan`.

    The arrays of `batches` have a leading axis of steps. A step whose loss or gradient is not finite changes nothing
    and is counted. The learning rates are data, so chunks of one length share one compiled function for any total
    number of steps.

    Returns:
        the state after the last step, the losses of shape `(steps,)`, and the number of steps skipped.
    """

    def step(state: TrainState, inputs: tuple[PyTree, Array]) -> tuple[TrainState, tuple[Array, Bool[Array, ""]]]:
        batch, learning_rate = inputs
        value, gradient = jax.value_and_grad(loss)(state.params, batch)
        updates, moments = optimizer(learning_rate).update(gradient, state.optimizer, state.params)
        params: PyTree = optax.apply_updates(state.params, updates)
        average = None
        if state.average is not None:
            count = optax.tree.get(moments, "count")
            share = jnp.maximum(1 - _DECAY, _FORGETTING / (_FORGETTING + count))
            average = jax.tree.map(lambda a, p: a + share.astype(p.dtype) * (p - a), state.average, params)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        new_state = TrainState(params, moments, average)
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
        return new_state, (value, ~finite)

    state, (losses, skipped) = jax.lax.scan(step, state, (batches, learning_rates))
    return state, losses, skipped.sum()


def cosine_schedule(num_steps: int, peak: float, *, warmup: float = _WARMUP) -> Float[np.ndarray, " steps"]:
    """Learning rates of `num_steps` steps: linear up to `peak` over a share `warmup` of them, then a cosine to 0."""
    progress = (np.arange(num_steps) + 1.0) / (num_steps + 1.0)
    decay = 0.5 * (1.0 + np.cos(np.pi * (progress - warmup) / (1.0 - warmup)))
    return peak * np.where(progress < warmup, progress / warmup, decay)
