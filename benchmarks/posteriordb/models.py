"""Twenty posteriors of posteriordb as a NumPyro user would write them, with their reference draws.

Sites have the names of the Stan programs. Flat priors are improper uniforms, as they are there.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.experimental.ode import odeint
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints

from benchmarks.posteriordb import data


class Posterior(NamedTuple):
    """A model with its arguments, and 10,000 reference draws by name (`beta[1]`, ...)."""

    name: str
    model: Callable
    args: tuple
    reference: dict[str, np.ndarray]


def eight_schools_noncentered(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    theta_trans = numpyro.sample("theta_trans", dist.Normal(0, 1).expand([8]).to_event(1))
    theta = numpyro.deterministic("theta", mu + tau * theta_trans)
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_centered(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([8]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def flat_regression(X, y):
    beta = numpyro.sample("beta", _flat(constraints.real, X.shape[1]))
    sigma = numpyro.sample("sigma", _flat(constraints.positive))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def cauchy_regression(X, y):
    beta = numpyro.sample("beta", _flat(constraints.real, X.shape[1]))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def normal_regression(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def kilpisjarvi(x, y, pmualpha, psalpha, pmubeta, psbeta):
    alpha = numpyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = numpyro.sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = numpyro.sample("sigma", _flat(constraints.positive))
    numpyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def autoregression(lagged, y):
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([lagged.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(alpha + lagged @ beta, sigma), obs=y)


def diamonds(X, y):
    b = numpyro.sample("b", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    intercept = numpyro.sample("Intercept", dist.StudentT(3, 8, 10))
    sigma = numpyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3, 0, 10)))
    numpyro.sample("y", dist.Normal(intercept + X @ b, sigma), obs=y)


def garch11(y, sigma1):
    mu = numpyro.sample("mu", _flat(constraints.real))
    alpha0 = numpyro.sample("alpha0", _flat(constraints.positive))
    alpha1 = numpyro.sample("alpha1", _flat(constraints.unit_interval))
    beta1 = numpyro.sample("beta1", _flat(constraints.interval(0, 1 - alpha1)))

    def step(variance, y_before):
        variance = alpha0 + alpha1 * (y_before - mu) ** 2 + beta1 * variance
        return variance, variance

    first = jnp.asarray(sigma1**2, jnp.result_type(float))
    _, variances = jax.lax.scan(step, first, jnp.asarray(y[:-1]))
    scale = jnp.sqrt(jnp.concatenate([first[None], variances]))
    numpyro.sample("y", dist.Normal(mu, scale), obs=y)


def gp_regression(x, y):
    rho = numpyro.sample("rho", dist.Gamma(25, 4))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    covariance = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + sigma * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(0, covariance), obs=y)


def hidden_markov(y):
    theta1 = numpyro.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", _flat(constraints.positive_ordered_vector, 2))
    numpyro.factor("mu_prior", dist.Normal(jnp.array([3.0, 10.0]), 1).log_prob(mu).sum())
    transition = jnp.log(jnp.stack([theta1, theta2]))
    emission = dist.Normal(mu, 1).log_prob(y[:, None])

    def step(forward, emitted):
        return logsumexp(forward[:, None] + transition, axis=0) + emitted, None

    forward, _ = jax.lax.scan(step, emission[0], emission[1:])
    numpyro.factor("y", logsumexp(forward))


def lotka_volterra(ts, y_init, y):
    theta = numpyro.sample(
        "theta",
        dist.TruncatedNormal(jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05]), low=0.0).to_event(1),
    )
    z_init = numpyro.sample("z_init", dist.LogNormal(jnp.log(10), 1).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1, 1).expand([2]).to_event(1))

    def change(z, t, theta):
        u, v = z
        return jnp.stack([(theta[0] - theta[1] * v) * u, (-theta[2] + theta[3] * u) * v])

    times = jnp.concatenate([jnp.zeros(1), jnp.asarray(ts)])
    z = odeint(change, z_init, times, theta, rtol=1e-6, atol=1e-5, mxstep=1000)
    numpyro.sample("y_init", dist.LogNormal(jnp.log(z_init), sigma), obs=y_init)
    numpyro.sample("y", dist.LogNormal(jnp.log(z[1:]), sigma), obs=y)


def gauss_mix(y):
    mu = numpyro.sample("mu", _flat(constraints.ordered_vector, 2))
    numpyro.factor("mu_prior", dist.Normal(0, 2).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5, 5))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def _flat(support: constraints.Constraint, *event_shape: int) -> dist.ImproperUniform:
    return dist.ImproperUniform(support, (), event_shape)


def _fields(*names: str) -> Callable[[data.Data], tuple]:
    return lambda d: tuple(d[name] for name in names)


# posterior -> its model, and how the model's arguments are made from the data set
POSTERIORS: dict[str, tuple[Callable, Callable[[data.Data], tuple]]] = {
    "eight_schools-eight_schools_noncentered": (eight_schools_noncentered, _fields("y", "sigma")),
    "eight_schools-eight_schools_centered": (eight_schools_centered, _fields("y", "sigma")),
    "earnings-earn_height": (flat_regression, data.earn_height),
    "earnings-logearn_interaction": (flat_regression, data.logearn_interaction),
    "kidiq-kidscore_momhsiq": (cauchy_regression, data.kidscore_momhsiq),
    "kidiq_with_mom_work-kidscore_interaction_c": (flat_regression, data.kidscore_interaction_c),
    "kidiq_with_mom_work-kidscore_mom_work": (flat_regression, data.kidscore_mom_work),
    "mesquite-mesquite": (flat_regression, data.mesquite),
    "mesquite-logmesquite_logvas": (flat_regression, data.logmesquite_logvas),
    "nes1980-nes": (flat_regression, data.nes),
    "nes1996-nes": (flat_regression, data.nes),
    "sblrc-blr": (normal_regression, _fields("X", "y")),
    "kilpisjarvi_mod-kilpisjarvi": (kilpisjarvi, _fields("x", "y", "pmualpha", "psalpha", "pmubeta", "psbeta")),
    "garch-garch11": (garch11, _fields("y", "sigma1")),
    "arK-arK": (autoregression, data.autoregression),
    "gp_pois_regr-gp_regr": (gp_regression, _fields("x", "y")),
    "hmm_example-hmm_example": (hidden_markov, _fields("y")),
    "hudson_lynx_hare-lotka_volterra": (lotka_volterra, _fields("ts", "y_init", "y")),
    "low_dim_gauss_mix-low_dim_gauss_mix": (gauss_mix, _fields("y")),
    "diamonds-diamonds": (diamonds, data.diamonds),
}


def names() -> list[str]:
    return list(POSTERIORS)


def load(database: Path, name: str) -> Posterior:
    """One of `names()` from a clone of posteriordb, the folder that holds `posterior_database`."""
    model, arguments = POSTERIORS[name]
    fields, reference = data.read(Path(database), name)
    return Posterior(name, model, arguments(fields), reference)


def flatten(sites: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Scalars of `(draws, *site)` sites by the names of Stan: a vector `beta` becomes `beta[1]`, `beta[2]`, ..."""
    scalars = {}
    for name, value in sites.items():
        value = np.asarray(value)
        if value.ndim == 1:
            scalars[name] = value
        else:
            scalars |= {f"{name}[{i + 1}]": column for i, column in enumerate(value.T)}
    return scalars
