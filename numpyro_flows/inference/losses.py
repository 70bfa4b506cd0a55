"""What a flow on an unnormalized density is trained for: an objective is a callable object, a new one a new file."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Scalar

from numpyro_flows.bijections import AbstractBijection, transform_with_score
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.modeling.scoring import standard_normal_log_prob

LogDensity = Callable[[Float[Array, " dim"]], Scalar]


class Objective(Protocol):
    """A loss of the flow `x = bijection(u)`, differentiable in the bijection, by draws `u ~ N(0, I)`.

    forward: the share of the forward KL that the round asks for, 0 until the weights are good enough.
    """

    def __call__(
        self,
        bijection: AbstractBijection,
        log_density: LogDensity,
        base_draws: Float[Array, "particles dim"],
        forward: ArrayLike,
        settings: FlowVISettings,
    ) -> Scalar: ...


@dataclass(frozen=True)
class PathKL:
    """`KL(q || p)` by path gradients, and where the weights are good enough for it, in part `KL(p || q)`.

    The objective of `FlowTraining` by default. Its constants are `FlowVISettings`: from `forward_ess` on the second has
    the weight `forward_share`, and in it no draw counts more than `max_weight` times the mean.

    Source: Vaitl, Nicoli, Nakajima, Kessel 2022, arXiv 2207.08219.

    Example:
        >>> from numpyro_flows import FlowTraining, PathKL
        >>> FlowTraining(objective=PathKL()) == FlowTraining()
        True
    """

    def __call__(
        self,
        bijection: AbstractBijection,
        log_density: LogDensity,
        base_draws: Float[Array, "particles dim"],
        forward: ArrayLike,
        settings: FlowVISettings,
    ) -> Scalar:
        return path_loss(bijection, log_density, base_draws, forward, settings.max_weight)


@dataclass(frozen=True)
class ForwardKL:
    """`KL(p || q)` alone, by path gradients with weights: it covers the posterior, where the start is close to it.

    Source: Vaitl, Nicoli, Nakajima, Kessel 2022, arXiv 2207.08219.

    Example:
        >>> from numpyro_flows import FlowTraining, ForwardKL
        >>> FlowTraining(objective=ForwardKL())
        FlowTraining(objective=ForwardKL(), optimizer=<function clipped_adam ...>)
    """

    def __call__(
        self,
        bijection: AbstractBijection,
        log_density: LogDensity,
        base_draws: Float[Array, "particles dim"],
        forward: ArrayLike,
        settings: FlowVISettings,
    ) -> Scalar:
        return path_loss(bijection, log_density, base_draws, 1.0, settings.max_weight)


def path_loss(
    bijection: AbstractBijection,
    log_density: LogDensity,
    base_draws: Float[Array, "particles dim"],
    forward: ArrayLike = 0.0,
    max_weight: float = FlowVISettings.max_weight,
) -> Scalar:
    """A path-derivative loss for `x = bijection(u)`, `u ~ N(0, I)`, without an inverse pass.

    Value: the mean of `log q(x) - log p(x)`, the negative ELBO. Gradient: that of `mean(c (s - g) . x)` with the score
    `s = grad_x log q(x)`, carried through the flow on the way forward, and `g = grad_x log p(x)`, all three held fixed:

    - `c = 1` (`forward=0`) is the path gradient of `KL(q || p)`, as in `PathELBO`;
    - `c = w / mean(w)` with `w = p(x) / q(x)` (`forward=1`) is that of `KL(p || q)`, which covers the tails that the
      first leaves thin. It needs weights that are not degenerate; none counts more than `max_weight` times the mean.

    Both vanish draw by draw where q is p. Draws at which the density or its gradient is not finite count as none; NaN
    where that leaves none. Source: Vaitl, Nicoli, Nakajima, Kessel 2022, arXiv 2207.08219.
    """
    x, log_det, score = jax.vmap(transform_with_score, in_axes=(None, 0, 0))(bijection, base_draws, -base_draws)
    log_p, gradient = jax.vmap(jax.value_and_grad(log_density))(jax.lax.stop_gradient(x))
    usable = jnp.isfinite(log_p) & jnp.isfinite(gradient).all(-1)
    num = usable.sum()
    loss = jax.lax.stop_gradient(standard_normal_log_prob(base_draws) - log_det - log_p)
    weight = jnp.minimum(jax.nn.softmax(jnp.where(usable, -loss, -jnp.inf)) * num, max_weight)
    force = jnp.where(usable[:, None], jax.lax.stop_gradient(score) - gradient, 0.0)
    path = jnp.sum(force * x, axis=-1)
    path = (1.0 + forward * (weight - 1.0)) * (path - jax.lax.stop_gradient(path))
    return jnp.sum(jnp.where(usable, loss, 0.0) + path) / num
