"""Hierarchical models of posteriordb, centred as they are there. Sites have the names of the Stan programs."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array

LARGEST_SCALE = 100.0  # of pilots
LARGEST_SIGMA = 5.0  # of GLMM_Poisson


def pilots(group: Array, scenario: Array, y: Array) -> None:
    """Two crossed groupings; `group` and `scenario` count from 0."""
    scale = dist.Uniform(0.0, LARGEST_SCALE)
    mu_a, mu_b = (jnp.asarray(numpyro.sample(f"mu_{name}", dist.Normal(0.0, 1.0))) for name in "ab")
    sigma_a, sigma_b, sigma_y = (numpyro.sample(f"sigma_{name}", scale) for name in "aby")
    with numpyro.plate("groups", 5):
        a = jnp.asarray(numpyro.sample("a", dist.Normal(10.0 * mu_a, sigma_a)))
    with numpyro.plate("scenarios", 8):
        b = jnp.asarray(numpyro.sample("b", dist.Normal(10.0 * mu_b, sigma_b)))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.Normal(a[group] + b[scenario], sigma_y), obs=y)


def surgical(n: Array, r: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1000.0))
    sigmasq = jnp.asarray(numpyro.sample("sigmasq", dist.InverseGamma(0.001, 0.001)))
    with numpyro.plate("hospital", n.shape[0]):
        b = numpyro.sample("b", dist.Normal(mu, jnp.sqrt(sigmasq)))
        numpyro.sample("r", dist.Binomial(n, logits=b), obs=r)


def seeds(x1: Array, x2: Array, total: Array, n: Array) -> None:
    """`n` of `total` seeds germinated on each plate."""
    flat = dist.Normal(0.0, 1000.0)
    alpha0, alpha1, alpha2, alpha12 = (jnp.asarray(numpyro.sample(f"alpha{k}", flat)) for k in ("0", "1", "2", "12"))
    tau = jnp.asarray(numpyro.sample("tau", dist.Gamma(0.001, 0.001)))
    with numpyro.plate("dish", n.shape[0]):
        b = jnp.asarray(numpyro.sample("b", dist.Normal(0.0, 1.0 / jnp.sqrt(tau))))
        logits = alpha0 + alpha1 * x1 + alpha2 * x2 + alpha12 * x1 * x2 + b
        numpyro.sample("n", dist.Binomial(total, logits=logits), obs=n)


def glmm_poisson(year: Array, count: Array) -> None:
    alpha = jnp.asarray(numpyro.sample("alpha", dist.Uniform(-20.0, 20.0)))
    beta1, beta2, beta3 = (jnp.asarray(numpyro.sample(f"beta{k}", dist.Uniform(-10.0, 10.0))) for k in (1, 2, 3))
    sigma = numpyro.sample("sigma", dist.Uniform(0.0, LARGEST_SIGMA))
    with numpyro.plate("years", count.shape[0]):
        eps = jnp.asarray(numpyro.sample("eps", dist.Normal(0.0, sigma)))
        log_rate = alpha + beta1 * year + beta2 * year**2 + beta3 * year**3 + eps
        numpyro.sample("C", dist.Poisson(jnp.exp(log_rate)), obs=count)
