"""The models, with simulated data."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

Data = tuple[Array, ...]
SCHOOLS = 8
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y: Array, sigma: Array) -> None:
    """Eight schools, not centred."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", SCHOOLS):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def schools_data(num: int) -> Float[np.ndarray, "num 8"]:
    """Data sets of schools whose effects differ by 0 to 15."""
    rng = np.random.default_rng(0)
    effects = rng.normal(5, 5, (num, 1)) + rng.uniform(0, 15, (num, 1)) * rng.normal(size=(num, SCHOOLS))
    return effects + SIGMA * rng.normal(size=(num, SCHOOLS))


def regression(x: Array, y: Array) -> None:
    """Linear, with weak priors."""
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([x.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10))
    numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def regression_data(seed: int, rows: int = 400, columns: int = 4) -> Data:
    rng = np.random.default_rng(seed)
    x = np.concatenate([np.ones((rows, 1)), rng.normal(size=(rows, columns - 1))], axis=1)
    return jnp.asarray(x), jnp.asarray(x @ rng.normal(size=columns) + rng.normal(size=rows))


def logistic(x: Array, y: Array) -> None:
    alpha = numpyro.sample("alpha", dist.Normal(0, 2))
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=alpha + x @ beta), obs=y)


def logistic_data(rows: int, columns: int) -> Data:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, columns))
    probability = 1.0 / (1.0 + np.exp(-x @ rng.normal(0, 0.5, columns)))
    return jnp.asarray(x), jnp.asarray((rng.uniform(size=rows) < probability).astype(int))


def counts(centred: bool) -> Callable[[Array, Array], None]:
    """A hierarchical Poisson regression with 30 groups: 33 dimensions."""

    def model(group: Array, y: Array) -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 2))
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        tau = numpyro.sample("tau", dist.HalfNormal(1))
        with numpyro.plate("groups", 30):
            base = dist.Normal(mu, tau) if centred else dist.Normal(0, 1)
            own = jnp.asarray(numpyro.sample("effect", base))
        effect = own if centred else mu + tau * own
        x = jnp.linspace(-1, 1, y.size)
        numpyro.sample("y", dist.Poisson(jnp.exp(effect[group] + slope * x)), obs=y)

    return model


def counts_data() -> Data:
    rng = np.random.default_rng(0)
    group = rng.permutation(np.arange(150) % 30)
    rate = np.exp(1.0 + 0.5 * rng.normal(size=30)[group] + 0.3 * np.linspace(-1, 1, 150))
    return jnp.asarray(group), jnp.asarray(rng.poisson(rate))


def funnel() -> None:
    """Of 101 dimensions; its evidence is 1."""
    v = numpyro.sample("v", dist.Normal(0, 3))
    numpyro.sample("x", dist.Normal(0, jnp.exp(v / 2)).expand([100]).to_event(1))


def sparse(x: Array, y: Array) -> None:
    """A logistic regression with a horseshoe prior: 51 dimensions for 25 columns."""
    tau = numpyro.sample("tau", dist.HalfCauchy(1))
    lam = numpyro.sample("lam", dist.HalfCauchy(1).expand([x.shape[1]]).to_event(1))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ (z * lam * tau)), obs=y)


def sparse_data() -> Data:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 25))
    w = np.where(np.arange(25) < 5, rng.normal(0, 1, 25), 0.0)
    return jnp.asarray(x), jnp.asarray((rng.uniform(size=1000) < 1.0 / (1.0 + np.exp(-x @ w))).astype(int))


def of_shape(number: int) -> tuple[Callable, Data]:
    """One of any number of models that differ in their shapes or in their priors."""
    columns, heavy = 2 + number % 5, number % 2 == 1

    def model(x: Array, y: Array) -> None:
        prior = dist.StudentT(4, 0, 5) if heavy else dist.Normal(0, 5)
        beta = numpyro.sample("beta", prior.expand([columns]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(5))
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return model, regression_data(number, 20 + number, columns)
