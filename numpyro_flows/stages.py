"""The compiled functions of a fit, compiled side by side."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32
from numpyro.infer.initialization import init_to_uniform

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.gaussian import GaussianFit, fit_gaussian
from numpyro_flows.guides import AutoFlow
from numpyro_flows.objectives import path_loss, standard_normal_log_prob
from numpyro_flows.target import Target
from numpyro_flows.training import TrainState, train_chunk

Seed = UInt32[np.ndarray, "4"]
Seeds = UInt32[np.ndarray, "num 4"]

NUM_STARTS = 8
CHUNK = 100  # steps of one call of `train`: what the progress bar and Ctrl-C wait for
BLOCK = 1000  # draws of one call of `draw` and `constrain`: one compilation serves any number of draws


class Draws(NamedTuple):
    """Draws `x` of a flow with `log p(x, data)` and `log p(x, data) - log q(x)`."""

    x: Float[Array | np.ndarray, "block dim"]
    log_density: Float[Array | np.ndarray, " block"]
    log_weight: Float[Array | np.ndarray, " block"]


# A posterior of everyday size trains in seconds, of which XLA's costlier passes would take a third and win nothing.
_COMPILER_OPTIONS = {"xla_backend_optimization_level": 1}


class Ahead:
    """`function`, traced at once for arguments like `args` and compiled in the background until it is called."""

    def __init__(self, pool: Executor, function: Callable, *args: Any):
        self._compiled = pool.submit(jax.jit(function).lower(*args).compile, _COMPILER_OPTIONS)

    def __call__(self, *args: Any) -> Any:
        return self._compiled.result()(*args)

    def wait(self) -> None:
        """Until the compilation is over."""
        self._compiled.result()


class Stages(NamedTuple):
    """What a fit calls. `arrays` are a bijection's arrays, `params` the trained part of them, `fixed` the rest.

    gaussian: three seeds -> `GaussianFit`, starts `(NUM_STARTS, dim)`, arrays of an untrained flow around the fit.
    train: `TrainState`, fixed, seeds `(CHUNK, 4)`, learning rates `(CHUNK,)`, share of the forward KL
        -> `TrainState`, losses `(CHUNK,)`, number skipped.
    draw: arrays, seed -> `Draws`.
    constrain: x `(BLOCK, dim)` -> dict of sites.
    static: the bijection without its arrays.
    """

    gaussian: Ahead
    train: Ahead
    draw: Ahead
    constrain: Ahead
    static: AbstractBijection


def compile_stages(target: Target, guide: AutoFlow, num_particles: int) -> Stages:
    """Trace the stages one after the other, as Python must, while XLA compiles those traced in other threads."""
    seed = np.zeros(4, np.uint32)
    prototype = _prototype(guide, target.dim, seed)
    is_array = jax.tree.map(lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct), prototype)
    arrays, static = eqx.partition(prototype, is_array)
    params, fixed = split(arrays)

    def gaussian(seeds: Seeds) -> tuple[GaussianFit, Array, PyTree]:
        start_key, fit_key, flow_key = seed_key(seeds)
        starts = _starts(target, guide.init_loc_fn, start_key)
        fit = fit_gaussian(target.log_density, fit_key, starts)
        return fit, starts, eqx.filter(guide.make_bijection(flow_key, fit.loc, fit.scale), is_array)

    def train(state: TrainState, fixed: PyTree, seeds: Seeds, learning_rates: Array, forward: Array) -> Any:
        def loss(params: PyTree, key: PRNGKeyArray) -> Array:
            base = jax.random.normal(key, (num_particles, target.dim))
            return path_loss(eqx.combine(params, fixed, static), target.log_density, base, forward)

        return train_chunk(loss, state, seed_key(seeds), learning_rates)

    pool = ThreadPoolExecutor()
    state = jax.eval_shape(TrainState.init, params)
    stages = Stages(
        gaussian=Ahead(pool, gaussian, np.zeros((3, 4), np.uint32)),
        draw=Ahead(pool, drawing(target, static), arrays, seed),
        train=Ahead(pool, train, state, fixed, np.zeros((CHUNK, 4), np.uint32), jnp.zeros(CHUNK), jnp.zeros(())),
        constrain=Ahead(pool, jax.vmap(target.constrain), jnp.zeros((BLOCK, target.dim))),
        static=static,
    )
    pool.shutdown(wait=False)
    return stages


def drawing(target: Target, static: AbstractBijection) -> Callable[[PyTree, Seed], Draws]:
    """The function that draws a block from the bijection of given arrays."""

    def draw(arrays: PyTree, seed: Seed) -> Draws:
        base = jax.random.normal(seed_key(seed), (BLOCK, target.dim))
        x, log_det = jax.vmap(eqx.combine(arrays, static).transform_and_log_det)(base)
        log_density = jax.vmap(target.log_density)(x)
        return Draws(x, log_density, log_density - standard_normal_log_prob(base) + log_det)

    return draw


def _prototype(guide: AutoFlow, dim: int, seed: Seed) -> AbstractBijection:
    """The guide's bijection with shapes in place of arrays."""
    try:
        with jax.checking_leaks():
            return eqx.filter_eval_shape(guide.make_bijection, seed_key(seed), jnp.zeros(dim), guide.initial_scale(dim))
    except Exception as error:  # JAX has no narrower class for a leak
        if "Leaked" not in str(error):
            raise
        raise ValueError(
            "the guide's flow expected a recipe that JAX can trace, got one that keeps arrays in a closure: make the "
            "bijection before, and give `lambda key, dim: bijection`"
        ) from error


def _starts(target: Target, init_loc_fn: Callable, rng_key: PRNGKeyArray) -> Float[Array, "starts dim"]:
    if init_loc_fn is init_to_uniform:  # the same in one call, which compiles faster than one for each site
        return jax.random.uniform(rng_key, (NUM_STARTS, target.dim), minval=-2.0, maxval=2.0)
    return jax.vmap(lambda key: target.start(key, init_loc_fn))(jax.random.split(rng_key, NUM_STARTS))


def seed_stream(rng_key: PRNGKeyArray) -> Iterator[Seed]:
    """Seeds without end from a key of either style, by NumPy: each shape of `jax.random.split` is a compilation."""
    typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rng_key) if typed else rng_key))
    while True:
        yield rng.integers(2**32, size=4, dtype=np.uint32)


def seed_key(seed: Seed | Seeds) -> PRNGKeyArray:
    """A key, or keys, of XLA's own generator, which compiles and runs in a fraction of Threefry's time."""
    return jax.random.wrap_key_data(jnp.asarray(seed), impl="rbg")


def split(arrays: PyTree) -> tuple[PyTree, PyTree]:
    """A bijection's arrays as those that are trained and the rest (integers: orders and masks)."""
    return eqx.partition(arrays, lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact))
