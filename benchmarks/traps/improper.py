"""Posteriors without an evidence: every certificate is wrong."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints

from benchmarks.traps.case import Case

FLAT = dist.ImproperUniform(constraints.real, (), ())
FLAT_POSITIVE = dist.ImproperUniform(constraints.positive, (), ())


def inverse_scale_prior(y: Array) -> None:
    """The density of log(tau) stays constant as tau approaches zero."""
    mu = numpyro.sample("mu", FLAT)
    tau = jnp.asarray(numpyro.sample("tau", FLAT_POSITIVE))
    numpyro.factor("prior of tau", -jnp.log(tau))
    with numpyro.plate("group", y.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def flat_logit(y: Array) -> None:
    logit = numpyro.sample("logit", FLAT)
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=logit), obs=y)  # pyright: ignore[reportArgumentType]


def flat_site() -> None:
    numpyro.sample("x", FLAT)


def flat_scale(y: Array) -> None:
    """With two groups the likelihood falls as 1/sigma only."""
    mu = numpyro.sample("mu", FLAT)
    sigma = numpyro.sample("sigma", FLAT_POSITIVE)
    with numpyro.plate("group", y.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, sigma))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def separated(x: Array, y: Array) -> None:
    """A logistic regression with flat coefficients and classes that a line separates."""
    a = jnp.asarray(numpyro.sample("a", FLAT))
    b = jnp.asarray(numpyro.sample("b", FLAT))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=a + b * x), obs=y)  # pyright: ignore[reportArgumentType]


CASES = {
    "improper: 20 groups, prior 1/tau": Case(
        inverse_scale_prior, None, "improper", (np.random.default_rng(3).normal(0, 3, 20),)
    ),
    "improper: flat logit, five ones": Case(flat_logit, None, "improper", (np.ones(5),)),
    "improper: a flat site": Case(flat_site, None, "improper"),
}

VARIATIONS = {
    # the density of log(tau) is high at its end, where single precision ends
    "improper: 12 groups that are alike, prior 1/tau": Case(
        inverse_scale_prior, None, "variation", (np.random.default_rng(1).normal(0, 1.05, 12),)
    ),
    "improper: flat scale, two groups": Case(flat_scale, None, "variation", (np.array([1.2, -0.7]),)),
    "improper: separated classes": Case(
        separated,
        None,
        "variation",
        (np.array([-2.0, -1.0, -0.5, 0.7, 1.5, 2.0]), np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])),
    ),
}
