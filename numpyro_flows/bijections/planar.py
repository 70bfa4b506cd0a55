"""Maps that bend space along one direction, or around one point."""

from collections.abc import Sequence
from typing import override

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from numpyro_flows.arguments import require_key
from numpyro_flows.bijections.base import AbstractShaped
from numpyro_flows.bijections.root import invert_increasing
from numpyro_flows.networks import Parameters

_MIN_SLOPE = 1e-2  # smallest derivative along the direction of the map
_MIN_WIDTH = 1e-3  # smallest `alpha` of a radial map


class Planar(AbstractShaped):
    """`y = x + u tanh(w . x + b)`: moves points along `u`, depending on their position along `w`.

    The map is increasing along `w`, and so invertible, if `w . u > -1`. Therefore the part of `u` along `w` is moved to
    `w . u >= -0.99`. `log |det dy/dx| = log(1 + w . u (1 - tanh^2))`. The inverse is the root of an increasing function
    of one number, `t + w . u tanh(t + b) = w . y`. The map is analytic. It starts as the identity: `u` is zero, and `w`
    a random direction.

    Args:
        key: random key of `w`.
        dim: number of coordinates.
        cond_dim: length of a condition that `w`, `u` and `b` depend on, None without one.
        hidden: widths of the hidden layers of the condition's network.

    Raises:
        ValueError: if `dim` is below 1.
        RuntimeError: (from `eqx.error_if`, also within jit) if an inverse did not converge.

    Source: Rezende, Mohamed 2015, arXiv 1505.05770.

    Example:
        >>> import jax
        >>> from numpyro_flows.bijections import Planar
        >>> Planar(jax.random.key(0), 2).transform(jax.numpy.array([1.0, 2.0])).round(2).tolist()
        [1.0, 2.0]
    """

    parameters: Parameters

    def __init__(self, key: PRNGKeyArray, dim: int, *, cond_dim: int | None = None, hidden: Sequence[int] = (32, 32)):
        require_key(key, "key")
        self._set_dims(dim, cond_dim)
        normal_key, key = jax.random.split(key)
        normal = jax.random.normal(normal_key, (dim,))
        start = jnp.concatenate([normal / jnp.linalg.norm(normal), jnp.zeros(dim + 1)])
        self.parameters = Parameters(key, start, cond_dim, hidden)

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        w, u, b, along = self._bend(condition)
        bent = jnp.tanh(w @ x + b)
        return x + u * bent, jnp.log1p(along * (1 - bent**2))

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        w, u, b, along = self._bend(condition)

        def increasing(t: Array) -> tuple[Array, Array]:
            bent = jnp.tanh(t + b)
            return t + along * bent, jnp.log1p(along * (1 - bent**2))

        t, log_det = invert_increasing(increasing, w @ y, "Planar")
        return y - u * jnp.tanh(t + b), log_det

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        # J = 1 + u (slope w)^T; by Sherman and Morrison J^-T r = r - slope w (u . r) / (1 + slope w . u)
        w, u, b, along = self._bend(condition)
        bent = jnp.tanh(w @ x + b)
        slope = 1 - bent**2
        stretch = 1 + along * slope
        score = score + 2 * along * bent * slope / stretch * w  # minus the gradient of the log-determinant
        return x + u * bent, jnp.log(stretch), score - slope * (u @ score) / stretch * w

    def _bend(self, condition: Array | None) -> tuple[Array, Array, Array, Array]:
        """`w`, `u`, `b`, and `w . u`."""
        dim = self.shape[0]
        w, u, b = jnp.split(self.parameters(condition), [dim, 2 * dim])
        along = w @ u
        allowed = _above_minus_one(along)
        direction, length = _direction(w)
        u = u + (allowed - along) / jnp.where(length > 0, length, 1.0) * direction
        return w, u, b[0], allowed


