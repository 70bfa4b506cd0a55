"""A bijection of some coordinates."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int

from numpyro_flows.bijections.base import AbstractBijection
from numpyro_flows.bijections.composition import AbstractComposition, Part


class Partial(AbstractComposition):
    """`bijection` on some coordinates; the others stay as they are.

    Args:
        bijection: of shape `(k,)`.
        index: the `k` coordinates that it maps.
        dim: their number in all.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine
        >>> from numpyro_flows.bijections.partial import Partial
        >>> Partial(Affine(jnp.zeros(2), 3.0), [0, 2], 3).transform(jnp.ones(3)).round(2).tolist()
        [3.0, 1.0, 3.0]
    """

    bijection: AbstractBijection
    index: Int[Array, " k"]
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, bijection: AbstractBijection, index: ArrayLike, dim: int):
        self.bijection = bijection
        self.index = jnp.asarray(index)
        self.shape = (dim,)
        self.cond_shape = bijection.cond_shape

    def _parts(self, condition: Array | None) -> list[Part]:
        return [Part(self.bijection, condition, index=self.index)]
