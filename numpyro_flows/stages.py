"""The compiled functions of a fit, compiled side by side."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32
from numpyro.infer.initialization import init_to_sample, init_to_uniform

from numpyro_flows.bijections import AbstractBijection, Chain, Frozen
from numpyro_flows.continuous.training_form import (
    continuous_flows,
    in_training,
    with_training_solver,
    without_errors,
)
from numpyro_flows.guides import AutoFlow, affine
from numpyro_flows.objectives import path_loss, standard_normal_log_prob
from numpyro_flows.precision import full_precision
from numpyro_flows.recipe import RECIPE
from numpyro_flows.sampling import Draws
from numpyro_flows.target import Fitted
from numpyro_flows.training import TrainState, train_chunk

Seed = UInt32[np.ndarray, "4"]
Seeds = UInt32[np.ndarray, "num 4"]


# A posterior of everyday size trains in seconds, of which XLA's costliest passes would take some and win nothing. At
# level 1 LLVM aborts on some loops over broadcast loads ("Cannot select", jax 0.12).
OPTIMIZATION_LEVEL = {"xla_backend_optimization_level": 2}
_NO_OPTIMIZATION = {"xla_backend_optimization_level": 0}  # for what runs a few times only


class Ahead:
    """`function`, traced at once for arguments like `args` and compiled in the background until it is called."""

    def __init__(self, pool: Executor, function: Callable, *args: Any, options: dict[str, Any] = OPTIMIZATION_LEVEL):
        with full_precision():
            lowered = jax.jit(function).lower(*args)
        self._compiled = pool.submit(lowered.compile, options)

    def __call__(self, *args: Any) -> Any:
        return self._compiled.result()(*args)

    def wait(self) -> None:
        """Until the compilation is over."""
        self._compiled.result()


class HostDensity:
    """A target's log density and gradient at any number of points, for algorithms in NumPy; it counts the points."""

    def __init__(self, pool: Executor, target: Fitted):
        self.dtype = np.dtype(jnp.result_type(float))
        self.num_evaluations = 0
        self._evaluate = Ahead(
            pool, jax.vmap(jax.value_and_grad(target.log_density)), np.zeros((RECIPE.batch, target.dim), self.dtype)
        )

    def __call__(self, x: Float[np.ndarray, "points dim"]) -> tuple[np.ndarray, np.ndarray]:
        self.num_evaluations += len(x)
        padded = np.concatenate([x, np.broadcast_to(x[-1:], (-len(x) % RECIPE.batch, x.shape[1]))])
        batches = padded.astype(self.dtype).reshape(-1, RECIPE.batch, x.shape[1])
        values, gradients = zip(*[self._evaluate(batch) for batch in batches])
        return np.concatenate(values)[: len(x)], np.concatenate(gradients)[: len(x)]

    def wait(self) -> None:
        """Until the compilation is over."""
        self._evaluate.wait()


class FlowStages(NamedTuple):
    """What the flow stage calls, of a bijection's `arrays`: `params`, their trained part, and `fixed`, the rest.

    make: loc, scale, seed -> arrays of an untrained flow around that Gaussian, which stays fixed: trained is a map of
        coordinates in which it is standard, so that one learning rate fits all.
    train: `TrainState`, fixed, seeds `(chunk, 4)`, learning rates `(chunk,)`, share of the forward KL
        -> `TrainState`, losses `(chunk,)`, number skipped.
    draw: arrays, seed -> `Block`.
    draw_coarsely: the same by the ODE solver of training; None where nothing is solved.
    static: the bijection without its arrays.
    """

    make: Ahead
    train: Ahead
    draw: Ahead
    draw_coarsely: Ahead | None
    static: AbstractBijection


