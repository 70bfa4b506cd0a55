"""Common parts of the flow benchmarks: a target, training steps of our flows, and timing in turns."""

import statistics
import time
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree, Scalar

from numpyro_flows import FlowDistribution
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.inference.losses import path_loss
from numpyro_flows.training.steps import TrainState, train_chunk

Gradient = Literal["path", "total", "likelihood"]
"""Of the reverse KL without its score term, of the reverse KL by reparametrisation, of the forward KL on draws."""

Run = Callable[[int], object]
"""Takes a number of chunks of training steps, and returns a result to wait for."""

BATCH, RATE = 128, 1e-3


def log_density(x: ArrayLike) -> Scalar:
    """Pairs of coordinates, the second bent by the first: a target whose cost is negligible."""
    x = jnp.asarray(x)
    first, second = x[::2], x[1::2]
    return -0.5 * jnp.sum(first**2 + (second - 0.5 * first**2) ** 2)


def target_draws(key: PRNGKeyArray, num: int, dim: int) -> Float[Array, "num dim"]:
    first, noise = jax.random.normal(key, (2, num, dim // 2))
    return jnp.stack([first, noise + 0.5 * first**2], axis=-1).reshape(num, dim)


def flow_loss(gradient: Gradient, bijection: AbstractBijection, key: PRNGKeyArray, data: Array) -> Scalar:
    """The loss of one step; `data` are draws of the target, for the forward KL."""
    if gradient == "path":
        return path_loss(bijection, log_density, jax.random.normal(key, (BATCH, *bijection.shape)))
    flow = FlowDistribution(bijection, validate_args=False)
    if gradient == "total":
        x, intermediates = flow.sample_with_intermediates(key, (BATCH,))
        return jnp.mean(flow.log_prob(x, intermediates) - jax.vmap(log_density)(x))
    return -jnp.mean(flow.log_prob(data[jax.random.randint(key, (BATCH,), 0, len(data))]))


def train_function(
    gradient: Gradient, bijection: AbstractBijection, chunk: int
) -> tuple[Callable[[TrainState, PRNGKeyArray, Array], TrainState], TrainState]:
    """Our loop, not compiled yet: a function of state, keys and data that takes `chunk` steps, and the first state."""
    params, static = eqx.partition(bijection, eqx.is_inexact_array)

    def train(state: TrainState, keys: PRNGKeyArray, data: Array) -> TrainState:
        def loss(params: PyTree, key: PRNGKeyArray) -> Scalar:
            return flow_loss(gradient, eqx.combine(params, static), key, data)

        return train_chunk(loss, state, keys, jnp.full(chunk, RATE))[0]

    return train, TrainState.init(params)


def training(gradient: Gradient, bijection: AbstractBijection, chunk: int, data: Array) -> Run:
    """Training of one of our flows by our loop, with `chunk` steps in each compiled call."""
    train, start = train_function(gradient, bijection, chunk)
    train, keys = jax.jit(train), jax.random.split(jax.random.key(1), chunk)

    def run(num_chunks: int) -> TrainState:
        state = start
        for _ in range(num_chunks):
            state = train(state, keys, data)
        return state

    return run


def seconds_per_step(sides: dict[str, Run], chunk: int, repeats: int, seconds: float) -> dict[str, float]:
    """Median seconds of a training step; the sides take turns in runs of about `seconds` each.

    Everything is compiled before, by runs that are not counted. The cost of a run before its first step is counted, but
    it is negligible: two chunks take as long in one run as in two.
    """

    def timed(run: Run, num_chunks: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(run(num_chunks))
        return time.perf_counter() - start

    num_chunks = {}
    for name, run in sides.items():
        timed(run, 2)  # a first chunk and a further one may be compiled apart
        num_chunks[name] = max(1, round(seconds / timed(run, 1)))
        if num_chunks[name] > 2:
            timed(run, num_chunks[name])  # FlowJAX makes keys for all steps at once, by a function of their number
    found = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            found[name].append(timed(run, num_chunks[name]) / (num_chunks[name] * chunk))
    return {name: statistics.median(values) for name, values in found.items()}


def num_parameters(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)))


def geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))
