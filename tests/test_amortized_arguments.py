"""Arguments of an amortised model that change: between training and a call, or between two calls."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_flows import AmortizedFlow

KEY = jax.random.key(0)


class Settings:
    """An argument whose attributes may change."""

    scale = 1.0


@pytest.mark.slow
def test_the_arguments_are_those_of_the_training_or_of_the_call():
    def scaled(scale, settings, y=None):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, jnp.asarray(scale) * settings.scale), obs=y)

    scale, settings, data = np.array(1.0), Settings(), {"y": np.linspace(-2.0, 2.0, 40)}
    made = AmortizedFlow(scaled, observed=["y"], num_simulations=2_000, num_steps=300, progress_bar=False)
    trained = made.fit(KEY, scale, settings)
    before = trained.posteriors(KEY, data)
    scale[...] = 3.0  # later than the training
    np.testing.assert_array_equal(trained.posteriors(KEY, data).log_weights, before.log_weights)
    for other in (1.0, 2.0):
        settings.scale = other  # an object of which nobody can know
        means = trained.posteriors(KEY, data, np.array(1.0), settings).sample(KEY, 2_000)["mu"].mean(1)
        np.testing.assert_allclose(
            means, data["y"] / (1 + other**2), atol=5 * (other**2 / (1 + other**2) / 1_000) ** 0.5
        )
    with jax.enable_x64(True):
        draws = trained.posteriors(KEY, data).draws["mu"]
    assert (draws != draws.astype(np.float32)).mean(1).min() > 0.9  # in the threads too
