"""Linear differential equations, solved in closed form by the matrix exponential."""

from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from numpyro_flows.arguments import require_choice, require_key, require_numbers
from numpyro_flows.bijections.base import AbstractShaped

Gate = Literal["linear", "tanh"]
"""How far a flow has gone at a time: `g(t)`, 0 at time 0."""


class MatrixExponential(AbstractShaped):
    """`y = exp(g W) x + g phi(g W) b`, the solution of `dx/dt = g'(t) (W x + b)`; `log |det dy/dx| = g tr W`.

    `phi(A) = sum_k A^k / (k + 1)!`, and the inverse is the same map with `-g`. `g(t)` is `t` or `tanh(rate t)`. At time
    0 it is 0, and the map is the identity for all parameters. At the start of training `W = b = 0`, so the map is the
    identity at all times.

    Every matrix with a positive determinant is a product of two exponentials; one is enough for a root of any
    covariance.

    Args:
        key: not used, because nothing is drawn; all linear maps have the same signature.
        dim: number of coordinates.
        bias: whether there is a `b`.
        time: `t`.
        cond_dim: 1 if `t` is the condition, in place of `time`; else None.
        gate: "linear" for `g(t) = t`, or "tanh" with a trained, bounded `rate`.

    Raises:
        ValueError: if `dim` is below 1, `cond_dim` is neither None nor 1, `time` is not finite, or `gate` is unknown.

    Source: Hoogeboom, Garcia Satorras, Tomczak, Welling 2020, arXiv 2006.01910; Xiao, Liu 2020, arXiv 2007.09651; in
        time: Bilos, Sommer, Rangapuram, Januschowski, Gunnemann 2021 ("Neural flows"), arXiv 2110.13040.

    Example:
        >>> import jax
        >>> from numpyro_flows.bijections import MatrixExponential
        >>> later = MatrixExponential(jax.random.key(0), 3, bias=True, cond_dim=1)
        >>> later.transform(jax.numpy.ones(3), jax.numpy.array([0.5])).shape
        (3,)
    """

    weight: Float[Array, "dim dim"]
    bias: Float[Array, " dim"] | None
    rate: Scalar | None
    time: float = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        dim: int,
        *,
        bias: bool = False,
        time: float = 1.0,
        cond_dim: int | None = None,
        gate: Gate = "linear",
    ):
        require_key(key, "key")
        self._set_dims(dim, cond_dim)
        if cond_dim not in (None, 1):
            raise ValueError(f"cond_dim expected None, or 1 if the condition is the time, got {cond_dim}")
        require_numbers("(-inf, inf)", time=time)
        require_choice(get_args(Gate), gate=gate)
        self.weight = jnp.zeros((dim, dim))
        self.bias = jnp.zeros(dim) if bias else None
        self.rate = jnp.ones(()) if gate == "tanh" else None
        self.time = float(time)

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        return self._move(x, self._gate(condition))

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        return self._move(y, -self._gate(condition))

    def _gate(self, condition: Array | None) -> Scalar:
        time = jnp.asarray(self.time, self.weight.dtype) if condition is None else condition[0]
        return time if self.rate is None else jnp.tanh(self.rate * time)

    def _move(self, x: Float[Array, " dim"], gate: Scalar) -> tuple[Array, Scalar]:
        log_det = gate * jnp.trace(self.weight)
        if self.bias is None:
            return jax.scipy.linalg.expm(gate * self.weight) @ x, log_det
        # a further coordinate that stays 1 makes the equation homogeneous
        rows = jnp.concatenate([self.weight, self.bias[:, None]], axis=1)
        homogeneous = jax.scipy.linalg.expm(gate * jnp.pad(rows, ((0, 1), (0, 0))))
        return homogeneous[:-1, :-1] @ x + homogeneous[:-1, -1], log_det
