"""The base of a flow in training: any NumPyro distribution of its events, whose parameters are trained too."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to

from numpyro_flows.arguments import described

Base = dist.Distribution | None
"""What a flow transforms; None for the standard normal distribution."""

Parameters = dict[str, Any]
"""Of a distribution, by name, unconstrained; of one made of others, theirs by attribute."""


def checked_base(base: Any, dim: int) -> Base:
    """The base for events of `dim` numbers, None if standard normal; a distribution of one number is repeated.

    Raises:
        TypeError: if it is not a NumPyro distribution.
        ValueError: if it has other events, or not all real vectors as support.
    """
    if base is None:
        return None
    if not isinstance(base, dist.Distribution):
        raise TypeError(f"base expected a NumPyro distribution, for example dist.StudentT(5.0), got {described(base)}")
    if base.event_shape == () and base.batch_shape in ((), (dim,)):
        base = base.expand((dim,)).to_event(1)
    if base.batch_shape or base.event_shape != (dim,):
        raise ValueError(
            f"base expected events of shape {(dim,)} and no batch, or a distribution of one number, got events of "
            f"shape {base.event_shape} and a batch of shape {base.batch_shape}"
        )
    inside = base.support
    while isinstance(inside, constraints.independent):
        inside = inside.base_constraint
    if inside not in (constraints.real, constraints.real_vector):
        raise ValueError(f"base expected a distribution of all real numbers, such as dist.StudentT(5.0), got {inside}")
    return None if is_standard_normal(base) else base


def is_standard_normal(base: Base) -> bool:
    """Whether it is that of any number of coordinates."""
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    return base is None or bool(isinstance(base, dist.Normal) and np.all(base.loc == 0) and np.all(base.scale == 1))


def parameters_of(base: Base) -> Parameters:
    """The trainable parameters; none for distributions that cannot be rebuilt from them, such as transformed ones."""
    if base is None:
        return {}
    inner = {name: parameters_of(part) for name, part in _parts(base).items()}
    return inner | {
        name: biject_to(constraint).inv(jnp.asarray(getattr(base, name), jnp.result_type(float)))
        for name, constraint in _constraints(base).items()
    }


def with_parameters(base: Base, parameters: Parameters) -> Base:
    """`base` with other parameters."""
    if base is None or not jax.tree.leaves(parameters):
        return base
    if isinstance(base, dist.Independent):
        return _with_part(base, "base_dist", parameters).to_event(base.reinterpreted_batch_ndims)
    if isinstance(base, dist.ExpandedDistribution):
        return _with_part(base, "base_dist", parameters).expand(base.batch_shape)
    if isinstance(base, dist.MixtureSameFamily):
        mixing = _with_part(base, "mixing_distribution", parameters)
        return dist.MixtureSameFamily(mixing, _with_part(base, "component_distribution", parameters))
    values: dict[str, Array] = {
        name: jnp.asarray(biject_to(constraint)(parameters[name])) for name, constraint in _constraints(base).items()
    }
    return type(base)(**values)


def _parts(base: dist.Distribution) -> dict[str, dist.Distribution]:
    """The distributions that one is made of."""
    names: tuple[str, ...] = ()
    if isinstance(base, dist.Independent | dist.ExpandedDistribution):
        names = ("base_dist",)
    elif isinstance(base, dist.MixtureSameFamily):
        names = ("mixing_distribution", "component_distribution")
    return {name: getattr(base, name) for name in names}


def _with_part(base: dist.Distribution, name: str, parameters: Parameters) -> dist.Distribution:
    part = with_parameters(getattr(base, name), parameters[name])
    assert part is not None
    return part


def _constraints(base: dist.Distribution) -> dict[str, Any]:
    """Constraints of the parameters that the distribution was made with."""
    if _parts(base):
        return {}
    stored = set(type(base).gather_pytree_data_fields())
    return {name: constraint for name, constraint in base.arg_constraints.items() if name in stored}
