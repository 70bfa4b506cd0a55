"""A function with its own gradient, traced once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

from numpyro_flows._jax import traced


def with_gradient_of(
    function: Callable[[Array], Scalar],
    with_gradient: Callable[[Array], tuple[Scalar, Array]],
    x: jax.ShapeDtypeStruct,
) -> Callable[[Array], Scalar]:
    """`function` of arrays like `x`, with its gradient, traced here and now; later calls do not run the model."""
    value = traced(function, x)
    value_and_gradient = traced(with_gradient, x)

    @jax.custom_jvp
    def density(x: Array) -> Scalar:
        return value(x)[0]

    @density.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Scalar, Scalar]:
        height, gradient = value_and_gradient(*primals)
        return height, jnp.sum(gradient * tangents[0])

    return density
