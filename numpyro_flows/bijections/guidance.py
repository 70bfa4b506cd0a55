"""Guidance: affine autoregressive layers that exaggerate the effect of their condition."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from numpyro_flows.arguments import as_array, described, require_instance
from numpyro_flows.bijections.autoregressive import AbstractAutoregressive, Autoregressive
from numpyro_flows.bijections.base import AbstractBijection
from numpyro_flows.bijections.compose import Chain, Frozen, Invert, Reshape, Scan, StandardizedCondition
from numpyro_flows.bijections.univariate import AbstractUnivariate, AffineUnivariate, Params, Values


class _LogAffine(AbstractUnivariate):
    """`y = exp(s) x + t`; `params = (s, t)`."""

    num_params: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.num_params = 2

    def transform_and_log_derivative(self, x: Values, params: Params) -> tuple[Values, Values]:
        return jnp.exp(params[..., 0]) * x + params[..., 1], params[..., 0]

    def inverse_and_log_derivative(self, y: Values, params: Params) -> tuple[Values, Values]:
        return jnp.exp(-params[..., 0]) * (y - params[..., 1]), -params[..., 0]


class Guided(AbstractAutoregressive):
    """An affine autoregressive layer whose draws `exp(a) z + m` have guided log-scales and means.

    `a = a(c) + w (a(c) - a(0))` and `m = m(c) + w (m(c) - m(0))`, where `c` is the condition and `0` stands for no
    condition. The parameters of a coordinate still depend only on the coordinates before it. So this is a bijection
    with an exact log-determinant. Weight 0 gives the layer itself.

    Args:
        layer: a layer with an `AffineUnivariate` and a condition.
        weight: `w`.
        null: the condition that stands for no condition.
        draws: whether the layer maps towards the target; False inside an `Invert`.

    Raises:
        TypeError: if `layer` is not such a layer.
        ValueError: if the layer has no condition, or `null` has another shape.

    Source: Zhai et al. 2024, arXiv 2412.06329; Ho, Salimans 2022, arXiv 2207.12598.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro_flows.bijections import AffineUnivariate, Guided, masked_autoregressive
        >>> layer = masked_autoregressive(jax.random.key(0), 2, AffineUnivariate(), cond_dim=1, hidden=(8,))
        >>> Guided(layer, 1.5, jnp.zeros(1)).transform(jnp.ones(2), jnp.ones(1)).shape
        (2,)
    """

    layer: Autoregressive
    weight: Float[Array, ""]
    null: Float[Array, " cond_dim"]
    univariate: AbstractUnivariate
    draws: bool = eqx.field(static=True)
    depth: int = eqx.field(static=True)

    def __init__(self, layer: Autoregressive, weight: ArrayLike, null: ArrayLike, *, draws: bool = True):
        require_instance(Autoregressive, "bijections.masked_autoregressive(...)", layer=layer)
        require_instance(AffineUnivariate, "bijections.AffineUnivariate()", univariate=layer.univariate)
        self.layer = layer
        self.weight, self.null = jnp.asarray(weight, float), jnp.asarray(null, float)
        if self.null.shape[-1:] != layer.cond_shape:  # in a stack there is an axis before it
            raise ValueError(f"null expected the layer's condition shape {layer.cond_shape}, got {self.null.shape}")
        self.univariate = _LogAffine()
        self.draws, self.depth = draws, layer.depth
        self.shape, self.cond_shape = layer.shape, layer.cond_shape

    def _params(self, x: Float[Array, " dim"], condition: Array | None) -> Float[Array, "dim num_params"]:
        weight, null = (jax.lax.stop_gradient(a).astype(x.dtype) for a in (self.weight, self.null))
        shift, log_scale = self._shift_and_log_scale(x, condition)
        null_shift, null_log_scale = self._shift_and_log_scale(x, null)
        guided = log_scale + weight * (log_scale - null_log_scale)
        if self.draws:
            return jnp.stack([guided, shift + weight * (shift - null_shift)], axis=-1)
        # z = exp(s) x + t draws x = exp(-s) z - exp(-s) t, whose mean is guided
        gap = jnp.exp(-null_log_scale) * null_shift - jnp.exp(-log_scale) * shift
        change = jnp.exp(guided - log_scale) * shift - weight * jnp.exp(guided) * gap
        return jnp.stack([guided, change], axis=-1)

    def _shift_and_log_scale(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Array]:
        params = self.layer._params(x, condition)
        return self.layer.univariate.transform_and_log_derivative(jnp.zeros_like(x), params)


def guide(bijection: AbstractBijection, weight: ArrayLike, null: ArrayLike) -> AbstractBijection:
    """`bijection` with all its conditional layers `Guided`.

    Raises:
        ValueError: if there is no condition, or `null` has another shape.
        TypeError: if a conditional part is not made of affine autoregressive layers.
    """
    if bijection.cond_shape is None:
        raise ValueError("guided expected a flow with a condition, got one without")
    null = as_array(null, "null")
    if null.shape != tuple(bijection.cond_shape):
        raise ValueError(f"null expected the shape of the condition, {tuple(bijection.cond_shape)}, got {null.shape}")
    return _guide(bijection, jnp.asarray(weight, float), null.astype(float), draws=True)


def _guide(bijection: AbstractBijection, weight: Array, null: Array, *, draws: bool) -> AbstractBijection:
    if bijection.cond_shape is None:
        return bijection
    match bijection:
        case Autoregressive(univariate=AffineUnivariate()):
            return Guided(bijection, weight, null, draws=draws)
        case Chain():
            return Chain([_guide(part, weight, null, draws=draws) for part in bijection.bijections])
        case Scan():
            num = len(jax.tree.leaves(eqx.filter(bijection.layers, eqx.is_array))[0])
            weights, nulls = (jnp.broadcast_to(a, (num, *a.shape)) for a in (weight, null))
            return Scan(_guide(bijection.layers, weights, nulls, draws=draws))
        case Invert():
            return Invert(_guide(bijection.bijection, weight, null, draws=not draws))
        case Frozen():
            return Frozen(_guide(bijection.bijection, weight, null, draws=draws))
        case Reshape():
            return Reshape(_guide(bijection.bijection, weight, null, draws=draws), bijection.shape)
        case StandardizedCondition(loc=loc, scale=scale):
            inner = _guide(bijection.bijection, weight, (null - loc) / scale, draws=draws)
            return StandardizedCondition(inner, loc, scale)
    raise TypeError(
        "guided expected affine autoregressive layers under the condition, as flows.tarflow, maf and iaf have, got "
        f"{described(bijection)}"
    )
