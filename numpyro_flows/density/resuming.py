"""Data for further training of a fitted flow."""

import warnings
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.continuous import FewSteps
from numpyro_flows.density.base import Base, is_standard_normal
from numpyro_flows.density.observations import Dequantize, Observations, Support, observe, sites_of
from numpyro_flows.modeling.distributions import FlowDistribution


def observe_for(
    flow: FlowDistribution, data: Any, support: Support, dequantize: Dequantize, noise: float
) -> Observations:
    """Data for further training; a ValueError unless they have the flow's sites, shape and support."""
    if flow.fit is not None and flow.fit.kept == "mixture":
        warnings.warn(
            "the mixture that training starts from was fitted to all rows of its data, so scores of validation "
            "rows of the same data are optimistic",
            UserWarning,
            stacklevel=3,
        )
    sites = sites_of(data)
    if (sites is None) != (flow.sites is None) or (sites and flow.sites and sites.keys() != flow.sites.shapes.keys()):
        names = None if flow.sites is None else list(flow.sites.shapes)
        raise ValueError(
            f"data expected {'an array' if names is None else f'the sites {names}'}, as the flow has, got "
            f"{'an array' if sites is None else f'the sites {list(sites)}'}"
        )
    if sites is not None and flow.sites is not None:
        data = {name: sites[name] for name in flow.sites.shapes}  # in the flow's order
    own: Any = flow.sites.supports if flow.sites is not None else flow.support
    observed = observe(data, own if support is None else support, dequantize=dequantize, noise=noise)
    shapes = flow.event_shape if flow.sites is None else flow.sites.shapes
    got = observed.values.shape[1:] if sites is None else {name: np.shape(value)[1:] for name, value in data.items()}
    if got != shapes:
        raise ValueError(f"data expected events of shape {shapes}, as the flow has, got {got}")
    if support is not None and observed.constrain != flow.constrain:
        raise ValueError(f"support expected that of the flow, {flow.support}, got {support}: leave it out")
    return observed._replace(constrain=flow.constrain)


def require_condition_of(flow: FlowDistribution, conditions: Float[np.ndarray, "num cond_dim"] | None) -> None:
    """Raise a ValueError if conditions have another shape than the flow's, are missing, or the flow has none."""
    shape, got = flow.bijection.cond_shape, None if conditions is None else conditions.shape[1:]
    if shape is None and got is not None:
        raise ValueError("condition expected None because the flow has no condition, got one: give a recipe as flow")
    if shape is not None and got != tuple(shape):
        raise ValueError(f"condition expected rows of shape {tuple(shape)}, as the flow has, got {got}")


def require_not_distilled(bijection: AbstractBijection) -> None:
    """Raise a ValueError for a distilled flow.

    Training by likelihood would change only the steps back, which would then no longer fit the steps forth.
    """
    nodes = jax.tree.leaves(bijection, is_leaf=lambda node: isinstance(node, FewSteps))
    if any(isinstance(node, FewSteps) for node in nodes):
        raise ValueError(
            "flow expected one that maximum likelihood can train, got one distilled by few_steps: train the flow that "
            "it was distilled from, and distil that again"
        )


def base_of(flow: FlowDistribution) -> Base:
    """The base on which a flow is trained; None for the standard normal distribution."""
    if len(flow.transforms) > 1 + (flow.constrain is not None):  # the base is itself transformed
        raise ValueError(
            "flow expected a FlowDistribution on an untransformed base, got one on a TransformedDistribution: put its "
            "transforms into the bijection"
        )
    return None if is_standard_normal(flow.base_dist) else flow.base_dist
