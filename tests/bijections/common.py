"""How tests of bijections make them: what takes long there is to compile what runs once."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.bijections.cases import perturbed

# for tests that compile for seconds: the quick suite has them in double precision
single_is_slow = pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"], indirect=True
)


def made[T](construct: Callable[[], T], scale: float = 0.0) -> T:
    """What `construct` gives, with noise of this scale, by one compiled function in place of dozens."""
    return eqx.filter_jit(lambda: perturbed(construct(), scale=scale) if scale else construct())()


def drawn[T](construct: Callable[[], T], scale: float, seed: int = 0) -> T:
    """What `construct` gives, but with normal numbers for parameters and other seeds: no random number is compiled.

    What else it has, masks and permutations, it has.
    """
    rng = np.random.default_rng(seed)

    def is_random(leaf) -> bool:
        return leaf.dtype == np.uint32 or jnp.issubdtype(leaf.dtype, jnp.floating)

    def draw(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if leaf.dtype == np.uint32:
            return jnp.asarray(rng.integers(2**32, size=leaf.shape, dtype=leaf.dtype))
        return jnp.asarray((scale * rng.normal(size=leaf.shape)).astype(leaf.dtype))

    shapes = eqx.filter_eval_shape(construct)
    others = jax.tree.map(lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct) and not is_random(leaf), shapes)
    module = jax.tree.map(draw, eqx.filter(shapes, others, inverse=True))
    if any(jax.tree.leaves(others)):
        module = eqx.combine(module, eqx.filter_jit(lambda: eqx.filter(construct(), others))())
    return module


@partial(jax.jit, static_argnums=0)
def with_slope(method, x, params):
    """Of a map of one coordinate: value, log-derivative, and the derivative that automatic differentiation finds."""
    (y, log_derivative), slope = jax.vmap(jax.value_and_grad(method, has_aux=True))(x, params)
    return y, log_derivative, slope


@partial(jax.jit, static_argnums=0)
def all_gradients(method, x, params):
    """Of a map of one coordinate: those of the value and of the log-derivative, along the coordinate and parameters."""
    return jax.vmap(jax.jacrev(lambda x, params: jnp.stack(method(x, params)), (0, 1)))(x, params)
