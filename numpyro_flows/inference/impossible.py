"""Probabilities above one, which a model's arithmetic gives where it has broken down."""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool
from numpyro.primitives import Messenger

from numpyro_flows.inference.model_checks import is_discrete

_TOLERANCE = 0.01  # nats: above the rounding error of log-gamma functions of counts, far below what is worth a climb


class Impossible(Messenger):
    """A handler around a model that looks whether observed discrete values have a probability above one.

    A negative binomial distribution of a concentration of 1e20 does, by e^100,000: differences of log-gamma functions
    lose all digits there. A search would take such a region for most of the posterior.

    Attributes:
        found: for each such site whether any of its values has one.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self.found: list[Bool[Array, ""]] = []

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or not msg["is_observed"] or isinstance(msg["fn"], dist.Delta):
            return
        if is_discrete(msg["fn"]):
            self.found.append(jnp.any(msg["fn"].log_prob(msg["value"]) > _TOLERANCE))
