"""Bijections made of bijections: one after another, a stack of like layers, the other way round, held fixed."""

import math
from collections.abc import Callable, Sequence
from typing import Any, override

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Scalar

from numpyro_flows.bijections.base import AbstractBijection, merge_cond_shapes
from numpyro_flows.bijections.score import transform_with_score


class Chain(AbstractBijection):
    """`f = f_n o ... o f_1`: the bijections of a sequence, the first applied first.

    Args:
        bijections: at least one, all of one shape; FlowJAX bijections are welcome.

    Raises:
        ValueError: for an empty sequence, or shapes (of events or conditions) that differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine, Chain
        >>> chain = Chain([Affine(jnp.ones(2)), Affine(jnp.zeros(2), 2.0)])
        >>> chain.transform(jnp.array([0.0, 1.0])).round(2).tolist()
        [2.0, 4.0]
    """

    bijections: tuple[AbstractBijection, ...]
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, bijections: Sequence[AbstractBijection]):
        self.bijections = tuple(bijections)
        shapes = {b.shape for b in self.bijections}
        if len(shapes) != 1:
            raise ValueError(f"Chain expected bijections of one shape, got {sorted(shapes)}")
        self.shape = shapes.pop()
        self.cond_shape = merge_cond_shapes(self.bijections)

    def _transform(self, x: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        log_det = jnp.zeros_like(x, shape=())
        for bijection in self.bijections:
            x, increment = bijection.transform_and_log_det(x, condition)
            log_det = log_det + increment
        return x, log_det

    def _inverse(self, y: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        log_det = jnp.zeros_like(y, shape=())
        for bijection in reversed(self.bijections):
            y, increment = bijection.inverse_and_log_det(y, condition)
            log_det = log_det + increment
        return y, log_det

    @override
    def transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        log_det = jnp.zeros_like(x, shape=())
        for bijection in self.bijections:
            x, increment, score = transform_with_score(bijection, x, score, condition)
            log_det = log_det + increment
        return x, log_det, score


class Scan(AbstractBijection):
    """`f = f_n o ... o f_1` for layers of one structure, run by `lax.scan`: compile time does not grow with `n`.

    Args:
        layers: one bijection whose every array has a leading axis of length `n`, as
            `eqx.filter_vmap(make_layer)(keys)` gives it.

    Example:
        >>> import equinox as eqx, jax
        >>> from numpyro_flows.bijections import Planar, Scan
        >>> layers = eqx.filter_vmap(lambda key: Planar(key, 3))(jax.random.split(jax.random.key(0), 5))
        >>> Scan(layers).transform(jax.numpy.ones(3)).shape
        (3,)
    """

    layers: AbstractBijection
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, layers: AbstractBijection):
        self.layers = layers
        self.shape = layers.shape
        self.cond_shape = layers.cond_shape

    def _transform(self, x: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        def step(layer, x, log_det):
            x, increment = layer.transform_and_log_det(x, condition)
            return x, log_det + increment

        return self._scan(step, x, jnp.zeros_like(x, shape=()))

    def _inverse(self, y: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        def step(layer, y, log_det):
            y, increment = layer.inverse_and_log_det(y, condition)
            return y, log_det + increment

        return self._scan(step, y, jnp.zeros_like(y, shape=()), reverse=True)

    @override
    def transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        def step(layer, x, log_det, score):
            x, increment, score = transform_with_score(layer, x, score, condition)
            return x, log_det + increment, score

        return self._scan(step, x, jnp.zeros_like(x, shape=()), score)

    def _scan[*Carry](self, step: Callable[..., tuple[*Carry]], *carry: *Carry, reverse: bool = False) -> tuple[*Carry]:
        arrays, static = eqx.partition(self.layers, eqx.is_array)

        def body(carry, layer_arrays):
            return step(eqx.combine(layer_arrays, static), *carry), None

        return jax.lax.scan(body, carry, arrays, reverse=reverse)[0]


class Invert(AbstractBijection):
    """`f^-1` as a bijection: the two directions of `bijection` exchanged.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine, Invert
        >>> Invert(Affine(jnp.array([1.0, 2.0]))).transform(jnp.array([3.0, 3.0])).tolist()
        [2.0, 1.0]
    """

    bijection: AbstractBijection
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, bijection: AbstractBijection):
        self.bijection = bijection
        self.shape = bijection.shape
        self.cond_shape = bijection.cond_shape

    def _transform(self, x: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        return self.bijection.inverse_and_log_det(x, condition)

    def _inverse(self, y: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        return self.bijection.transform_and_log_det(y, condition)


class Frozen(AbstractBijection):
    """`bijection` with parameters that no gradient reaches: training leaves them as they are.

    Example:
        >>> import equinox as eqx, jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine, Frozen
        >>> gradient = eqx.filter_grad(lambda b: b.transform(jnp.ones(2)).sum())(Frozen(Affine(jnp.zeros(2))))
        >>> gradient.bijection.loc.tolist()
        [0.0, 0.0]
    """

    bijection: AbstractBijection
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, bijection: AbstractBijection):
        self.bijection = bijection
        self.shape = bijection.shape
        self.cond_shape = bijection.cond_shape

    def _transform(self, x: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        return held_fixed(self.bijection).transform_and_log_det(x, condition)

    def _inverse(self, y: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        return held_fixed(self.bijection).inverse_and_log_det(y, condition)

    @override
    def transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        return transform_with_score(held_fixed(self.bijection), x, score, condition)


class Reshape(AbstractBijection):
    """`bijection` for events of another shape with as many numbers, row by row: images for a flow of vectors, say.

    Args:
        bijection: any.
        shape: of the events.

    Raises:
        ValueError: where the two shapes have different numbers of numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine, Reshape
        >>> Reshape(Affine(jnp.ones(4)), (2, 2)).transform(jnp.zeros((2, 2))).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    bijection: AbstractBijection
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, bijection: AbstractBijection, shape: Sequence[int]):
        if math.prod(shape) != math.prod(bijection.shape):
            raise ValueError(f"Reshape expected a shape with as many numbers as {bijection.shape}, got {tuple(shape)}")
        self.bijection = bijection
        self.shape = tuple(shape)
        self.cond_shape = bijection.cond_shape

    def _transform(self, x: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        y, log_det = self.bijection.transform_and_log_det(x.reshape(self.bijection.shape), condition)
        return y.reshape(self.shape), log_det

    def _inverse(self, y: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        x, log_det = self.bijection.inverse_and_log_det(y.reshape(self.bijection.shape), condition)
        return x.reshape(self.shape), log_det

    @override
    def transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        shape = self.bijection.shape
        y, log_det, score = transform_with_score(self.bijection, x.reshape(shape), score.reshape(shape), condition)
        return y.reshape(self.shape), log_det, score.reshape(self.shape)


class StandardizedCondition(AbstractBijection):
    """`f(x | (c - loc) / scale)`: a conditional bijection whose networks see conditions of everyday size.

    Args:
        bijection: a conditional one.
        loc, scale: arrays of the condition's shape, which no gradient reaches.

    Example:
        >>> import jax
        >>> from numpyro_flows.bijections import AffineUnivariate, Coupling, StandardizedCondition
        >>> layer = Coupling(jax.random.key(0), 2, AffineUnivariate(), cond_dim=1)
        >>> by_year = StandardizedCondition(layer, loc=[2000.0], scale=[10.0])
        >>> by_year.transform(jax.numpy.ones(2), jax.numpy.array([2015.0])).shape
        (2,)
    """

    bijection: AbstractBijection
    loc: Float[Array, "..."]
    scale: Float[Array, "..."]
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, bijection: AbstractBijection, loc: ArrayLike, scale: ArrayLike):
        self.bijection = bijection
        self.loc = jnp.asarray(loc, dtype=float)
        self.scale = jnp.asarray(scale, dtype=float)
        self.shape = bijection.shape
        self.cond_shape = bijection.cond_shape

    def _transform(self, x: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        return self.bijection.transform_and_log_det(x, self._standardized(condition))

    def _inverse(self, y: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        return self.bijection.inverse_and_log_det(y, self._standardized(condition))

    @override
    def transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        return transform_with_score(self.bijection, x, score, self._standardized(condition))

    def _standardized(self, condition: Array | None) -> Array | None:
        loc, scale = jax.lax.stop_gradient((self.loc, self.scale))
        return None if condition is None else (condition - loc) / scale


def held_fixed[T](tree: T) -> T:
    """`tree` with arrays that no gradient reaches."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, tree)


def trained_and_fixed[T](tree: T) -> tuple[T, T]:
    """`tree` as the arrays that training changes, and all else: integers (orders, masks), and what is `Frozen`.

    The two have the structure of `tree`, with None in each other's places: `eqx.combine` joins them. Shapes may stand
    for arrays.
    """

    def of_node(node: Any) -> Any:
        if isinstance(node, Frozen):
            return jax.tree.map(lambda _: False, node)
        is_array = eqx.is_array(node) or isinstance(node, jax.ShapeDtypeStruct)
        return is_array and jnp.issubdtype(node.dtype, jnp.inexact)

    return eqx.partition(tree, jax.tree.map(of_node, tree, is_leaf=lambda node: isinstance(node, Frozen)))
