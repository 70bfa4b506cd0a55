"""A conditional bijection under one condition."""

from typing import override

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from numpyro_flows.bijections.base import AbstractBijection
from numpyro_flows.bijections.compose import AbstractAround
from numpyro_flows.bijections.composition import Part


class Given(AbstractAround):
    """`f(x | c)` as a bijection of `x` alone, for one condition `c`.

    Args:
        bijection: a conditional bijection.
        condition: the condition, of shape `bijection.cond_shape`.

    Raises:
        ValueError: if the condition has another shape, or `bijection` is not conditional.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> from numpyro_flows.bijections import Given
        >>> flow = flows.realnvp(jax.random.key(0), 2, cond_dim=1)
        >>> Given(flow, [3.0]).transform(jax.numpy.ones(2)).shape
        (2,)
    """

    condition: Float[Array, "..."]

    def __init__(self, bijection: AbstractBijection, condition: ArrayLike):
        super().__init__(bijection)
        self.condition = jnp.asarray(condition, dtype=float)
        self.cond_shape = None
        self.__check_init__()

    def __check_init__(self) -> None:
        if self.bijection.cond_shape != self.condition.shape:
            raise ValueError(
                f"Given expected a condition of the shape {self.bijection.cond_shape}, got {self.condition.shape}"
            )

    @override
    def _parts(self, condition: Array | None) -> list[Part]:
        return [Part(self.bijection, self.condition)]
