"""The tail of the standard normal distribution in logarithms, and its inverse, exact in the far tails."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

_LOG_2PI = math.log(2 * math.pi)
_FAR = 6.0  # above this, a continued fraction replaces erfc
_NUM_TERMS = 16  # its number of terms, enough for double precision
_UNDERFLOW = -80.0  # the exponential of smaller logarithms is zero in single precision
_NEWTON_STEPS = 2


@jax.custom_jvp
def normal_tail(t: Float[Array, "*shape"]) -> tuple[Array, Array, Array]:
    """`log P(X > t)`, `log h` and `h - t`, with `h = p(t) / P(X > t)` the hazard, for `t >= 0`.

    `h - t` falls like `1 / t`. From 6 on `h` is the continued fraction `t + 1 / (t + 2 / (t + 3 / ...))`, whose tail is
    that difference, with nothing cancelled.

    Source: Laplace 1805, Traite de mecanique celeste 4, livre X.

    Example:
        >>> [f"{float(v):.4g}" for v in normal_tail(jnp.array(1e3))]
        ['-5e+05', '6.908', '0.001']
    """
    far = t > _FAR
    near_t, far_t = jnp.where(far, 1.0, t), jnp.where(far, t, _FAR)
    near = jnp.log(0.5 * jax.lax.erfc(near_t * math.sqrt(0.5)))
    near_log_hazard = -0.5 * (near_t**2 + _LOG_2PI) - near
    rate = far_t
    for k in range(_NUM_TERMS, 1, -1):
        rate = far_t + k / rate
    far_log_hazard = jnp.log(far_t + 1 / rate)
    log_tail = jnp.where(far, -0.5 * (far_t**2 + _LOG_2PI) - far_log_hazard, near)
    excess = jnp.where(far, 1 / rate, jnp.exp(near_log_hazard) - near_t)
    return log_tail, jnp.where(far, far_log_hazard, near_log_hazard), excess


@normal_tail.defjvp
def _normal_tail_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple, tuple]:
    (t,), (t_dot,) = primals, tangents
    log_tail, log_hazard, excess = normal_tail(t)
    hazard = t + excess
    return (log_tail, log_hazard, excess), (-hazard * t_dot, excess * t_dot, (hazard * excess - 1.0) * t_dot)


@jax.custom_jvp
def normal_tail_inverse(log_tail: Float[Array, "*shape"]) -> Array:
    """`t` with `log P(X > t) = log_tail`, for tails of at most a half.

    By the inverse distribution function where the tail has an exponential, else by Newton's method from the asymptotic
    root; gradients are implicit.

    Example:
        >>> float(normal_tail_inverse(jnp.array(-500007.84)).round(1))
        1000.0
    """
    far = log_tail < _UNDERFLOW
    near = -ndtri(jnp.exp(jnp.where(far, -1.0, log_tail)))
    far_log_tail = jnp.where(far, log_tail, _UNDERFLOW)
    t = jnp.sqrt(-2 * far_log_tail - _LOG_2PI - jnp.log(-2 * far_log_tail))
    for _ in range(_NEWTON_STEPS):
        value, log_hazard, _ = normal_tail(t)
        t = t + (value - far_log_tail) * jnp.exp(-log_hazard)
    return jnp.where(far, t, near)


@normal_tail_inverse.defjvp
def _normal_tail_inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    t = normal_tail_inverse(*primals)
    return t, -jnp.exp(-normal_tail(t)[1]) * tangents[0]
