"""A flow as a NumPyro distribution."""

import os
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike
from numpyro.distributions.util import validate_sample

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.serialization import load_tree, save_tree
from numpyro_flows.transforms import FlowTransform


class FlowDistribution(dist.TransformedDistribution):
    """The distribution of `y = f(x | condition)` for `x ~ base_dist`, with density `p(f^-1(y)) |det dx/dy|`.

    To sample from, to score, and to put in `numpyro.sample` as a prior or a likelihood: gradients flow through values,
    parameters and the condition. `log_prob` is one inverse pass; a density that follows a draw of
    `sample_with_intermediates` needs none.

    Args:
        bijection: of this library or of FlowJAX.
        base_dist: a NumPyro distribution with the bijection's event shape; standard normal by default.
        condition: array of shape `(*batch, *cond_shape)`, whose batch shape becomes one of the distribution.

    Raises:
        TypeError: where `bijection` is none.
        ValueError: where the condition or the base distribution has the wrong shape.

    Example:
        >>> import jax
        >>> from numpyro_flows import FlowDistribution, flows
        >>> flow = FlowDistribution(flows.realnvp(jax.random.key(0), 2))
        >>> flow.log_prob(flow.sample(jax.random.key(1), (5,))).shape
        (5,)
    """

    def __init__(
        self,
        bijection: AbstractBijection,
        base_dist: dist.Distribution | None = None,
        condition: ArrayLike | None = None,
        *,
        validate_args: bool | None = None,
    ):
        transform = FlowTransform(bijection, condition)
        event_shape = tuple(bijection.shape)
        base = base_dist or dist.Normal(jnp.zeros(event_shape), 1.0).to_event(len(event_shape))
        if base.event_shape != event_shape:
            raise ValueError(f"expected a base distribution with event shape {event_shape}, got {base.event_shape}")
        super().__init__(base, [transform], validate_args=validate_args)

    @property
    def bijection(self) -> AbstractBijection:
        return self._transform.bijection

    @property
    def condition(self) -> Array | None:
        return self._transform.condition

    @property
    def _transform(self) -> FlowTransform:
        return self.transforms[0]  # pyright: ignore[reportReturnType]

    @validate_sample
    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:  # pyright: ignore
        """Log density of `value` `(*sample, *batch, *event)`, of shape `(*sample, *batch)`."""
        if intermediates is not None:
            [(x, log_det)] = intermediates
            return jnp.asarray(self.base_dist.log_prob(x)) - log_det
        x, log_det = self._transform.inverse_and_log_det(value)
        return jnp.asarray(self.base_dist.log_prob(x)) + log_det

    def save(self, path: str | os.PathLike) -> None:
        """Write bijection, base distribution's parameters and condition to one file.

        Raises:
            TypeError: where the flow holds something that is neither an array, a plain value, a module nor a
                function that can be imported.
        """
        save_tree(path, {"bijection": self.bijection, "base_dist": self.base_dist, "condition": self.condition})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "FlowDistribution":
        """What `save` wrote."""
        return cls(**load_tree(path))
