"""The untrained flow of a recipe."""

from collections.abc import Callable

import jax
from jaxtyping import PRNGKeyArray

from numpyro_flows.bijections import AbstractBijection, ActNorm, initialize_from_data
from numpyro_flows.density.angles import require_real
from numpyro_flows.density.losses import Rows
from numpyro_flows.flows import Recipe

_INITIAL_ROWS = 1_000  # for the initialization by data


def maker(recipe: Recipe, rows: Rows) -> Callable[[PRNGKeyArray], AbstractBijection]:
    """The function that makes an untrained bijection of `rows`, with its `ActNorm`s set by some of them."""
    dim = rows.x.shape[1]
    options = {} if rows.condition is None else {"cond_dim": rows.condition.shape[1]}

    def make(key: PRNGKeyArray) -> AbstractBijection:
        bijection = recipe(key, dim, **options)
        if tuple(bijection.shape) != (dim,):
            raise ValueError(f"flow expected to give a bijection of shape {(dim,)}, got {bijection.shape}")
        require_real(bijection)
        leaves = jax.tree.leaves(bijection, is_leaf=lambda node: isinstance(node, ActNorm))
        if any(isinstance(leaf, ActNorm) for leaf in leaves):
            some = jax.tree.map(lambda leaf: leaf[:_INITIAL_ROWS], rows)
            bijection = initialize_from_data(bijection, some.x, some.condition)
        return bijection

    return make
