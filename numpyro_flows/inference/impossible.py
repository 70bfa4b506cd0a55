"""Checks for a breakdown of a model's arithmetic: probabilities above one, log-gamma functions without digits."""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, Bool
from numpyro.primitives import Messenger

from numpyro_flows.inference.model_checks import is_discrete

_TOLERANCE = 0.01  # nats: above the rounding error of log-gamma functions of counts, far below a relevant gain
# distributions with log-gamma functions, of these parameters
_WITH_GAMMA = (dist.Beta, dist.Dirichlet, dist.Gamma, dist.InverseGamma, dist.StudentT, dist.MultivariateStudentT)
_WITH_GAMMA += (dist.BetaBinomial, dist.DirichletMultinomial, dist.GammaPoisson)
_OF_GAMMA = ("concentration", "concentration0", "concentration1", "df")
_LOST = 1.0  # nats


class Impossible(Messenger):
    """A handler around a model that checks whether its log density is impossible.

    Differences of log-gamma functions lose all digits at large arguments. So a negative binomial distribution with a
    concentration of 1e20 gives probabilities of e^100,000, and a beta distribution gives densities of any size. A
    search would take such a region for most of the posterior.

    Attributes:
        found: for some sites, whether an observed discrete value has a probability above one, or a parameter is so
            large that its log-gamma function is rounded by a nat.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self.found: list[Bool[Array, ""]] = []

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or isinstance(msg["fn"], dist.Delta):
            return
        distribution = msg["fn"]
        while hasattr(distribution, "base_dist") and not isinstance(distribution, dist.TransformedDistribution):
            distribution = distribution.base_dist
        for name in _OF_GAMMA if isinstance(distribution, _WITH_GAMMA) else ():
            value = getattr(distribution, name, None)
            if isinstance(value, Tracer):  # not a number that is always the same
                size = jnp.abs(value.astype(float))
                rounding = jnp.finfo(size.dtype).eps * size * jnp.log1p(size)
                self.found.append(jnp.any(rounding > _LOST))
        if msg["is_observed"] and is_discrete(msg["fn"]):
            self.found.append(jnp.any(msg["fn"].log_prob(msg["value"]) > _TOLERANCE))
