"""The one optimisation loop: Adam in compiled chunks of steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Scalar

from numpyro_flows.recipe import RECIPE

Loss = Callable[[PyTree, PRNGKeyArray], Scalar]
"""`loss(params, rng_key)`: a scalar to minimise, differentiable in `params`."""

# array by array: as one flat vector (`optax.flatten`) 400,000 parameters took three times as long a step, for a tenth
# of a second less to compile
_OPTIMIZER = optax.chain(optax.clip_by_global_norm(RECIPE.clip_norm), optax.scale_by_adam())


class TrainState(NamedTuple):
    """What a chunk of steps carries on: parameters and the optimiser's moments."""

    params: PyTree
    optimizer: optax.OptState

    @classmethod
    def init(cls, params: PyTree) -> "TrainState":
        # Adam's moments and counts start at zero; NumPy makes them without compiling a function for each shape
        shapes = jax.eval_shape(_OPTIMIZER.init, params)
        return cls(params, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))


def train_chunk(
    loss: Loss, state: TrainState, keys: PRNGKeyArray, learning_rates: Float[Array, " steps"]
) -> tuple[TrainState, Float[Array, " steps"], Int[Array, ""]]:
    """Take one step for each key and learning rate, in one `lax.scan`.

    A step whose loss or gradient is not finite changes nothing and is counted. The schedule is data: chunks of one
    length share one compiled function whatever the number of steps in all.

    Returns:
        the state after the last step, the losses of shape `(steps,)`, and the number of steps skipped.
    """

    def step(state: TrainState, inputs: tuple[Array, Array]) -> tuple[TrainState, tuple[Array, Bool[Array, ""]]]:
        key, learning_rate = inputs
        value, gradient = jax.value_and_grad(loss)(state.params, key)
        updates, optimizer = _OPTIMIZER.update(gradient, state.optimizer)
        params = jax.tree.map(lambda p, u: p - learning_rate.astype(p.dtype) * u, state.params, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), TrainState(params, optimizer), state)
        return new_state, (value, ~finite)

    state, (losses, skipped) = jax.lax.scan(step, state, (keys, learning_rates))
    return state, losses, skipped.sum()


def cosine_schedule(num_steps: int, peak: float, *, warmup: float = RECIPE.warmup) -> Float[np.ndarray, " steps"]:
    """Learning rates of `num_steps` steps: linear up to `peak` over a share `warmup` of them, then a cosine to 0."""
    progress = (np.arange(num_steps) + 1.0) / (num_steps + 1.0)
    decay = 0.5 * (1.0 + np.cos(np.pi * (progress - warmup) / (1.0 - warmup)))
    return peak * np.where(progress < warmup, progress / warmup, decay)
