"""The sites of a flow as sites of a NumPyro model."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpyro
from jaxtyping import Array, ArrayLike

from numpyro_flows.arguments import described
from numpyro_flows.modeling.distributions import FlowDistribution


def sample_sites(name: str, flow: FlowDistribution, obs: Mapping[str, ArrayLike] | None = None) -> dict[str, Array]:
    """Sample the sites of a flow in a NumPyro model: one joint latent site, and each site as a deterministic one.

    Args:
        name: name of the joint site, whose value is the vector of all sites.
        flow: a distribution of several sites, such as `FlowPosterior.as_prior` or `fit_density` of a dict returns.
        obs: observed values of all sites, if there are any.

    Raises:
        ValueError: if the flow is not a distribution of several sites.

    Example:
        >>> import jax, numpyro  # doctest: +SLOW
        >>> import numpyro.distributions as dist
        >>> from numpyro_flows import fit_density, flows, sample_sites
        >>> mu, b = jax.random.normal(jax.random.key(0), (200,)), jax.random.normal(jax.random.key(1), (200, 2))
        >>> draws = {"mu": mu, "b": b}
        >>> prior = fit_density(jax.random.key(2), draws, num_steps=50, progress_bar=False)
        >>> def model():
        ...     sites = sample_sites("prior", prior)
        ...     numpyro.sample("y", dist.Normal(sites["mu"] + sites["b"].sum(), 1.0), obs=0.3)
    """
    if not isinstance(flow, FlowDistribution):
        raise TypeError(f"flow expected a FlowDistribution of several sites, got {described(flow)}")
    if flow.sites is None:
        raise ValueError(f"expected a flow of several sites, got one of event shape {flow.event_shape}")
    value = numpyro.sample(name, flow.vector, obs=None if obs is None else flow.sites.pack(obs))
    sites = flow.sites.unpack(jnp.asarray(value))
    return {site: jnp.asarray(numpyro.deterministic(site, part)) for site, part in sites.items()}
