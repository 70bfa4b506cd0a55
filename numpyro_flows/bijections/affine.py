"""Affine maps: elementwise and lower-triangular."""

from typing import Any, override

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Scalar

from numpyro_flows.bijections.base import AbstractShaped


class Affine(AbstractShaped):
    """`y = loc + exp(log_scale) x`, elementwise.

    Args:
        loc: location, of the event's shape.
        scale: positive scale, broadcast to the shape of `loc`; 1 by default.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine
        >>> y, log_det = Affine(jnp.array([1.0, 2.0]), 3.0).transform_and_log_det(jnp.zeros(2))
        >>> y.tolist(), round(float(log_det), 2)
        ([1.0, 2.0], 2.2)
    """

    loc: Float[Array, "..."]
    log_scale: Float[Array, "..."]

    @np.errstate(divide="ignore", invalid="ignore")  # as in JAX: a width of zero has the log -inf
    def __init__(self, loc: ArrayLike, scale: ArrayLike = 1.0):
        xp = _namespace(loc, scale)
        self.loc = jnp.asarray(loc, dtype=float)
        log_scale = xp.log(xp.broadcast_to(xp.asarray(scale, self.loc.dtype), self.loc.shape))
        self.log_scale = jnp.asarray(log_scale)
        self.shape, self.cond_shape = self.loc.shape, None

    def _transform(self, x: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        return self.loc + jnp.exp(self.log_scale) * x, self.log_scale.sum()

    def _inverse(self, y: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        return (y - self.loc) * jnp.exp(-self.log_scale), -self.log_scale.sum()

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        return *self._transform(x, condition), score * jnp.exp(-self.log_scale)


class TriangularAffine(AbstractShaped):
    """`y = loc + L x` with `L` lower-triangular and a positive diagonal.

    `L = D (I + N)`, where `D` is the exponential of `log_diagonal` and `N` is strictly lower-triangular. So the rows of
    `N` are in units of their own coordinate's scale, and one learning rate fits all.

    Args:
        loc: location of shape `(dim,)`.
        tril: lower-triangular matrix of shape `(dim, dim)` with a positive diagonal; entries above it are ignored.

    Raises:
        ValueError: if `tril` is not a square matrix of the size of `loc`.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import TriangularAffine
        >>> layer = TriangularAffine(jnp.zeros(2), jnp.array([[1.0, 0.0], [0.5, 1.0]]))
        >>> layer.transform(jnp.array([2.0, 3.0])).round(2).tolist()
        [2.0, 4.0]
    """

    loc: Float[Array, " dim"]
    log_diagonal: Float[Array, " dim"]
    lower: Float[Array, "dim dim"]

    @np.errstate(divide="ignore", invalid="ignore")
    def __init__(self, loc: ArrayLike, tril: ArrayLike):
        self.loc = jnp.asarray(loc, dtype=float)
        xp = _namespace(loc, tril)
        matrix = xp.asarray(tril, self.loc.dtype)
        if self.loc.ndim != 1 or matrix.shape != self.loc.shape * 2:
            raise ValueError(
                f"TriangularAffine expected loc (dim,) and tril (dim, dim), got {self.loc.shape} and {matrix.shape}"
            )
        diagonal = xp.diagonal(matrix)
        self.log_diagonal = jnp.asarray(xp.log(diagonal))
        self.lower = jnp.asarray(xp.tril(matrix, -1) / diagonal[:, None])
        self.shape, self.cond_shape = self.loc.shape, None

    def _unit_lower(self) -> Float[Array, "dim dim"]:
        return jnp.tril(self.lower, -1) + jnp.eye(self.loc.size, dtype=self.lower.dtype)

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        return self.loc + jnp.exp(self.log_diagonal) * (self._unit_lower() @ x), self.log_diagonal.sum()

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        scaled = (y - self.loc) * jnp.exp(-self.log_diagonal)
        x = jax.scipy.linalg.solve_triangular(self._unit_lower(), scaled, lower=True, unit_diagonal=True)
        return x, -self.log_diagonal.sum()

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        solved = jax.scipy.linalg.solve_triangular(self._unit_lower(), score, trans="T", lower=True, unit_diagonal=True)
        return *self._transform(x, condition), solved * jnp.exp(-self.log_diagonal)


def _namespace(*arrays: ArrayLike) -> Any:
    """JAX for its own arrays, else NumPy: JAX would compile each operation, which takes longer than a small fit."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np
