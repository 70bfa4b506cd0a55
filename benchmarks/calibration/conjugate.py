"""Conjugate models: the evidence has a closed form, and the unconstrained posterior is not Gaussian."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from scipy.special import gammaln

from benchmarks.calibration.models import Simulated

NUM_COUNTS, SHAPE, RATE = 3, 2.0, 1.0
NUM_NORMAL, VARIANCE_SHAPE, VARIANCE_SCALE, PRIOR_ROWS = 5, 3.0, 2.0, 0.5


@dataclass(frozen=True, eq=False)
class Conjugate(Simulated):
    """With the exact log evidence of data `y`."""

    log_evidence: Callable[[np.ndarray], float]


def gamma_poisson(y: Float[Array, " rows"] | None = None) -> None:
    """`y ~ Poisson(rate)`, `rate ~ Gamma(SHAPE, RATE)`."""
    rate = numpyro.sample("rate", dist.Gamma(SHAPE, RATE))
    with numpyro.plate("row", NUM_COUNTS):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def gamma_poisson_log_evidence(y: Float[np.ndarray, " rows"]) -> float:
    shape, rate = SHAPE + y.sum(), RATE + len(y)
    prior, posterior = SHAPE * np.log(RATE) - gammaln(SHAPE), shape * np.log(rate) - gammaln(shape)
    return float(prior - posterior - gammaln(y + 1).sum())


def normal_inverse_gamma(y: Float[Array, " rows"] | None = None) -> None:
    """`y ~ Normal(mean, variance)`, `mean ~ Normal(0, variance / PRIOR_ROWS)`, `variance ~ InverseGamma`."""
    variance = jnp.asarray(numpyro.sample("variance", dist.InverseGamma(VARIANCE_SHAPE, VARIANCE_SCALE)))
    mean = numpyro.sample("mean", dist.Normal(0, jnp.sqrt(variance / PRIOR_ROWS)))
    with numpyro.plate("row", NUM_NORMAL):
        numpyro.sample("y", dist.Normal(mean, jnp.sqrt(variance)), obs=y)


def normal_inverse_gamma_log_evidence(y: Float[np.ndarray, " rows"]) -> float:
    n, rows = len(y), PRIOR_ROWS + len(y)
    shape = VARIANCE_SHAPE + n / 2
    scale = VARIANCE_SCALE + ((y - y.mean()) ** 2).sum() / 2 + PRIOR_ROWS * n / rows * y.mean() ** 2 / 2
    prior = VARIANCE_SHAPE * np.log(VARIANCE_SCALE) - gammaln(VARIANCE_SHAPE)
    posterior = shape * np.log(scale) - gammaln(shape)
    return float(prior - posterior + np.log(PRIOR_ROWS / rows) / 2 - n / 2 * np.log(2 * np.pi))


MODELS = {
    "gamma_poisson": Conjugate(gamma_poisson, (), gamma_poisson_log_evidence),
    "normal_inverse_gamma": Conjugate(normal_inverse_gamma, (), normal_inverse_gamma_log_evidence),
}
