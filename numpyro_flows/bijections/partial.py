"""A bijection of some coordinates."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int

from numpyro_flows.bijections.base import AbstractBijection
from numpyro_flows.bijections.compose import AbstractAround
from numpyro_flows.bijections.composition import Part


class Partial(AbstractAround):
    """`bijection` on some coordinates; the others stay as they are.

    Args:
        bijection: a bijection of shape `(k,)`.
        index: the `k` coordinates that it maps.
        dim: total number of coordinates.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine
        >>> from numpyro_flows.bijections.partial import Partial
        >>> Partial(Affine(jnp.zeros(2), 3.0), [0, 2], 3).transform(jnp.ones(3)).round(2).tolist()
        [3.0, 1.0, 3.0]
    """

    index: Int[Array, " k"]

    def __init__(self, bijection: AbstractBijection, index: ArrayLike, dim: int):
        super().__init__(bijection)
        self.index = jnp.asarray(index)
        self.shape = (dim,)

    def _parts(self, condition: Array | None) -> list[Part]:
        return [Part(self.bijection, condition, index=self.index)]
