"""Angles on the real line: the share of each copy, and models whose angles have the line as coordinates."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ParameterFreeTransform, biject_to
from numpyro.primitives import Messenger

from numpyro_flows.bijections.circular import wrap
from numpyro_flows.files.rules import InFiles
from numpyro_flows.modeling._numpyro import OnLine, TwoWayTransform, mask_of
from numpyro_flows.modeling.columns import is_angle, scalar_support

# The share falls from 0.9 to 0.1 within 0.45. One of 1.3, within 1.2, left a bump in the tails that Gaussians missed.
_WIDTH = 0.8
_TURN = 2.0 * math.pi
_COPIES = np.arange(-2, 3)
_TO_CIRCLE = biject_to(constraints.circular)


def log_share(x: Float[Any, "*shape"], centre: Float[Any, "*shape"]) -> tuple[Any, Any]:
    """`log w(x)` and its derivative, each `(*shape,)`: the share of the copy `x` of an angle among all `x + 2 pi k`.

    `w(x) = g(x) / sum_k g(x + 2 pi k)`, where `g` is the density of `N(centre, 0.8^2)`. The shares of all copies sum to
    one for every centre. So `p(x) w(x)` on the line has the mass of the periodic `p` on the circle. The share is near
    one around the centre, one half at a half turn, and smooth.
    """
    xp = jnp if isinstance(x, jax.Array) else np
    offset = x - centre
    copies = (offset - _TURN * xp.round(offset / _TURN))[..., None] + _TURN * _COPIES.astype(offset.dtype)
    logs = -0.5 * (copies / _WIDTH) ** 2
    most = logs.max(-1, keepdims=True)
    each = xp.exp(logs - most)
    total = each.sum(-1)
    value = -0.5 * (offset / _WIDTH) ** 2 - most[..., 0] - xp.log(total)
    return value, ((each * copies).sum(-1) / total - offset) / _WIDTH**2


on_line = OnLine()


def is_on_line(support: constraints.Constraint) -> bool:
    """Whether it is the support of such angles, alone or in independent numbers."""
    return isinstance(scalar_support(support), OnLine)


class WrapTransform(TwoWayTransform, ParameterFreeTransform):
    """`wrap(x)` in `[-pi, pi)`, many to one: the inverse is the copy there, and the log-determinant is 0."""

    @property
    def domain(self) -> constraints.Constraint:
        return constraints.real

    @property
    def codomain(self) -> constraints.Constraint:
        return on_line

    def __call__(self, x: Array) -> Array:  # pyright: ignore
        return wrap(x)

    def inverse(self, y: Array) -> Array:
        return y

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: None = None) -> Array:  # pyright: ignore
        return jnp.zeros_like(x)


biject_to.register(OnLine, lambda constraint: WrapTransform())


class AnglesTransform(TwoWayTransform, InFiles):
    """From angles on the line to NumPyro's coordinates, in which angles are `logit((x + pi) / 2 pi)`.

    A guide `q` on the line weights each draw by its share `w` of the copies: `log_abs_det_jacobian` includes `log w`.
    With `-log q(x) + log w(x) + log p` for a draw, an ELBO is a bound on the log evidence, and exact if `q = p w / Z`.
    The inverse is the copy nearest to the centre. The guide's density there is right as far as `q` is near `p w / Z`.

    Args:
        angles: which coordinates are angles.
        centre: `(dim,)`, where the share of an angle is one.
    """

    FILE_KINDS: ClassVar = {"angles": tuple[int, ...], "centre": Array}

    def __init__(self, angles: tuple[int, ...], centre: Float[ArrayLike, " dim"]):
        self.angles, self.centre = tuple(angles), jnp.asarray(centre)

    @property
    def domain(self) -> constraints.Constraint:
        return constraints.real_vector

    @property
    def codomain(self) -> constraints.Constraint:
        return constraints.real_vector

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:  # pyright: ignore
        index = np.array(self.angles)
        least = _TURN * float(jnp.finfo(x.dtype).eps)  # as far from the ends as a logit can be
        angle = jnp.clip(wrap(x[..., index]), -math.pi + least, math.pi - least)
        return x.at[..., index].set(_TO_CIRCLE.inv(angle))

    def inverse(self, y: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        index = np.array(self.angles)
        centre = self.centre[index]
        return y.at[..., index].set(centre + wrap(_TO_CIRCLE(y[..., index]) - centre))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Float[Array, "*batch"]:  # pyright: ignore
        index = np.array(self.angles)
        logits = y[..., index]
        share = log_share(x[..., index], self.centre[index])[0]
        return (share - _TO_CIRCLE.log_abs_det_jacobian(logits, _TO_CIRCLE(logits))).sum(-1)

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.centre,), (("centre",), {"angles": self.angles})

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        if not isinstance(other, AnglesTransform) or self.angles != other.angles:
            return False
        return static or bool(jnp.array_equal(self.centre, other.centre))


def with_angles_on_line(model: Callable) -> Callable:
    """The model with the line as coordinates of its latent angles; its density is periodic there."""
    return _AnglesOnLine(model)


class _AnglesOnLine(Messenger):
    def process_message(self, msg: dict[str, Any]) -> None:
        latent = msg["type"] == "sample" and not msg["is_observed"]
        if latent and is_angle(getattr(msg["fn"], "support", None)):
            msg["fn"] = _on_line(msg["fn"])


def _on_line(fn: dist.Distribution) -> dist.Distribution:
    if isinstance(fn, dist.MaskedDistribution):  # other code checks for it
        return _AngleOnLine(fn.base_dist).mask(mask_of(fn))
    return _AngleOnLine(fn)


class _AngleOnLine(dist.Distribution):
    """A distribution of angles with the support `on_line`."""

    pytree_data_fields = ("fn",)

    def __init__(self, fn: dist.Distribution):
        self.fn = fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(on_line, self.event_dim) if self.event_dim else on_line

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Array:  # pyright: ignore
        return jnp.asarray(self.fn.sample(key, sample_shape))

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        return jnp.asarray(self.fn.log_prob(value))
