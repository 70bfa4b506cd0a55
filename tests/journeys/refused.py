"""A refused fit, and the way to a right posterior by the page that `why` leads to.

    python tests/journeys/refused.py

Six measurements with known errors, of quantities that vary between laboratories.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from numpyro_flows import FlowVI

measured = np.array([2.1, -0.4, 1.3, 0.2, 3.0, 1.1])
ERROR = 1.0


def model(measured, prior):
    mean = numpyro.sample("mean", dist.Normal(0, 5))
    log_spread = numpyro.sample("log_spread", prior)
    with numpyro.plate("laboratories", len(measured)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("measured", dist.Normal(mean + jnp.exp(log_spread) * z, ERROR), obs=measured)


if __name__ == "__main__":
    flat = dist.ImproperUniform(dist.constraints.real, (), ())  # "uninformative"
    refused = FlowVI(model).run(jax.random.key(0), measured, flat)
    print(refused.why)
    # the page "What to do with a refused fit" says: give the named site a proper prior
    posterior = FlowVI(model).run(jax.random.key(0), measured, dist.Normal(0.0, 1.0))
    posterior.print_summary()
    draws = posterior.sample(jax.random.key(1), 4000)
