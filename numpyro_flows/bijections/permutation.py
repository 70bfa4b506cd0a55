"""Reordering of coordinates."""

from collections.abc import Sequence
from typing import override

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, Scalar

from numpyro_flows.bijections.base import AbstractShaped


class Permutation(AbstractShaped):
    """`y_i = x_{permutation_i}`, with log-determinant 0.

    Args:
        permutation: integers of shape `(dim,)`, each of 0 ... dim - 1 once.

    Raises:
        ValueError: if a `permutation` of concrete values is not a permutation.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Permutation
        >>> Permutation([2, 0, 1]).transform(jnp.array([10.0, 20.0, 30.0])).tolist()
        [30.0, 10.0, 20.0]
    """

    permutation: Int[Array, " dim"]
    inverse_permutation: Int[Array, " dim"]

    def __init__(self, permutation: ArrayLike | Sequence[int]):
        if not isinstance(permutation, Tracer):
            permutation = np.asarray(permutation)
            if not np.array_equal(np.sort(permutation, axis=None), np.arange(len(permutation))):
                raise ValueError(f"Permutation expected each of 0 ... dim - 1 once, got {permutation}")
        self.permutation = jnp.asarray(permutation)
        self.inverse_permutation = jnp.argsort(self.permutation)
        self.shape, self.cond_shape = self.permutation.shape, None

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        return x[self.permutation], jnp.zeros((), x.dtype)

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        return y[self.inverse_permutation], jnp.zeros((), y.dtype)

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        return *self._transform(x, condition), score[self.permutation]
