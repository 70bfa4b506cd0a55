"""The elementwise maps at the target's end of a bijection: they are split off, and restricted to some coordinates."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_flows.bijections import (
    AbstractBijection,
    Affine,
    Chain,
    Elementwise,
    Frozen,
    Identity,
    Invert,
    StandardizedCondition,
    YeoJohnson,
)


def peeled(bijection: AbstractBijection) -> tuple[AbstractBijection | None, list[AbstractBijection]]:
    """The remaining bijection, None for the identity, and the elementwise maps after it, the first applied first."""
    if isinstance(bijection, Identity):
        return None, []
    if isinstance(bijection, Affine | Elementwise | YeoJohnson):
        return None, [bijection]
    if isinstance(bijection, Invert) and isinstance(bijection.bijection, Affine | Elementwise | YeoJohnson):
        return None, [bijection]
    if isinstance(bijection, Frozen | StandardizedCondition):
        core, tail = peeled(bijection.bijection)
        core = None if core is None else eqx.tree_at(lambda around: around.bijection, bijection, core)
        return core, [Frozen(one) for one in tail] if isinstance(bijection, Frozen) else tail
    if isinstance(bijection, Chain):
        parts, tail = list(bijection.bijections), []
        while parts:
            core, more = peeled(parts.pop())
            tail = more + tail
            if core is not None:
                return (Chain([*parts, core]) if parts else core), tail
        return None, tail
    return bijection, []


def elementwise(tail: list[AbstractBijection], places: tuple[int, ...]) -> AbstractBijection:
    """The part of such maps that acts on some coordinates, in this order."""
    return Chain([_restricted(one, np.asarray(places)) for one in tail]) if tail else Identity((len(places),))


def _restricted(bijection: AbstractBijection, places: np.ndarray) -> AbstractBijection:
    if isinstance(bijection, Frozen | Invert):
        return type(bijection)(_restricted(bijection.bijection, places))
    if isinstance(bijection, Affine):
        return Affine(bijection.loc[places], jnp.exp(bijection.log_scale[places]))
    if isinstance(bijection, Elementwise):
        fresh = Elementwise(len(places), bijection.univariate)
        return eqx.tree_at(lambda one: one.params, fresh, bijection.params[places])
    assert isinstance(bijection, YeoJohnson)

    def parameters(one: YeoJohnson) -> tuple[Array, Array, Array]:
        return one.power, one.low, one.high

    fresh = YeoJohnson(np.ones(len(places)), -1.0, 1.0)
    return eqx.tree_at(parameters, fresh, tuple(a[places] for a in parameters(bijection)))
