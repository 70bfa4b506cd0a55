"""Measurements of 8 x 8 digits, and posteriors under a flow prior by NUTS in the flow's space."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import TransformReparam

from numpyro_flows import FlowDistribution, LinearMeasurement

WARMUP, CHAINS, DEPTH = 200, 2, 5
NOISE = 1.0
KERNEL = jnp.outer(jnp.array([0.25, 0.5, 0.25]), jnp.array([0.25, 0.5, 0.25]))


class Problem(NamedTuple):
    """What is measured of an image, with noise of which standard deviation."""

    measure: Callable[[Array], Array]
    noise: float
    linear: bool = True

    def __call__(self, image: Array) -> dist.Distribution:
        """The distribution of the measurement."""
        if self.linear:
            return LinearMeasurement(self.measure, self.noise, event_dim=2)(image)
        mean = self.measure(image)
        return dist.Normal(mean, self.noise).to_event(mean.ndim)


def _blurred(image: Array) -> Array:
    return jax.scipy.signal.convolve2d(image, KERNEL, mode="same")


def _coarse(image: Array) -> Array:
    return image.reshape(4, 2, 4, 2).mean((1, 3))


def _saturated(image: Array) -> Array:
    return 16.0 * jnp.tanh(image / 6.0)


HALVES = {
    "right": Problem(lambda image: image[:, :4], NOISE),
    "lower": Problem(lambda image: image[:4], NOISE),
}
PROBLEMS = {
    "right half missing": HALVES["right"],
    "lower half missing": HALVES["lower"],
    "super-resolution, 4 x 4": Problem(_coarse, 0.5),
    "deconvolution": Problem(_blurred, 1.0),
    "denoising": Problem(lambda image: image, 4.0),
    "saturated sensor, noisy": Problem(_saturated, 1.0, linear=False),
}


def by_nuts(
    prior: FlowDistribution, problem: Problem, y: Float[np.ndarray, "num *measured"], num_draws: int
) -> Float[np.ndarray, "num draws 8 8"]:
    """Posterior draws of images, given each of several measurements; compiled once."""

    def model(y: Array) -> None:
        image = numpyro.sample("image", prior)
        numpyro.sample("y", problem(jnp.asarray(image)), obs=y)

    in_flow_space = numpyro.handlers.reparam(model, config={"image": TransformReparam()})
    mcmc = MCMC(
        NUTS(in_flow_space, max_tree_depth=DEPTH),
        num_warmup=WARMUP,
        num_samples=num_draws // CHAINS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
        jit_model_args=True,
    )
    found = []
    for number, each in enumerate(y):
        mcmc.run(jax.random.key(number), jnp.asarray(each))
        found.append(np.asarray(mcmc.get_samples()["image"]))
    return np.stack(found)
