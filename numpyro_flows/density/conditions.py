"""Conditions of a density: a vector, or an array or a dict of arrays that an embedding maps to a vector."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from numpyro_flows.arguments import as_numbers, require_finite_rows, require_instance
from numpyro_flows.bijections import AbstractBijection, ConditionLayout, EmbeddedCondition
from numpyro_flows.bijections.condition_layout import Leaf
from numpyro_flows.bijections.embedded import Embedding, embedding_size, layout_of
from numpyro_flows.density.condition_scales import by_feature
from numpyro_flows.density.digits import require_digits
from numpyro_flows.density.observations import checked_condition
from numpyro_flows.embeddings import JointEmbedding
from numpyro_flows.flows import Recipe
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.modeling.transforms import Condition


class Conditions(NamedTuple):
    """Checked conditions of rows.

    values: one vector of numbers for each row.
    layout: layout of the given conditions; None if they were one vector a row.
    embedding: trainable map from conditions to vectors; None for plain vectors, and if a flow whose training continues
        has it.
    """

    values: Float[np.ndarray, "num cond_dim"]
    layout: ConditionLayout | None = None
    embedding: Embedding | None = None

    @property
    def columns(self) -> Float[np.ndarray, "num columns"]:
        """The real numbers that are columns of a table, not places in a set, a series or an image."""
        if self.layout is None:
            return self.values
        tables = [where for leaf, where in self.layout.slices() if leaf.kind == "real" and len(leaf.shape) <= 1]
        return np.concatenate([self.values[:, :0], *(self.values[:, where] for where in tables)], axis=1)

    def only(self, kept: Bool[np.ndarray, " num"]) -> "Conditions":
        """The conditions of some rows."""
        return self._replace(values=self.values[kept])


def checked_conditions(
    condition: Condition | None, embedding: Any, num: int, flow: Recipe | FlowDistribution
) -> Conditions | None:
    """Conditions of `num` rows, if there are any: arguments and errors are those of `fit_density`."""
    if embedding is not None:
        if condition is None:
            raise ValueError("embedding expected None without a condition, got one: leave it out")
        if isinstance(flow, FlowDistribution):
            raise ValueError("embedding expected None because flow is a distribution with its own: leave embedding out")
        require_instance(eqx.Module, "embeddings.SetEmbedding(key, 2)", embedding=embedding)
    own = layout_of(flow.bijection) if isinstance(flow, FlowDistribution) else None
    if condition is None or (embedding is None and own is None and not isinstance(condition, Mapping)):
        plain = checked_condition(condition, num)
        return None if plain is None else Conditions(plain)
    layout = ConditionLayout.of(_as_arrays(condition), 1)
    if own is not None:
        _require_same(own, layout)
        layout = own
    elif embedding is None:
        layout, embedding = _as_table(layout), JointEmbedding({})
    arrays = {leaf.path: as_numbers(value, leaf.label) for leaf, value in zip(layout.leaves, layout.values(condition))}
    masks = {path[:-1]: array != 0 for path, array in arrays.items() if path[-1:] == ("mask",)}
    columns = []
    for leaf in layout.leaves:
        array = arrays[leaf.path]
        if len(array) != num:
            raise ValueError(f"{leaf.label} expected {num} rows, like data, got an array of shape {array.shape}")
        array = _without_masked(leaf, array, masks)
        require_finite_rows(leaf.label, array)
        if leaf.kind == "real":
            features = by_feature(leaf, array)
            flat = features.reshape(-1, features.shape[-1])
            require_digits(leaf.label, flat, [str(i) for i in range(flat.shape[1])])
        columns.append(array.reshape(num, leaf.size))
    if embedding is not None:
        embedding_size(embedding, layout)
    return Conditions(np.concatenate(columns, axis=1), layout, embedding)


def through(recipe: Recipe, conditions: Conditions | None) -> Recipe:
    """A recipe for flows that see conditions through their embedding, if they have one."""
    if conditions is None or conditions.layout is None or conditions.embedding is None:
        return recipe
    layout, embedding = conditions.layout, conditions.embedding
    size = embedding_size(embedding, layout)

    def embedded(key: PRNGKeyArray, dim: int, *, cond_dim: int | None = None) -> AbstractBijection:
        return EmbeddedCondition(recipe(key, dim, cond_dim=size), embedding, layout)

    return embedded


def _without_masked(leaf: Leaf, array: np.ndarray, masks: Mapping[tuple[str, ...], np.ndarray]) -> np.ndarray:
    """Values with 0 wherever the `mask` beside an array leaves them out."""
    mask = masks.get(leaf.path[:-1])
    if mask is None or leaf.path[-1:] == ("mask",) or len(leaf.shape) != 2 or mask.shape != array.shape[:2]:
        return array
    return np.where(mask[..., None], array, 0.0)


def _as_arrays(condition: Any) -> Any:
    """Lists and pandas objects as arrays; other arrays as they are, with their types."""
    if isinstance(condition, Mapping):
        return {key: _as_arrays(value) for key, value in condition.items()}
    if isinstance(getattr(condition, "dtype", None), np.dtype):
        return condition
    numbers, array = as_numbers(condition, "condition"), np.asarray(condition)
    return array if array.dtype == bool or np.issubdtype(array.dtype, np.integer) else numbers


def _as_table(layout: ConditionLayout) -> ConditionLayout:
    """The columns of a dict as a table with integers as real numbers; a ValueError for other arrays."""
    for leaf in layout.leaves:
        if len(leaf.shape) > 1:
            raise ValueError(
                f"{leaf.label} expected the shape (num,) or (num, columns) without an embedding, got "
                f"{('num', *leaf.shape)}: give an embedding, for example embeddings.SetEmbedding"
            )
    return ConditionLayout(tuple(leaf._replace(kind="real") for leaf in layout.leaves))


def _require_same(own: ConditionLayout, layout: ConditionLayout) -> None:
    if [leaf[:2] for leaf in own.leaves] != [leaf[:2] for leaf in layout.leaves]:
        raise ValueError(f"condition expected {own}, like the flow's, got {layout}")
