"""Parameters that are set by a batch of data before training."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from numpyro_flows.bijections.actnorm import ActNorm
from numpyro_flows.bijections.base import AbstractBijection, checked
from numpyro_flows.bijections.compose import Frozen, Scan
from numpyro_flows.bijections.composition import AbstractComposition, Part

_BY_ROUNDING = 8  # times eps: a smaller spread relative to the values counts as none


def initialize_from_data[T: AbstractBijection](bijection: T, y: ArrayLike, condition: ArrayLike | None = None) -> T:
    """`bijection` with every `ActNorm` set so that its output towards the base has mean 0 and standard deviation 1.

    The batch passes from the target to the base, through all compositions except `Frozen` and those of FlowJAX. Each
    `ActNorm` is set by the batch that reaches it, layer by layer in a stack. Other parts stay as they are and pass the
    batch on. A coordinate without spread is centred, and its scale stays 1.

    Args:
        bijection: any bijection.
        y: a batch of shape `(num, *shape)`.
        condition: one condition for each, of shape `(num, *cond_shape)`, for a conditional bijection.

    Returns:
        The bijection, with the same structure and types.

    Raises:
        ValueError: if `y` or `condition` has another shape, `num` is below 2, or a needed condition is missing.

    Source: Glow, Kingma, Dhariwal 2018, arXiv 1807.03039.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections.actnorm import ActNorm
        >>> initialize_from_data(ActNorm(1), jnp.array([[1.0], [5.0]])).loc.tolist()
        [3.0]
    """
    name = type(bijection).__name__
    y = jnp.asarray(y)
    if y.shape[1:] != bijection.shape or y.ndim == 0 or len(y) < 2:
        raise ValueError(f"{name} expected data of shape (num, *{bijection.shape}) with num >= 2, got {y.shape}")
    if bijection.cond_shape is None:
        condition = None
    elif condition is None or jnp.shape(condition) != (len(y), *bijection.cond_shape):
        got = None if condition is None else jnp.shape(condition)
        raise ValueError(f"{name} expected conditions of shape {(len(y), *bijection.cond_shape)}, got {got}")
    # one type throughout: the carry of a scan must not change its type
    batch, condition = jax.vmap(lambda y, condition: checked(bijection, y, condition))(y, condition)
    return eqx.filter_jit(_initialized)(bijection, batch, condition, to_base=True)[0]


def _initialized[T: AbstractBijection](
    bijection: T, batch: Array, condition: Array | None, to_base: bool
) -> tuple[T, Array]:
    """The bijection set by the batch that reaches it, and the batch that leaves it."""
    if isinstance(bijection, Scan):  # its parts are stacked, and set one after another in a loop
        arrays, static = eqx.partition(bijection.layers, eqx.is_array)

        def step(batch, layer_arrays):
            layer, batch = _initialized(eqx.combine(layer_arrays, static), batch, condition, to_base)
            return batch, eqx.filter(layer, eqx.is_array)

        batch, arrays = jax.lax.scan(step, batch, arrays, reverse=to_base)
        return eqx.tree_at(lambda b: b.layers, bijection, eqx.combine(arrays, static)), batch
    if isinstance(bijection, AbstractComposition) and not isinstance(bijection, Frozen):
        parts, new = bijection._parts(condition), []
        for part in parts[::-1] if to_base else parts:
            taken, towards_base = jax.vmap(part.take)(batch), to_base != part.inverted
            inner, moved = _initialized(part.bijection, taken, part.condition, towards_base)
            batch = jax.vmap(part.put)(batch, moved)
            new.append(inner)
        new = new[::-1] if to_base else new
        return eqx.tree_at(lambda b: [part.bijection for part in b._parts(None)], bijection, new), batch
    if isinstance(bijection, ActNorm):
        bijection = _standardizing(bijection, batch, to_base)
    return bijection, jax.vmap(lambda y, condition: Part(bijection, condition).move(y, to_base)[0])(batch, condition)


def _standardizing[T: ActNorm](actnorm: T, batch: Float[Array, "num dim"], to_base: bool) -> T:
    mean, deviation = batch.mean(0), batch.std(0)
    spread = deviation > _BY_ROUNDING * jnp.finfo(batch.dtype).eps * jnp.abs(batch).max(0)
    scale = jnp.where(spread, deviation, 1.0)
    loc, scale = (mean, scale) if to_base else (-mean / scale, 1 / scale)
    new = loc.astype(actnorm.loc.dtype), jnp.log(scale).astype(actnorm.log_scale.dtype)
    return eqx.tree_at(lambda a: (a.loc, a.log_scale), actnorm, new)
