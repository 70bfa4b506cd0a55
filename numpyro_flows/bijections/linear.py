"""Linear maps of all coordinates with a cheap determinant and inverse: they mix coordinates that couplings keep apart.

All of them start as the identity, except the `DCT`. The matrix is made once for a batch; then every event takes one
product.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Scalar

from numpyro_flows.arguments import require_key
from numpyro_flows.bijections.base import AbstractShaped

_SAME = 1e-7  # distance below which unit vectors count as equal


class LULinear(AbstractShaped):
    """`y = L U x`: `L` is lower-triangular with ones on its diagonal, `U` upper-triangular with a positive diagonal.

    `U = D (I + N)`, where `D` is the exponential of `log_diagonal` and `N` is strictly upper-triangular. The order of
    the coordinates limits which matrices such a product can reach. A permutation next to it replaces the `P` of a PLU
    decomposition.

    Args:
        key: not used, because nothing is drawn; all linear maps have the same signature.
        dim: number of coordinates.

    Raises:
        ValueError: if `dim` is below 1.

    Source: Glow, Kingma, Dhariwal 2018, arXiv 1807.03039.

    Example:
        >>> import jax
        >>> from numpyro_flows.bijections import LULinear
        >>> LULinear(jax.random.key(0), 2).transform(jax.numpy.array([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """

    lower: Float[Array, "dim dim"]
    log_diagonal: Float[Array, " dim"]
    upper: Float[Array, "dim dim"]

    def __init__(self, key: PRNGKeyArray, dim: int):
        require_key(key, "key")
        self._set_dims(dim)
        self.lower = jnp.zeros((dim, dim))
        self.log_diagonal = jnp.zeros(dim)
        self.upper = jnp.zeros((dim, dim))

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        return self._unit_lower() @ (_upper(self.log_diagonal, self.upper) @ x), self.log_diagonal.sum()

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        x = solve_triangular(self._unit_lower(), y, lower=True, unit_diagonal=True)
        return solve_triangular(_upper(self.log_diagonal, self.upper), x), -self.log_diagonal.sum()

    def _unit_lower(self) -> Float[Array, "dim dim"]:
        return jnp.tril(self.lower, -1) + jnp.eye(*self.lower.shape, dtype=self.lower.dtype)


class AbstractOrthogonal(AbstractShaped):
    """`y = Q x` with `Q^-1 = Q^T` and determinant 1: a rotation, whose log-determinant is exactly 0."""

    @abstractmethod
    def matrix(self) -> Float[Array, "dim dim"]:
        """`Q`."""

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        return self.matrix() @ x, jnp.zeros((), x.dtype)

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        return y @ self.matrix(), jnp.zeros((), y.dtype)


class Householder(AbstractOrthogonal):
    """`y = H_1 ... H_n x` with reflections `H_i = I - 2 v_i v_i^T / |v_i|^2`.

    At the start the `v_i` are random in equal pairs, whose reflections cancel. The product is computed at once, not
    factor by factor: `I - V^T T V` with `T^-1 = I / 2 + triu(V V^T, 1)`, where the rows of `V` are the `v_i / |v_i|`.

    Args:
        key: random key.
        dim: number of coordinates.
        num_reflections: an even number, because an odd number does not give a rotation. The default is the largest even
            number up to `dim`, at least 2, which is enough to reach every rotation.

    Raises:
        ValueError: if `dim` is below 1, or `num_reflections` is odd or below 2.

    Source: Tomczak, Welling 2016, arXiv 1611.09630; the product: Joffrain, Low, Quintana-Orti, van de Geijn, Van Zee
        2006, ACM TOMS 32(2).

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Householder
        >>> quarter_turn = Householder.from_matrix(jnp.array([[0.0, -1.0], [1.0, 0.0]]))
        >>> quarter_turn.transform(jnp.array([1.0, 2.0])).round(2).tolist()
        [-2.0, 1.0]
    """

    vectors: Float[Array, "num_reflections dim"]

    def __init__(self, key: PRNGKeyArray, dim: int, num_reflections: int | None = None):
        require_key(key, "key")
        self._set_dims(dim)
        if num_reflections is None:
            num_reflections = max(dim - dim % 2, 2)
        if num_reflections < 2 or num_reflections % 2:
            raise ValueError(f"Householder expected an even num_reflections >= 2, got {num_reflections}")
        self.vectors = jnp.repeat(jax.random.normal(key, (num_reflections // 2, dim)), 2, axis=0)

    def matrix(self) -> Float[Array, "dim dim"]:
        v = self.vectors / jnp.linalg.norm(self.vectors, axis=1, keepdims=True)
        mixed = solve_triangular(2 * jnp.triu(v @ v.T, 1), 2 * v, unit_diagonal=True)
        return jnp.eye(v.shape[1], dtype=v.dtype) - v.T @ mixed

    @classmethod
    def from_matrix(cls, matrix: Float[ArrayLike, "dim dim"]) -> "Householder":
        """The product that equals a given rotation, as a start for training.

        Raises:
            ValueError: if `matrix` is not a rotation: orthogonal with determinant 1.
        """
        rest = _checked_rotation(cls, matrix)
        eye = np.eye(len(rest))
        with jax.ensure_compile_time_eval():  # recipes are traced
            start = cls(jax.random.key(0), len(rest))  # unused reflections stay a pair that cancels
            vectors, num_used = np.array(start.vectors, dtype=float), 0
        for i in range(len(rest)):
            v = rest[:, i] - eye[i]
            size = np.linalg.norm(v)
            if size > _SAME:  # otherwise the direction would consist of rounding errors
                v = v / size
                rest = rest - 2 * np.outer(v, v @ rest)
                vectors[num_used] = v
                num_used += 1
        return eqx.tree_at(lambda h: h.vectors, start, jnp.asarray(vectors, float))


class Cayley(AbstractOrthogonal):
    """`y = (I - S) (I + S)^-1 x` with `S^T = -S`: all rotations except those with an eigenvalue of -1.

    Args and errors are those of `LULinear`. Source: Cayley 1846, J. reine angew. Math. 32; as a layer: Helfrich,
    Willmott, Ye 2018, arXiv 1707.09520.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Cayley
        >>> quarter_turn = Cayley.from_matrix(jnp.array([[0.0, -1.0], [1.0, 0.0]]))
        >>> quarter_turn.transform(jnp.array([1.0, 2.0])).round(2).tolist()
        [-2.0, 1.0]
    """

    upper: Float[Array, "dim dim"]

    def __init__(self, key: PRNGKeyArray, dim: int):
        require_key(key, "key")
        self._set_dims(dim)
        self.upper = jnp.zeros((dim, dim))

    def matrix(self) -> Float[Array, "dim dim"]:
        upper = jnp.triu(self.upper, 1)
        skew, eye = upper - upper.T, jnp.eye(*upper.shape, dtype=upper.dtype)
        return jnp.linalg.solve(eye + skew, eye - skew)  # the factors commute

    @classmethod
    def from_matrix(cls, matrix: Float[ArrayLike, "dim dim"]) -> "Cayley":
        """The map that equals a given rotation, as a start for training.

        Raises:
            ValueError: if `matrix` is not a rotation (orthogonal with determinant 1), or has an eigenvalue of -1.
        """
        rotation = _checked_rotation(cls, matrix)
        eye = np.eye(len(rotation))
        if np.linalg.cond(eye + rotation) * _SAME > 1:
            raise ValueError("Cayley expected a rotation without an eigenvalue of -1")
        upper = np.triu(np.linalg.solve(eye + rotation, eye - rotation), 1)
        start = cls(jax.random.key(0), len(rotation))
        return eqx.tree_at(lambda c: c.upper, start, jnp.asarray(upper, float))


class QRLinear(AbstractShaped):
    """`y = Q R x`: `Q` is a product of reflections, `R` is upper-triangular with a positive diagonal.

    `R = D (I + N)`, where `D` is the exponential of `log_diagonal` and `N` is strictly upper-triangular. Every matrix
    with a positive determinant is such a product.

    Args:
        key: random key of the reflections.
        dim: number of coordinates.

    Raises:
        ValueError: if `dim` is below 1.

    Source: Hoogeboom, van den Berg, Welling 2019, arXiv 1901.11137.

    Example:
        >>> import jax
        >>> from numpyro_flows.bijections import QRLinear
        >>> QRLinear(jax.random.key(0), 2).transform(jax.numpy.array([1.0, 2.0])).round(2).tolist()
        [1.0, 2.0]
    """

    rotation: Householder
    log_diagonal: Float[Array, " dim"]
    upper: Float[Array, "dim dim"]

    def __init__(self, key: PRNGKeyArray, dim: int):
        require_key(key, "key")
        self._set_dims(dim)
        self.rotation = Householder(key, dim)
        self.log_diagonal = jnp.zeros(dim)
        self.upper = jnp.zeros((dim, dim))

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        return self.rotation.matrix() @ (_upper(self.log_diagonal, self.upper) @ x), self.log_diagonal.sum()

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        x = solve_triangular(_upper(self.log_diagonal, self.upper), y @ self.rotation.matrix())
        return x, -self.log_diagonal.sum()


class DCT(AbstractShaped):
    """`y_k = c_k sum_n cos(pi k (2 n + 1) / (2 dim)) x_n`, the orthonormal discrete cosine transform of type II.

    `c_0 = sqrt(1 / dim)`, and the other `c_k = sqrt(2 / dim)`. The map has no parameters to train, and is not the
    identity.

    Args:
        dim: number of coordinates.

    Raises:
        ValueError: if `dim` is below 1.

    Source: Ahmed, Natarajan, Rao 1974, IEEE Trans. Computers C-23(1).

    Example:
        >>> import jax
        >>> from numpyro_flows.bijections import DCT
        >>> y = DCT(4).transform(jax.numpy.ones(4))
        >>> round(float(y[0]), 2)
        2.0
    """

    def __init__(self, dim: int):
        self._set_dims(dim)

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        return jax.scipy.fft.dct(x, norm="ortho"), jnp.zeros((), x.dtype)

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        return jax.scipy.fft.idct(y, norm="ortho"), jnp.zeros((), y.dtype)


def _checked_rotation(cls: type, matrix: ArrayLike) -> Float[np.ndarray, "dim dim"]:
    matrix = np.asarray(matrix, dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{cls.__name__} expected a square matrix, got shape {matrix.shape}")
    miss = np.abs(matrix.T @ matrix - np.eye(len(matrix))).max()
    determinant = np.linalg.det(matrix)
    if not (miss < 1e-4 and determinant > 0):
        raise ValueError(
            f"{cls.__name__} expected an orthogonal matrix of determinant 1, got one that misses orthogonality by "
            f"{miss:.2g} and has determinant {determinant:.2g}"
        )
    return matrix


def _upper(log_diagonal: Float[Array, " dim"], upper: Float[Array, "dim dim"]) -> Float[Array, "dim dim"]:
    """`D (I + N)`."""
    return jnp.exp(log_diagonal)[:, None] * (jnp.triu(upper, 1) + jnp.eye(*upper.shape, dtype=upper.dtype))
