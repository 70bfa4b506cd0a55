"""Denoising: from draws of noisy data to draws of data."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from numpyro_flows.arguments import as_array, require_instance, require_numbers


def denoise(distribution: dist.Distribution, y: ArrayLike, noise: float) -> Float[Array, "*shape"]:
    """The mean of `x` given `y = x + noise e`: `y + noise^2 grad log p(y)`, where `p` is the density of such `y`.

    Use it for draws of a flow trained by `fit_density(..., noise=noise)`. Tweedie's formula for the mean is exact if
    `p` is the density of `y`. The means vary a little less than `x` does.

    Args:
        distribution: distribution of the noisy data: a FlowDistribution, or any other whose density has a gradient.
        y: draws of shape `(*sample, *batch, *event)`.
        noise: standard deviation of the Gaussian noise.

    Raises:
        TypeError: if `distribution` is not a distribution, or `y` or `noise` are not numbers.
        ValueError: if the shape of `y` does not end in the batch and event shapes, or `noise` is negative.

    Source: Robbins 1956; Efron 2011, JASA 106(496); for flows Zhai et al. 2024, arXiv 2412.06329.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> from numpyro_flows import denoise
        >>> noisy = dist.Normal(0.0, 5.0**0.5)  # of variance 4, and 1 of noise
        >>> denoise(noisy, jnp.array([5.0, -10.0]), 1.0).round(4).tolist()
        [4.0, -8.0]
    """
    require_instance(dist.Distribution, "fit_density(...)", distribution=distribution)
    require_numbers("[0, inf)", noise=noise)
    y = as_array(y, "y")
    shape = distribution.batch_shape + distribution.event_shape
    if y.shape[y.ndim - len(shape) :] != shape:
        raise ValueError(f"y expected a shape that ends in {shape}, got {y.shape}")
    y = y.astype(jnp.result_type(y, float))
    return y + noise**2 * jax.grad(lambda y: jnp.sum(distribution.log_prob(y)))(y)
