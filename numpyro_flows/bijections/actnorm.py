"""Affine maps that are set by data."""

import jax.numpy as jnp

from numpyro_flows.arguments import require_counts
from numpyro_flows.bijections.affine import Affine


class ActNorm(Affine):
    """`y = loc + exp(log_scale) x`, elementwise: the identity, until `initialize_from_data` makes it standardise.

    Args:
        dim: number of coordinates.

    Raises:
        ValueError: if `dim` is below 1.

    Source: Glow, Kingma, Dhariwal 2018, arXiv 1807.03039.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import ActNorm, initialize_from_data
        >>> layer = initialize_from_data(ActNorm(1), jnp.array([[1.0], [5.0]]))
        >>> layer.inverse(jnp.array([5.0])).round(2).tolist()
        [1.0]
    """

    def __init__(self, dim: int):
        require_counts(dim=dim)
        super().__init__(jnp.zeros(dim))
