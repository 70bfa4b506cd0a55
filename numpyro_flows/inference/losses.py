"""Objectives for flows on an unnormalized density. An objective is a callable object; a new one gets a new file."""

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
    """A loss of the flow `x = bijection(u)`, differentiable in the bijection, from draws `u ~ N(0, I)`.

    forward: weight of the forward KL in this round; 0 until the importance weights are good enough.
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
    """`KL(q || p)` by path gradients; once the weights are good enough, mostly `KL(p || q)`.

    This is the default objective of `FlowTraining`. Its constants are in `FlowVISettings`. Above `forward_ess`,
    `KL(p || q)` has the weight `forward_share`, and no draw counts more than `max_weight` times the mean.

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
    """`KL(p || q)` alone, by weighted path gradients. It covers the posterior if the start is close to it.

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
    - `c = w / mean(w)` with `w = p(x) / q(x)` (`forward=1`) is that of `KL(p || q)`, which covers tails that `KL(q ||
      p)` leaves too thin. It needs weights that are not degenerate; none counts more than `max_weight` times the mean.

    If q equals p, both gradients are zero for every draw. Draws at which the density or its gradient is not finite are
    left out; if all are, the loss is NaN. Source: Vaitl, Nicoli, Nakajima, Kessel 2022, arXiv 2207.08219.
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
