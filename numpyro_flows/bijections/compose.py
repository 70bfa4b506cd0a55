"""Bijections made of bijections: sequences, stacks of equal layers, inverses, frozen bijections."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, override

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Scalar

from numpyro_flows.bijections.base import AbstractBijection, merge_cond_shapes
from numpyro_flows.bijections.composition import AbstractComposition, Part, Step


class Identity(AbstractComposition):
    """`y = x`: an empty composition.

    Args:
        shape: shape of the events.
        cond_shape: shape of the condition, which changes nothing; None without one.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Identity
        >>> Identity((2,)).transform(jnp.array([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True, default=None)

    def _parts(self, condition: Array | None) -> list[Part]:
        return []


class Chain(AbstractComposition):
    """`f = f_n o ... o f_1`: a sequence of bijections, the first applied first.

    Args:
        bijections: at least one, all of one shape; FlowJAX bijections are allowed.

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

    def __init__(self, bijections: Sequence[AbstractBijection]):
        self.bijections = tuple(bijections)
        shapes = {b.shape for b in self.bijections}
        if len(shapes) != 1:
            raise ValueError(f"Chain expected bijections of one shape, got {sorted(shapes)}")
        self.shape, self.cond_shape = shapes.pop(), merge_cond_shapes(self.bijections)

    def _parts(self, condition: Array | None) -> list[Part]:
        return [Part(bijection, condition) for bijection in self.bijections]


class Scan(AbstractComposition):
    """`f = f_n o ... o f_1` for layers of one structure, run by `lax.scan`: compile time does not grow with `n`.

    Args:
        layers: one bijection whose arrays all have a leading axis of length `n`, such as
            `eqx.filter_vmap(make_layer)(keys)` returns.

    Example:
        >>> import equinox as eqx, jax
        >>> from numpyro_flows.bijections import Planar, Scan
        >>> layers = eqx.filter_vmap(lambda key: Planar(key, 3))(jax.random.split(jax.random.key(0), 5))
        >>> Scan(layers).transform(jax.numpy.ones(3)).shape
        (3,)
    """

    layers: AbstractBijection

    def __init__(self, layers: AbstractBijection):
        self.layers = layers
        self.shape, self.cond_shape = layers.shape, layers.cond_shape

    def _parts(self, condition: Array | None) -> list[Part]:
        arrays, static = eqx.partition(self.layers, eqx.is_array)
        numbers = range(len(jax.tree.leaves(arrays)[0]))
        return [Part(eqx.combine(jax.tree.map(lambda a, i=i: a[i], arrays), static), condition) for i in numbers]

    @override
    def _through(self, step: Step, condition: Array | None, to_base: bool, *events: Array) -> tuple[Any, ...]:
        arrays, static = eqx.partition(self.layers, eqx.is_array)

        def body(carry, layer_arrays):
            log_det, *events = carry
            x, increment, *others = step(Part(eqx.combine(layer_arrays, static), condition), *events)
            return (log_det + increment, x, *others), None

        carry = jnp.zeros_like(events[0], shape=()), *events
        (log_det, x, *others), _ = jax.lax.scan(body, carry, arrays, reverse=to_base)
        return x, log_det, *others


class AbstractAround(AbstractComposition):
    """A composition around one bijection, with the same shapes."""

    bijection: AbstractBijection

    def __init__(self, bijection: AbstractBijection):
        self.bijection = bijection
        self.shape, self.cond_shape = bijection.shape, bijection.cond_shape

    def _parts(self, condition: Array | None) -> list[Part]:
        return [Part(self.bijection, condition)]


class Invert(AbstractAround):
    """`f^-1` as a bijection: `bijection` with its two directions exchanged.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine, Invert
        >>> Invert(Affine(jnp.array([1.0, 2.0]))).transform(jnp.array([3.0, 3.0])).tolist()
        [2.0, 1.0]
    """

    def __init__(self, bijection: AbstractBijection):
        super().__init__(bijection)

    def _parts(self, condition: Array | None) -> list[Part]:
        return [Part(self.bijection, condition, inverted=True)]

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        return AbstractBijection._transform_with_score(self, x, score, condition)


class Frozen(AbstractAround):
    """`bijection` without gradients for its parameters: training leaves them unchanged.

    Example:
        >>> import equinox as eqx, jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine, Frozen
        >>> gradient = eqx.filter_grad(lambda b: b.transform(jnp.ones(2)).sum())(Frozen(Affine(jnp.zeros(2))))
        >>> gradient.bijection.loc.tolist()
        [0.0, 0.0]
    """

    def __init__(self, bijection: AbstractBijection):
        super().__init__(bijection)

    def _parts(self, condition: Array | None) -> list[Part]:
        return [Part(held_fixed(self.bijection), condition)]


class Reshape(AbstractAround):
    """`bijection` for events of another shape and the same size, row by row: for example images for a flow of vectors.

    Args:
        bijection: any bijection.
        shape: shape of the events.

    Raises:
        ValueError: if the two shapes have different sizes.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine, Reshape
        >>> Reshape(Affine(jnp.ones(4)), (2, 2)).transform(jnp.zeros((2, 2))).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self, bijection: AbstractBijection, shape: Sequence[int]):
        if math.prod(shape) != math.prod(bijection.shape):
            raise ValueError(f"Reshape expected a shape with as many numbers as {bijection.shape}, got {tuple(shape)}")
        super().__init__(bijection)
        self.shape = tuple(shape)


class StandardizedCondition(AbstractAround):
    """`f(x | (c - loc) / scale)`: a conditional bijection whose networks see standardised conditions.

    Args:
        bijection: a conditional bijection.
        loc, scale: arrays of the condition's shape, without gradients.

    Example:
        >>> import jax
        >>> from numpyro_flows.bijections import AffineUnivariate, Coupling, StandardizedCondition
        >>> layer = Coupling(jax.random.key(0), 2, AffineUnivariate(), cond_dim=1)
        >>> by_year = StandardizedCondition(layer, loc=[2000.0], scale=[10.0])
        >>> by_year.transform(jax.numpy.ones(2), jax.numpy.array([2015.0])).shape
        (2,)
    """

    loc: Float[Array, "..."]
    scale: Float[Array, "..."]

    def __init__(self, bijection: AbstractBijection, loc: ArrayLike, scale: ArrayLike):
        super().__init__(bijection)
        self.loc = jnp.asarray(loc, dtype=float)
        self.scale = jnp.asarray(scale, dtype=float)

    def _parts(self, condition: Array | None) -> list[Part]:
        if condition is not None:
            fixed = jax.lax.stop_gradient((self.loc, self.scale))
            loc, scale = (jnp.broadcast_to(a, condition.shape) for a in fixed)  # of a batch of conditions, too
            condition = (condition - loc) / scale
        return [Part(self.bijection, condition)]


def layers_of(part: Part) -> list[list[Part]]:
    """The layers of a bijection, from the base to the target; each is a list of parts that are not compositions.

    A layer is one step of a `Scan`, or a part of the outermost chain. A bijection that does not map whole events is one
    part.
    """
    bijection, condition, inverted, _ = part
    parts = bijection._parts(condition) if isinstance(bijection, AbstractComposition) else []
    if not all(p.index is None and p.bijection.shape == bijection.shape for p in parts) or not parts:
        return [[part]]
    inner = [layers_of(p._replace(inverted=p.inverted != inverted)) for p in parts[:: -1 if inverted else 1]]
    if isinstance(bijection, Scan):
        return [list(chain.from_iterable(layers)) for layers in inner]
    return list(chain.from_iterable(inner))


def held_fixed[T](tree: T) -> T:
    """`tree` with arrays that have no gradients."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, tree)


def trained_and_fixed[T](tree: T) -> tuple[T, T]:
    """`tree` split into the arrays that training changes, and the rest: integers (orders, masks), and `Frozen` parts.

    The two have the structure of `tree`, with None in each other's places: `eqx.combine` joins them. Shapes may stand
    for arrays.
    """

    def of_node(node: Any) -> Any:
        if isinstance(node, Frozen):
            return jax.tree.map(lambda _: False, node)
        is_array = eqx.is_array(node) or isinstance(node, jax.ShapeDtypeStruct)
        return is_array and jnp.issubdtype(node.dtype, jnp.inexact)

    return eqx.partition(tree, jax.tree.map(of_node, tree, is_leaf=lambda node: isinstance(node, Frozen)))
