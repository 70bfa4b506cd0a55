"""The eight schools: a posterior with a funnel, where NUTS has divergences, fitted by a flow and checked.

The example writes `eight_schools.png`, the marginal densities by flow and NUTS, and `eight_schools.nc`, the fit as
ArviZ's data.

Source: Rubin 1981, Estimation in parallel randomized experiments.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from numpyro_flows import FlowVI, compare_with_nuts

SCHOOLS = ["Choate", "Deerfield", "Phillips Andover", "Phillips Exeter", "Hotchkiss", "Lawrenceville", "St. Paul's"]
SCHOOLS += ["Mt. Hermon"]
Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])  # effect of coaching on a test, in points
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])  # its standard error


def model(sigma, y=None):
    """The centred parameterization: theta's prior narrows as tau gets small, which makes the funnel."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(SCHOOLS)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def main():
    """Fit, compare, write."""
    posterior = FlowVI(model).run(jax.random.key(0), SIGMA, Y)
    posterior.print_summary()

    comparison = compare_with_nuts(posterior, jax.random.key(1), coords={"school": SCHOOLS})
    comparison.print_summary()
    comparison.plot("eight_schools.png")

    posterior.to_datatree(coords={"school": SCHOOLS}).to_netcdf("eight_schools.nc", engine="h5netcdf")


if __name__ == "__main__":
    main()
