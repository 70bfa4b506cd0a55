"""What a flow is trained on, and what it is trained for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.continuous import ContinuousFlow, FlowMatching, in_training
from numpyro_flows.modeling.scoring import standard_normal_log_prob
from numpyro_flows.training.devices import ONE_DEVICE, Devices

_BLOCK = 1000  # rows scored at once by each device


class Rows(NamedTuple):
    """What a flow is trained on or scored by, in NumPy or on the device.

    x: vectors `(num, dim)`.
    condition: of each, `(num, cond_dim)`, or None.
    weights: `(num,)`, of mean 1.
    """

    x: Any
    condition: Any
    weights: Any


Objective = Callable[[AbstractBijection, PRNGKeyArray, Rows, Devices], Scalar]
"""A loss of a bijection on some rows, with a key for what is random in it, and the devices that share the rows."""


Base = Callable[[Array], Scalar]
"""The log density of a bijection's base at one vector."""


def log_prob_rows(
    bijection: AbstractBijection, rows: Rows, devices: Devices = ONE_DEVICE, base: Base = standard_normal_log_prob
) -> Float[Array, " num"]:
    """`log p_base(f^-1(x)) + log |det df^-1/dx|` of every row, in blocks, so that memory does not grow with them.

    Devices share the rows of a block.
    """

    def log_prob(x: Array, condition: Array | None) -> Array:
        of_base, log_det = bijection.inverse_and_log_det(x, condition)
        return base(of_base) + log_det

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
    bijection: AbstractBijection, rows: Rows, devices: Devices = ONE_DEVICE, base: Base = standard_normal_log_prob
) -> tuple[Scalar, Float[Array, " num"]]:
    """The weighted mean of the negative log densities of `rows`, and the log densities."""
    log_prob = log_prob_rows(bijection, rows, devices, base)
    return -jnp.mean(rows.weights * log_prob), log_prob


def maximum_likelihood(
    bijection: AbstractBijection,
    key: PRNGKeyArray,
    rows: Rows,
    devices: Devices,
    base: Base = standard_normal_log_prob,
) -> Scalar:
    """The mean negative log likelihood of a training step."""
    return mean_nll(in_training(bijection, key), rows, devices, base)[0]


def flow_matching(matching: FlowMatching) -> Objective:
    """The loss of `matching`, which has a ValueError for a bijection that is no `ContinuousFlow`."""

    def objective(bijection: AbstractBijection, key: PRNGKeyArray, rows: Rows, devices: Devices) -> Scalar:
        if not isinstance(bijection, ContinuousFlow):
            raise ValueError(
                "flow_matching expected a recipe of a ContinuousFlow, such as flows.ffjord, got one of a "
                f"{type(bijection).__name__}; a fitted flow goes on by maximum_likelihood"
            )
        return matching(bijection, key, *devices.sharded(rows))

    return objective
