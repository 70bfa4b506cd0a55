"""Distributions of vectors with independent coordinates, restricted to some of them."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float


class IndependentColumns(NamedTuple):
    """`prod_i p(x_i)`, from a NumPyro distribution of numbers whose parameters have one value for each coordinate.

    Attributes:
        kind: class of the distribution of one coordinate.
        parameters: parameters by name, of shape `(*batch, dim)`.
    """

    kind: Any
    parameters: dict[str, Array]

    @classmethod
    def of(cls, base: Any) -> "IndependentColumns | None":
        """The columns of a distribution; None if its coordinates are not known to be independent."""
        if not isinstance(base, dist.Independent) or base.reinterpreted_batch_ndims != 1:
            return None
        inner: Any = base.base_dist
        shape = inner.batch_shape
        while isinstance(inner, dist.ExpandedDistribution):
            inner = inner.base_dist
        names = inner.arg_constraints
        numbers = all(getattr(names[name], "event_dim", 0) == 0 for name in names)
        if inner.event_shape or not names or not numbers or isinstance(inner, dist.TransformedDistribution):
            return None
        return cls(type(inner), {name: jnp.broadcast_to(getattr(inner, name), shape) for name in names})

    def marginal(self, places: tuple[int, ...]) -> dist.Distribution:
        """The distribution of some coordinates, in this order."""
        some = {name: values[..., np.asarray(places)] for name, values in self.parameters.items()}
        return self.kind(**some).to_event(1)

    def conditional(
        self, places: tuple[int, ...], given: tuple[int, ...], values: Float[Array, "*batch given"]
    ) -> dist.Distribution:
        """The same distribution, whatever the others are, for each of the batch."""
        marginal = self.marginal(places)
        return marginal.expand(jnp.broadcast_shapes(marginal.batch_shape, values.shape[:-1]))
