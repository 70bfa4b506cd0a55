"""Flows that add a function to their input: `y = x + g(x)`."""

from collections.abc import Sequence

import jax
from jaxtyping import PRNGKeyArray

from numpyro_flows.bijections import AbstractBijection, Chain, Householder, Invert, Planar, Radial, Residual, Sylvester
from numpyro_flows.flows.stack import stacked


def planar(
    key: PRNGKeyArray, dim: int, *, cond_dim: int | None = None, num_layers: int = 16, hidden: Sequence[int] = (32, 32)
) -> AbstractBijection:
    """Planar flow: layers `y = x + u tanh(w . x + b)`; drawing takes one pass, the density is numerical.

    Args:
        key: random key.
        dim: number of coordinates.
        cond_dim: length of a condition on which the layers' parameters then depend, None without one.
        num_layers: number of layers.
        hidden: widths of the hidden layers of the condition's networks.

    Raises:
        ValueError: if `dim` or `num_layers` is below 1.
        RuntimeError: (from `eqx.error_if`) if an inverse did not converge.

    Source: Rezende, Mohamed 2015, arXiv 1505.05770.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.planar(jax.random.key(0), 3).shape
        (3,)
    """
    return stacked(key, dim, num_layers, lambda key: Planar(key, dim, cond_dim=cond_dim, hidden=hidden))


def radial(
    key: PRNGKeyArray, dim: int, *, cond_dim: int | None = None, num_layers: int = 16, hidden: Sequence[int] = (32, 32)
) -> AbstractBijection:
    """Radial flow: layers that pull points towards a centre or push them away; both directions have a closed form.

    Args and errors are those of `planar`. Source: Rezende, Mohamed 2015, arXiv 1505.05770.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.radial(jax.random.key(0), 3).shape
        (3,)
    """
    return stacked(key, dim, num_layers, lambda key: Radial(key, dim, cond_dim=cond_dim, hidden=hidden))


def sylvester(
    key: PRNGKeyArray, dim: int, *, cond_dim: int | None = None, num_layers: int = 8, hidden: Sequence[int] = (32, 32)
) -> AbstractBijection:
    """Sylvester flow: layers `y = x + Q A tanh(B Q^T x + b)` with Householder reflections `Q`, and triangular `A`, `B`.

    Args and errors are those of `planar`. Source: van den Berg, Hasenclever, Tomczak, Welling 2018, arXiv 1803.05649.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.sylvester(jax.random.key(0), 3).shape
        (3,)
    """

    def layer(key: PRNGKeyArray) -> AbstractBijection:
        rotation_key, core_key = jax.random.split(key)
        rotation = Householder(rotation_key, dim)
        core = Sylvester(core_key, dim, cond_dim=cond_dim, hidden=hidden)
        return Chain([Invert(rotation), core, rotation])

    return stacked(key, dim, num_layers, layer)


def residual(
    key: PRNGKeyArray,
    dim: int,
    *,
    cond_dim: int | None = None,
    num_layers: int = 8,
    hidden: Sequence[int] = (32, 32),
    max_lipschitz: float = 0.9,
    exact_dim: int = 64,
) -> AbstractBijection:
    """Contractive residual flow: `y = x + g(x)`, where `g` is a free network with a Lipschitz constant below 1.

    The log-determinant is exact up to `exact_dim` coordinates. Above that it is an unbiased estimate, which is not
    suitable for importance weights or certificates.

    It takes the arguments of `planar`, and these:

    Args:
        hidden: widths of the hidden layers of `g`.
        max_lipschitz: bound on the Lipschitz constant, below 1.
        exact_dim: largest number of coordinates with an exact log-determinant.

    Raises:
        ValueError: as `planar`, and if `max_lipschitz` is not in (0, 1).
        RuntimeError: (from `eqx.error_if`) if an inverse did not converge.

    Source: Chen, Behrmann, Duvenaud, Jacobsen 2019, arXiv 1906.02735.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.residual(jax.random.key(0), 3).shape
        (3,)
    """
    options = {"cond_dim": cond_dim, "hidden": hidden, "max_lipschitz": max_lipschitz, "exact_dim": exact_dim}
    return stacked(key, dim, num_layers, lambda key: Residual(key, dim, **options))
