"""The density of a model with a subsampled plate, estimated from some of its rows, for training steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from numpyro_flows.inference.target import Fitted


class Minibatch(NamedTuple):
    """Unbiased estimates of a target's log density from random rows, with its tangent plane as control variate.

    With `f` the log density and `f_B` that with the rows `B` in place of all, at a centre `c`:

        f_B(x) + (f(c) - f_B(c)) + (grad f(c) - grad f_B(c)) . (x - c)

    estimates `f(x)`, with an error that vanishes to second order in `x - c`. All particles of a step share the rows.

    Attributes:
        centre: `c`.
        value: `f(c)`.
        gradient: `grad f(c)`.

    Source: Baker, Fearnhead, Fox, Nemeth 2019, arXiv 1706.05439.
    """

    centre: Float[Array, " dim"]
    value: Float[Array, ""]
    gradient: Float[Array, " dim"]

    def log_density(self, target: Fitted, rng_key: PRNGKeyArray) -> Callable[[Float[Array, " dim"]], Scalar]:
        """A function of `x` that returns the estimate from rows chosen by `rng_key`, each with the same probability."""
        assert target.rows is not None
        rows = jax.random.randint(rng_key, (target.rows.block,), 0, target.rows.size)
        value, gradient = jax.value_and_grad(target.log_density_with)(self.centre, rows)

        def estimate(x: Float[Array, " dim"]) -> Scalar:
            plane = (self.value - value) + (self.gradient - gradient) @ (x - self.centre)
            return target.log_density_with(x, rows) + plane

        return estimate
