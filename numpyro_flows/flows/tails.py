"""Trainable tails for any flow."""

from typing import Any

from jaxtyping import PRNGKeyArray

from numpyro_flows.bijections import AbstractBijection, AbstractUnivariate, Chain, Elementwise, SinhArcsinh
from numpyro_flows.flows.stack import Recipe

_SINH_ARCSINH = SinhArcsinh()


def with_tails(recipe: Recipe, univariate: AbstractUnivariate = _SINH_ARCSINH) -> Recipe:
    """The recipe of the same flow, followed by a univariate map of every coordinate.

    The tails of a flow on a Gaussian base are Gaussian or nearly so. Those of a posterior's log-scales are not, and
    tails determine k-hat.

    Args:
        recipe: recipe of the flow.
        univariate: `SinhArcsinh`, whose tails are lighter or heavier on either side, `TailTransform` for power-law
            tails, or `AffineUnivariate` for location and scale.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.with_tails(flows.realnvp)(jax.random.key(0), 3).shape
        (3,)
    """

    def recipe_with_tails(key: PRNGKeyArray, dim: int, **options: Any) -> AbstractBijection:
        return Chain([recipe(key, dim, **options), Elementwise(dim, univariate)])

    return recipe_with_tails