class Radial(AbstractShaped):
    """`y = x + beta (x - c) / (alpha + r)` with `r = |x - c|`: pushes points away from a centre `c`, or pulls them in.

    `alpha > 0`, and `beta >= -0.99 alpha` makes the distance from the centre increase with `r`::

        log |det dy/dx| = (dim - 1) log(1 + beta / (alpha + r)) + log(1 + alpha beta / (alpha + r)^2)

    Both directions have a closed form. The slope of the log-determinant jumps at the centre, so prefer other maps under
    Hamiltonian samplers. The map starts as the identity: `beta` is zero, `c` random and `alpha` the square root of
    `dim`.

    Arguments and the ValueError are those of `Planar`. Source: Rezende, Mohamed 2015, arXiv 1505.05770.

    Example:
        >>> import jax
        >>> from numpyro_flows.bijections import Radial
        >>> Radial(jax.random.key(0), 2).transform(jax.numpy.array([1.0, 2.0])).round(2).tolist()
        [1.0, 2.0]
    """

    parameters: Parameters

    def __init__(self, key: PRNGKeyArray, dim: int, *, cond_dim: int | None = None, hidden: Sequence[int] = (32, 32)):
        require_key(key, "key")
        self._set_dims(dim, cond_dim)
        centre_key, key = jax.random.split(key)
        width = jnp.log(jnp.expm1(jnp.sqrt(float(dim)) - _MIN_WIDTH))
        # layers with the same centre would stay equal
        start = jnp.concatenate([jax.random.normal(centre_key, (dim,)), jnp.stack([width, jnp.zeros(())])])
        self.parameters = Parameters(key, start, cond_dim, hidden)

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        centre, alpha, push = self._around(condition)
        _, r = _direction(x - centre)
        across, outward = self._stretches(r / alpha, push)
        return centre + across * (x - centre), self._log_det(across, outward)

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        centre, alpha, push = self._around(condition)
        _, r = _direction(y - centre)
        # s^2 + p s = r / alpha for s = |x - c| / alpha, by the form of the root without cancellation
        ratio = r / alpha
        p = 1 + push - ratio
        root = jnp.sqrt(p**2 + 4 * ratio)
        s = jnp.where(p > 0, 2 * ratio, root - p) / jnp.where(p > 0, p + root, 2.0)
        across, outward = self._stretches(s, push)
        return centre + (y - centre) / across, -self._log_det(across, outward)

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        # J stretches by `outward` along the direction away from the centre, by `across` along all others
        centre, alpha, push = self._around(condition)
        direction, r = _direction(x - centre)
        across, outward = self._stretches(r / alpha, push)
        near = 1 / (1 + r / alpha)
        slope = -push * near**2 / alpha * ((x.size - 1) / across + 2 * near / outward)  # of the log-determinant, in r
        score = score - slope * direction
        score = score / across + (1 / outward - 1 / across) * (direction @ score) * direction
        return centre + across * (x - centre), self._log_det(across, outward), score

    def _around(self, condition: Array | None) -> tuple[Array, Array, Array]:
        """`c`, `alpha` and `beta / alpha`."""
        dim = self.shape[0]
        centre, width, push = jnp.split(self.parameters(condition), [dim, dim + 1])
        return centre, _MIN_WIDTH + jax.nn.softplus(width[0]), _above_minus_one(push[0])

    def _stretches(self, s: Array, push: Array) -> tuple[Array, Array]:
        return 1 + push / (1 + s), 1 + push / (1 + s) ** 2

    def _log_det(self, across: Array, outward: Array) -> Array:
        return (self.shape[0] - 1) * jnp.log(across) + jnp.log(outward)


def _above_minus_one(a: Array) -> Array:
    """`a` if it is positive; negative numbers are mapped to those above -1 by a margin, with a C1 map."""
    most = 1 - _MIN_SLOPE
    return jnp.where(a < 0, most * jnp.expm1(jnp.minimum(a, 0.0) / most), a)


def _direction(x: Float[Array, " dim"]) -> tuple[Array, Array]:
    """`x / |x|` and `|x|`; zeros at the origin, also for gradients."""
    square = x @ x
    away = square > 0
    r = jnp.sqrt(jnp.where(away, square, 1.0))
    return jnp.where(away, x / r, 0.0), jnp.where(away, r, 0.0)
