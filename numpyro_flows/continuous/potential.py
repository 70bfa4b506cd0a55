"""Potential fields: the velocity is the gradient of a scalar, as it is for optimal transport."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from numpyro_flows.arguments import require_cond_dim, require_counts, require_key
from numpyro_flows.bijections.sweeps import Vector
from numpyro_flows.continuous.fields import AbstractField, AbstractFieldWithDivergence, Time, check_time, time_features
from numpyro_flows.networks import MLP, draw_normals


class PotentialField(AbstractField):
    """`v = grad_x MLP(x, time features, condition)`: a field without rotation, zero at the start.

    Args:
        key: random key.
        dim: number of coordinates.
        cond_dim: length of the condition, a further input; None without one.
        hidden: widths of the hidden layers.
        time, num_frequencies: as for `MLPField`.

    Raises:
        ValueError: if `dim` is below 1 or `time` is unknown.

    Source: Zhang, E, Wang 2018 ("Monge-Ampere flow"), arXiv 1809.10188.

    Example:
        >>> import jax
        >>> from numpyro_flows.continuous import PotentialField
        >>> PotentialField(jax.random.key(0), 3)(0.5, jax.numpy.ones(3)).shape
        (3,)
    """

    network: MLP
    num_frequencies: int = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    cond_dim: int | None = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        dim: int,
        *,
        cond_dim: int | None = None,
        hidden: Sequence[int] = (64, 64),
        time: Time = "fourier",
        num_frequencies: int = 3,
    ):
        require_key(key, "key")
        require_counts(dim=dim)
        require_cond_dim(cond_dim)
        self.dim, self.cond_dim = dim, cond_dim
        self.num_frequencies = check_time(time, num_frequencies)
        self.network = MLP(key, dim + (2 * self.num_frequencies or 1) + (cond_dim or 0), 1, hidden)

    def __call__(self, t: Scalar, x: Vector, condition: Array | None = None) -> Vector:
        others = [time_features(t, self.num_frequencies).astype(x.dtype)]
        others += [] if condition is None else [condition]
        return jax.grad(lambda x: self.network(jnp.concatenate([x, *others]))[0])(x)


class OTFlowField(AbstractFieldWithDivergence):
    """`v = -grad_x phi`, `phi(s) = w . n(s) + s . A^T A s / 2 + b . s`, `s = (x, t, condition)`: its trace is exact.

    `n(s) = u + sigma(K_1 u + b_1)` with `u = sigma(K_0 s + b_0)` and `sigma(z) = log(2 cosh z)`, whose slope is tanh.
    The divergence has a closed form, which costs only some products of matrices: `width^2 dim`, not `dim` passes. The
    field is near zero at the start.

    Args:
        key: random key.
        dim: number of coordinates.
        cond_dim: length of the condition, None without one.
        width: width of the network.
        rank: rank of `A`; by default the length of `s`, at most 10.

    Raises:
        ValueError: if `dim` is below 1.

    Source: OT-Flow, Onken, Wu Fung, Li, Ruthotto 2021, arXiv 2006.00104.

    Example:
        >>> import jax
        >>> from numpyro_flows.continuous import OTFlowField
        >>> OTFlowField(jax.random.key(0), 3)(0.5, jax.numpy.ones(3)).shape
        (3,)
    """

    first: Float[Array, "width inputs"]
    first_bias: Float[Array, " width"]
    second: Float[Array, "width width"]
    second_bias: Float[Array, " width"]
    weight: Float[Array, " width"]
    quadratic: Float[Array, "rank inputs"]
    linear: Float[Array, " inputs"]
    dim: int = eqx.field(static=True)
    cond_dim: int | None = eqx.field(static=True)

    def __init__(
        self, key: PRNGKeyArray, dim: int, *, cond_dim: int | None = None, width: int = 64, rank: int | None = None
    ):
        require_key(key, "key")
        require_counts(dim=dim)
        require_cond_dim(cond_dim)
        self.dim, self.cond_dim = dim, cond_dim
        num = dim + 1 + (cond_dim or 0)
        rank = min(10, num) if rank is None else rank
        first, second, quadratic = draw_normals(key, [(width, num), (width, width), (rank, num)])
        self.first, self.first_bias = first / np.sqrt(num), jnp.zeros(width)
        self.second, self.second_bias = second / np.sqrt(width), jnp.zeros(width)
        self.weight = jnp.zeros(width)
        self.quadratic = 0.01 * quadratic / np.sqrt(num)  # not zero, because then it would have no gradient
        self.linear = jnp.zeros(num)

    def velocity_and_divergence(self, t: Scalar, x: Vector, condition: Array | None = None) -> tuple[Vector, Scalar]:
        time = jnp.reshape(jnp.asarray(t, x.dtype), 1)
        s = jnp.concatenate([x, time] if condition is None else [x, time, condition])
        low = self.first @ s + self.first_bias
        slope = jnp.tanh(low)
        high = jnp.tanh(self.second @ jnp.logaddexp(low, -low) + self.second_bias)  # of sigma(low)
        inner = self.weight + self.second.T @ (high * self.weight)  # d (w . n) / du
        gradient = self.first.T @ (slope * inner) + self.quadratic.T @ (self.quadratic @ s) + self.linear
        of_x = self.first[:, : self.dim]
        jacobian = self.second @ (slope[:, None] * of_x)  # of K_1 u
        curvature = (
            ((1 - slope**2) * inner) @ (of_x**2).sum(1)
            + ((1 - high**2) * self.weight) @ (jacobian**2).sum(1)
            + (self.quadratic[:, : self.dim] ** 2).sum()
        )
        return -gradient[: self.dim], -curvature
