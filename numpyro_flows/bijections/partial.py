"""A bijection of some coordinates."""

from typing import override

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Scalar

from numpyro_flows.bijections.base import AbstractBijection
from numpyro_flows.bijections.score import transform_with_score


class Partial(AbstractBijection):
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

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        part, log_det = self.bijection.transform_and_log_det(x[self.index], condition)
        return x.at[self.index].set(part), log_det

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        part, log_det = self.bijection.inverse_and_log_det(y[self.index], condition)
        return y.at[self.index].set(part), log_det

    @override
    def transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        part, log_det, part_score = transform_with_score(self.bijection, x[self.index], score[self.index], condition)
        return x.at[self.index].set(part), log_det, score.at[self.index].set(part_score)
