"""Conditions that are not vectors: images, sets, series and dicts of these, with their own network."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_flows.arguments import described
from numpyro_flows.bijections.base import AbstractBijection
from numpyro_flows.bijections.compose import AbstractAround
from numpyro_flows.bijections.composition import Part
from numpyro_flows.bijections.condition_layout import ConditionLayout
from numpyro_flows.precision import full_precision

Embedding = Callable[[Any], Array]
"""A module from one condition, an array or a dict of arrays, to a vector."""


class EmbeddedCondition(AbstractAround):
    """`f(x | e(c))`: a bijection whose condition is the vector that an embedding `e` computes from a condition `c`.

    `c` is an array or a dict of arrays. Like every bijection, this one takes one array as its condition: the vector of
    all numbers of `c`, made by `layout.pack(c)`. `FlowDistribution` takes `c` itself. The arrays of `e` are trained
    with those of `f`. If `vmap` maps over events under one condition, `e` is computed once.

    Args:
        bijection: a conditional bijection, whose condition has the shape of the vectors that `embedding` returns.
        embedding: an Equinox module, called with one condition.
        layout: names and shapes of one condition.

    Raises:
        ValueError: if `embedding` does not take such conditions, or returns vectors of the wrong shape.

    Example:
        >>> import jax
        >>> from numpyro_flows import embeddings, flows
        >>> from numpyro_flows.bijections import ConditionLayout, EmbeddedCondition
        >>> members = jax.random.normal(jax.random.key(0), (7, 2))  # a set of seven
        >>> mean_of_set = embeddings.SetEmbedding(jax.random.key(1), 2, out_dim=3)
        >>> flow = flows.realnvp(jax.random.key(2), 2, cond_dim=3)
        >>> flow = EmbeddedCondition(flow, mean_of_set, ConditionLayout.of(members))
        >>> flow.transform(jax.numpy.ones(2), flow.layout.pack(members)).shape
        (2,)
    """

    embedding: Embedding
    layout: ConditionLayout = eqx.field(static=True)

    def __init__(self, bijection: AbstractBijection, embedding: Embedding, layout: ConditionLayout):
        super().__init__(bijection)
        self.embedding, self.layout, self.cond_shape = embedding, layout, (layout.size,)
        size = embedding_size(embedding, layout)
        if bijection.cond_shape != (size,):
            raise ValueError(
                f"EmbeddedCondition expected a bijection with conditions of shape {(size,)}, as the embedding returns, "
                f"got {bijection.cond_shape}"
            )

    def __check_init__(self) -> None:
        self.layout.require_valid()
        if self.cond_shape != (self.layout.size,):
            raise ValueError(f"expected cond_shape {(self.layout.size,)} by the layout, got {self.cond_shape}")

    def embed(self, condition: Float[Array, "*batch cond_dim"]) -> Float[Array, "*batch size"]:
        """The vector that the inner bijection sees; for a batch, one for each condition."""
        embed = self._embed_one
        for _ in condition.shape[:-1]:
            embed = jax.vmap(embed)
        with full_precision():
            return embed(condition)

    def _embed_one(self, condition: Float[Array, " cond_dim"]) -> Float[Array, " size"]:
        return self.embedding(self.layout.unpack(condition))

    def _parts(self, condition: Array | None) -> list[Part]:
        return [Part(self.bijection, None if condition is None else self.embed(condition))]


def embedding_size(embedding: Embedding, layout: ConditionLayout) -> int:
    """Length of the vectors that an embedding returns; a ValueError if it takes or returns something else."""
    try:
        result = jax.eval_shape(embedding, layout.abstract())
    except Exception as error:
        raise ValueError(
            f"embedding expected to take one condition, {layout}, without axes of a batch; "
            f"{type(embedding).__name__} raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(result, jax.ShapeDtypeStruct) or len(result.shape) != 1:
        got = described(result) if not hasattr(result, "shape") else f"one of shape {result.shape}"
        raise ValueError(f"embedding expected to return an array of one axis, got {got}")
    if not jnp.issubdtype(result.dtype, jnp.floating) or not result.shape[0]:
        raise ValueError(f"embedding expected to return floating-point numbers, got {described(result)}")
    return result.shape[0]


def layout_of(bijection: AbstractBijection) -> ConditionLayout | None:
    """The layout of conditions that a bijection passes through an embedding; None for plain ones."""
    if bijection.cond_shape is None:
        return None
    for node in jax.tree.leaves(bijection, is_leaf=lambda node: isinstance(node, EmbeddedCondition)):
        if isinstance(node, EmbeddedCondition) and node.cond_shape == tuple(bijection.cond_shape):
            return node.layout
    return None
