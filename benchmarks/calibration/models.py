"""Models whose data are simulated from their priors: called without `y` they draw it."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])  # standard errors of the eight schools, Rubin 1981
ROWS, COLUMNS = 60, 4


@dataclass(frozen=True, eq=False)
class Simulated:
    """A model `model(*args, y=None)` with known `args`, whose data `y` are simulated."""

    model: Callable
    args: tuple


def eight_schools(sigma: Float[Array | np.ndarray, " schools"], y: Float[Array, " schools"] | None = None) -> None:
    """Centred, with a prior of `tau` that has draws on both sides of the neck."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(5))
    with numpyro.plate("school", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentred(
    sigma: Float[Array | np.ndarray, " schools"], y: Float[Array, " schools"] | None = None
) -> None:
    """The same without a neck."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(5))
    with numpyro.plate("school", len(sigma)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + jnp.asarray(tau) * jnp.asarray(z), sigma), obs=y)


def logistic(x: Float[Array | np.ndarray, "rows columns"], y: Float[Array, " rows"] | None = None) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(0, 1.5))
    slope = numpyro.sample("slope", dist.Normal(0, 1.5).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=intercept + jnp.asarray(x) @ slope), obs=y)


MODELS = {
    "eight_schools": Simulated(eight_schools, (SIGMA,)),
    "logistic": Simulated(logistic, (np.random.default_rng(0).normal(size=(ROWS, COLUMNS)),)),
}
