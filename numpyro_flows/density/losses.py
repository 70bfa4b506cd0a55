"""Rows and losses of density training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from numpyro_flows.bijections import AbstractBijection, EmbeddedCondition
from numpyro_flows.continuous import AbstractField, ContinuousFlow, FlowMatching, in_training
from numpyro_flows.density.base import Base
from numpyro_flows.modeling.scoring import standard_normal_log_prob
from numpyro_flows.training.devices import ONE_DEVICE, Devices

_BLOCK = 1000  # rows scored at once by each device


class Rows(NamedTuple):
    """Rows for training or scoring, in NumPy or on the device.

    x: vectors `(num, dim)`.
    condition: condition of each row, `(num, cond_dim)`, or None.
    weights: `(num,)`, of mean 1.
    """

    x: Any
    condition: Any
    weights: Any


Objective = Callable[[AbstractBijection, Base, PRNGKeyArray, Rows, Devices], Scalar]
"""A loss of a flow on some rows, with a key for its randomness, and the devices that share the rows."""


def log_prob_rows(
    bijection: AbstractBijection, rows: Rows, base: Base = None, devices: Devices = ONE_DEVICE
) -> Float[Array, " num"]:
    """`log p_base(f^-1(x)) + log |det df^-1/dx|` of every row, in blocks, so that memory does not grow with the rows.

    Devices share the rows of a block.
    """

    def log_prob(x: Array, condition: Array | None) -> Array:
        z, log_det = bijection.inverse_and_log_det(x, condition)
        return jnp.asarray(standard_normal_log_prob(z) if base is None else base.log_prob(z)) + log_det

    num = len(rows.x)
    num_blocks = -(-num // (_BLOCK * devices.num))
    if num_blocks == 1:
        return jax.vmap(log_prob)(*devices.sharded((rows.x, rows.condition)))
    block = -(-num // num_blocks)
    filled = jax.tree.map(
        lambda leaf: jnp.resize(leaf, (num_blocks * block, *leaf.shape[1:])), (rows.x, rows.condition)
    )
    blocks = jax.tree.map(lambda leaf: leaf.reshape(num_blocks, block, *leaf.shape[1:]), filled)
    return jax.lax.map(lambda block: jax.vmap(log_prob)(*devices.sharded(block)), blocks).reshape(-1)[:num]


def mean_nll(
    bijection: AbstractBijection, rows: Rows, base: Base = None, devices: Devices = ONE_DEVICE
) -> tuple[Scalar, Float[Array, " num"]]:
    """The weighted mean of the negative log densities of `rows`, and the log densities."""
    log_prob = log_prob_rows(bijection, rows, base, devices)
    return -jnp.mean(rows.weights * log_prob), log_prob


def maximum_likelihood(
    bijection: AbstractBijection, base: Base, key: PRNGKeyArray, rows: Rows, devices: Devices
) -> Scalar:
    """The mean negative log likelihood of a training step."""
    return mean_nll(in_training(bijection, key), rows, base, devices)[0]


def flow_matching(matching: FlowMatching) -> Objective:
    """The loss of `matching`; a ValueError for another bijection than a `ContinuousFlow`, or another base."""

    def objective(bijection: AbstractBijection, base: Base, key: PRNGKeyArray, rows: Rows, devices: Devices) -> Scalar:
        if base is not None:
            raise ValueError("flow_matching expected a standard normal base, got another: leave base out")
        if isinstance(bijection, EmbeddedCondition) and isinstance(bijection.bijection, ContinuousFlow):
            field = _EmbeddedField(bijection.bijection.field, bijection)
            bijection = eqx.tree_at(lambda flow: flow.field, bijection.bijection, field)
        if not isinstance(bijection, ContinuousFlow):
            raise ValueError(
                "flow_matching expected a recipe of a ContinuousFlow, such as flows.ffjord, got one of a "
                f"{type(bijection).__name__}; continue the training of other flows by maximum_likelihood"
            )
        return matching(bijection, key, *devices.sharded(rows))

    return objective


class _EmbeddedField(eqx.Module):
    """The field of a flow with an embedding, given conditions as they are: couplings compare these."""

    field: AbstractField
    embedded: EmbeddedCondition

    def __call__(self, t: Scalar, x: Array, condition: Array) -> Array:
        return self.field(t, x, self.embedded.embed(condition))


def checked_matching(objective: str | FlowMatching) -> FlowMatching | None:
    """The `FlowMatching` of an objective; None for maximum likelihood."""
    if isinstance(objective, FlowMatching):
        return objective
    if objective not in ("maximum_likelihood", "flow_matching"):
        raise ValueError(
            f"objective expected 'maximum_likelihood', 'flow_matching' or a FlowMatching, got {objective!r}"
        )
    return FlowMatching() if objective == "flow_matching" else None
