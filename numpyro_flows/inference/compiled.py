"""The compiled functions of a fit: starts, steps of training, draws."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpyro.infer.initialization import init_to_sample, init_to_uniform

from numpyro_flows.bijections import AbstractBijection, Chain, Frozen
from numpyro_flows.bijections.compose import trained_and_fixed
from numpyro_flows.continuous.training_form import (
    continuous_flows,
    in_training,
    with_training_solver,
    without_errors,
)
from numpyro_flows.inference.certificate import Draws
from numpyro_flows.inference.losses import Objective
from numpyro_flows.inference.minibatch import Minibatch
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.target import Fitted
from numpyro_flows.modeling.guides import AutoFlow, affine
from numpyro_flows.modeling.scoring import standard_normal_log_prob
from numpyro_flows.precision import full_precision
from numpyro_flows.training.ahead import NO_OPTIMIZATION, Ahead, prototype
from numpyro_flows.training.devices import ONE_DEVICE, Devices
from numpyro_flows.training.seeds import Seed, SeedRows, seed_key
from numpyro_flows.training.steps import Optimizer, TrainState, train_chunk


class FlowFunctions(NamedTuple):
    """The functions of the flow stage. A bijection's `arrays` are `params`, the trained part, and `fixed`, the rest.

    make: loc, scale, seed -> arrays of an untrained flow around that Gaussian, which stays fixed. The trained part maps
        coordinates in which the Gaussian is standard, so that one learning rate fits all.
    begin: params -> `TrainState`, before the first step.
    train: `TrainState`, fixed, seeds `(chunk, 4)`, learning rates `(chunk,)`, share of the forward KL -> `TrainState`,
        losses `(chunk,)`, number skipped.
    draw: arrays, seed -> `Block`.
    log_prob: arrays, points `(block, dim)` -> the flow's log densities `(block,)`.
    draw_coarsely: like `draw`, by the ODE solver of training; None if the flow has no solver.
    static: the bijection without its arrays.
    """

    make: Ahead
    begin: Ahead
    train: Ahead
    draw: Ahead
    log_prob: Ahead
    draw_coarsely: Ahead | None
    static: AbstractBijection


def compile_flow(
    pool: Executor,
    target: Fitted,
    guide: AutoFlow,
    scale: np.ndarray,
    objective: Objective,
    optimizer: Optimizer,
    settings: FlowVISettings,
    devices: Devices = ONE_DEVICE,
    minibatch: Minibatch | None = None,
) -> FlowFunctions:
    """Trace the functions one after the other, as Python must, while XLA compiles traced ones in other threads.

    Particles, draws and points are shared among the devices. Training steps with a `minibatch` minimise only the
    reverse KL. An error common to all particles of a step would change the weights of the forward KL.
    """
    seed = np.zeros(4, np.uint32)
    loc = np.zeros(target.dim, scale.dtype)

    def whitened(seed: Seed, loc: Array, scale: Array) -> Chain:
        unit = jnp.ones_like(scale) if scale.ndim == 1 else jnp.eye(loc.size, dtype=scale.dtype)
        flow = guide.make_bijection(seed_key(seed), jnp.zeros_like(loc), unit)
        return Chain([*flow.bijections, Frozen(affine(loc, scale))])

    shapes = prototype(whitened, seed, loc, scale)
    is_array = jax.tree.map(lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct), shapes)
    arrays, static = eqx.partition(shapes, is_array)
    params, fixed = trained_and_fixed(arrays)

    def make(loc: Array, scale: Array, seed: Seed) -> PyTree:
        return eqx.filter(whitened(seed, loc, scale), is_array)

    def train(state: TrainState, fixed: PyTree, seeds: SeedRows, learning_rates: Array, forward: Array) -> Any:
        def loss(params: PyTree, key: PRNGKeyArray) -> Array:
            base = devices.sharded(jax.random.normal(key, (settings.num_particles, target.dim)))
            bijection = in_training(eqx.combine(params, fixed, static), key)
            if minibatch is None:
                return objective(bijection, target.log_density, base, forward, settings)
            log_density = minibatch.log_density(target, jax.random.fold_in(key, 1))
            return objective(bijection, log_density, base, 0.0, settings)

        return train_chunk(loss, state, seed_key(seeds), learning_rates, optimizer)

    begin = partial(TrainState.init, optimizer=optimizer)
    state = jax.eval_shape(begin, params)
    seeds = np.zeros((settings.chunk, 4), np.uint32)
    coarse = None
    if continuous_flows(shapes):
        draw_coarsely = drawing(target, static, settings.block, with_training_solver, devices)
        coarse = Ahead(pool, draw_coarsely, arrays, seed, mesh=devices.mesh)
    draw = drawing(target, static, settings.block, devices=devices)
    points = np.zeros((settings.block, target.dim), scale.dtype)
    rates = jnp.zeros(settings.chunk)
    return FlowFunctions(
        train=Ahead(pool, train, state, fixed, seeds, rates, jnp.zeros(()), mesh=devices.mesh),
        make=Ahead(pool, make, loc, scale, seed, options=NO_OPTIMIZATION),
        begin=Ahead(pool, begin, params, options=NO_OPTIMIZATION),
        draw=Ahead(pool, draw, arrays, seed, mesh=devices.mesh),
        log_prob=Ahead(pool, scoring(static, devices), arrays, points, mesh=devices.mesh),
        draw_coarsely=coarse,
        static=static,
    )


def compile_starts(pool: Executor, target: Fitted, init_loc_fn: Callable) -> Ahead:
    """Seed -> one start by a NumPyro strategy; by the default one (uniform starts, drawn by NumPy) a prior draw."""
    strategy = init_to_sample if init_loc_fn is init_to_uniform else init_loc_fn

    def start(seed: Seed) -> Array:
        return target.start(seed_key(seed), strategy)

    return Ahead(pool, start, np.zeros(4, np.uint32), options=NO_OPTIMIZATION)


Block = tuple[Float[Array, "block dim"], Float[Array, " block"], Float[Array, " block"]]
"""The fields of `Draws`, on the device."""


def drawing(
    target: Fitted,
    static: AbstractBijection,
    num: int,
    change: Callable[[AbstractBijection], AbstractBijection] = without_errors,
    devices: Devices = ONE_DEVICE,
) -> Callable[[PyTree, Seed], Block]:
    """The function that draws `num` events from the bijection of given arrays, or from `change` of it."""

    @full_precision()
    def draw(arrays: PyTree, seed: Seed) -> Block:
        base = devices.sharded(jax.random.normal(seed_key(seed), (num, target.dim)))
        bijection = change(eqx.combine(arrays, static))
        x, log_det = jax.vmap(bijection.transform_and_log_det)(base)
        log_density = jax.vmap(target.log_density)(x)
        return x, log_density, log_density - standard_normal_log_prob(base) + log_det

    return draw


def scoring(
    static: AbstractBijection, devices: Devices = ONE_DEVICE
) -> Callable[[PyTree, Float[Array, "num dim"]], Float[Array, " num"]]:
    """The function that gives log densities of points under the bijection of given arrays."""

    @full_precision()
    def log_prob(arrays: PyTree, x: Float[Array, "num dim"]) -> Float[Array, " num"]:
        base, log_det = jax.vmap(without_errors(eqx.combine(arrays, static)).inverse_and_log_det)(devices.sharded(x))
        return standard_normal_log_prob(base) + log_det

    return log_prob


def join(blocks: Iterable[Block]) -> Draws:
    """Draws from blocks, joined in NumPy, because JAX would compile a function for each number of draws."""
    return Draws(*(np.concatenate(leaves) for leaves in zip(*blocks)))
