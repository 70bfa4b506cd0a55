"""Models and fits that several tests use."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.stats import multivariate_normal

from numpyro_flows import FlowPosterior
from numpyro_flows.bijections import Affine, Chain, Identity
from numpyro_flows.inference.certificate import certify
from numpyro_flows.inference.target import Target
from numpyro_flows.modeling.guides import AutoFlow
from numpyro_flows.training.reasons import Reason

Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(sigma=SIGMA, y=Y):
    """The non-centred eight schools (Rubin 1981)."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_centred(sigma=SIGMA, y=Y):
    """The centred eight schools, whose posterior is a funnel."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


DATA = jnp.array([1.0, 2.5, 0.5, 3.0, 2.0])


def conjugate(y=DATA):
    """Normal mean, known variance 1, prior N(0, 2^2): posterior and evidence have closed forms."""
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    with numpyro.plate("n", y.shape[0]):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def conjugate_posterior():
    """Mean and sd of `mu` given `DATA`, and the log evidence."""
    n, precision = DATA.size, 1 / 4 + DATA.size
    log_evidence = multivariate_normal(np.zeros(n), (np.eye(n) + 4.0).tolist()).logpdf(DATA)
    return float(DATA.sum() / precision), float(precision**-0.5), float(log_evidence)


def posterior_of(model, *args, loc=0.5, scale=0.5, spread=0.1, why="") -> FlowPosterior:
    """A fit made by hand, untrained: independent normals on the unconstrained scale, and made-up weights."""
    target = Target(model, jax.random.key(0), args, {})
    log_weights = np.random.default_rng(0).normal(0, spread, 2000)
    certificate = certify(log_weights)
    return FlowPosterior(
        model=model,
        args=args,
        kwargs={},
        guide=AutoFlow(model),
        target=target,
        bijection=Chain([Identity((target.dim,)), Affine(jnp.full(target.dim, loc), scale)]),
        certificate=certificate._replace(certified=False, why=why) if why else certificate,
        log_weights=log_weights,
        losses=np.zeros(3),
        reason=Reason.GOOD_ENOUGH,
        seconds={"flow": 1.0},
        gradient_evaluations={"flow": 3},
        value_evaluations={"flow": 2},
        num_skipped=0,
    )