def compile_flow_stages(
    pool: Executor, target: Fitted, guide: AutoFlow, scale: np.ndarray, num_particles: int
) -> FlowStages:
    """Trace the stages one after the other, as Python must, while XLA compiles those traced in other threads."""
    seed = np.zeros(4, np.uint32)
    loc = np.zeros(target.dim, scale.dtype)

    def whitened(seed: Seed, loc: Array, scale: Array) -> Chain:
        unit = jnp.ones_like(scale) if scale.ndim == 1 else jnp.eye(loc.size, dtype=scale.dtype)
        flow = guide.make_bijection(seed_key(seed), jnp.zeros_like(loc), unit)
        return Chain([*flow.bijections, Frozen(affine(loc, scale))])

    shapes = prototype(whitened, seed, loc, scale)
    is_array = jax.tree.map(lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct), shapes)
    arrays, static = eqx.partition(shapes, is_array)
    params, fixed = split(arrays)

    def make(loc: Array, scale: Array, seed: Seed) -> PyTree:
        return eqx.filter(whitened(seed, loc, scale), is_array)

    def train(state: TrainState, fixed: PyTree, seeds: Seeds, learning_rates: Array, forward: Array) -> Any:
        def loss(params: PyTree, key: PRNGKeyArray) -> Array:
            base = jax.random.normal(key, (num_particles, target.dim))
            bijection = in_training(eqx.combine(params, fixed, static), key)
            return path_loss(bijection, target.log_density, base, forward)

        return train_chunk(loss, state, seed_key(seeds), learning_rates)

    state = jax.eval_shape(TrainState.init, params)
    seeds = np.zeros((RECIPE.chunk, 4), np.uint32)
    coarse = None
    if continuous_flows(shapes):
        coarse = Ahead(pool, drawing(target, static, with_training_solver), arrays, seed)
    return FlowStages(
        train=Ahead(pool, train, state, fixed, seeds, jnp.zeros(RECIPE.chunk), jnp.zeros(())),
        make=Ahead(pool, make, loc, scale, seed, options=_NO_OPTIMIZATION),
        draw=Ahead(pool, drawing(target, static), arrays, seed),
        draw_coarsely=coarse,
        static=static,
    )


def compile_starts(pool: Executor, target: Fitted, init_loc_fn: Callable) -> Ahead:
    """Seed -> one start by a NumPyro strategy; for its default of uniform ones, which NumPy draws, from the prior."""
    strategy = init_to_sample if init_loc_fn is init_to_uniform else init_loc_fn

    def start(seed: Seed) -> Array:
        return target.start(seed_key(seed), strategy)

    return Ahead(pool, start, np.zeros(4, np.uint32), options=_NO_OPTIMIZATION)


Block = tuple[Float[Array, "block dim"], Float[Array, " block"], Float[Array, " block"]]
"""The fields of `Draws`, on the device."""


def drawing(
    target: Fitted,
    static: AbstractBijection,
    change: Callable[[AbstractBijection], AbstractBijection] = without_errors,
) -> Callable[[PyTree, Seed], Block]:
    """The function that draws a block from the bijection of given arrays, or from what `change` makes of it."""

    @full_precision()
    def draw(arrays: PyTree, seed: Seed) -> Block:
        base = jax.random.normal(seed_key(seed), (RECIPE.block, target.dim))
        x, log_det = jax.vmap(change(eqx.combine(arrays, static)).transform_and_log_det)(base)
        log_density = jax.vmap(target.log_density)(x)
        return x, log_density, log_density - standard_normal_log_prob(base) + log_det

    return draw


def join(blocks: Iterable[Block]) -> Draws:
    """Draws from blocks, joined in NumPy: JAX would compile a function for each number of draws."""
    return Draws(*(np.concatenate(leaves) for leaves in zip(*blocks)))


def prototype(make: Callable[..., AbstractBijection], *args: Any) -> AbstractBijection:
    """What `make` would return, with shapes in place of arrays."""
    try:
        with jax.checking_leaks():
            return eqx.filter_eval_shape(make, *args)
    except Exception as error:  # JAX has no narrower class for a leak
        if "Leaked" not in str(error):
            raise
        raise ValueError(
            "the flow expected a recipe that JAX can trace, got one that keeps arrays in a closure: make the "
            "bijection before, and give `lambda key, dim: bijection`"
        ) from error


def seed_stream(rng_key: PRNGKeyArray) -> Iterator[Seed]:
    """Seeds without end from a key of either style, by NumPy: each shape of `jax.random.split` is a compilation."""
    typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rng_key) if typed else rng_key))
    while True:
        yield rng.integers(2**32, size=4, dtype=np.uint32)


def seed_key(seed: Seed | Seeds | Array) -> PRNGKeyArray:
    """A key, or keys, of XLA's own generator, which compiles and runs in a fraction of Threefry's time."""
    return jax.random.wrap_key_data(jnp.asarray(seed), impl="rbg")


def split(arrays: PyTree) -> tuple[PyTree, PyTree]:
    """A bijection's arrays as those that are trained and the rest (integers: orders and masks)."""
    return eqx.partition(arrays, lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact))


class Clock:
    """Wall time by stage."""

    def __init__(self) -> None:
        stages = ("tracing", "compilation", "gaussian", "flow", "certificate")
        self.seconds: dict[str, float] = dict.fromkeys(stages, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
