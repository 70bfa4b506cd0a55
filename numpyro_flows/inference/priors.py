"""A posterior as the prior of the next model."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpyro.distributions as dist
from jaxtyping import PRNGKeyArray
from numpyro.distributions import constraints

from numpyro_flows.arguments import described, require_counts, require_key
from numpyro_flows.density.fit import fit_density
from numpyro_flows.inference.result import Result
from numpyro_flows.modeling.columns import is_angle
from numpyro_flows.modeling.distributions import FlowDistribution

_INTERVAL = constraints.interval(-math.pi, math.pi)


def as_prior(
    posterior: Result, sites: Sequence[str] | None, rng_key: PRNGKeyArray, num_samples: int, options: dict[str, Any]
) -> FlowDistribution:
    """The joint distribution of some latent sites, fitted to resampled draws: see `FlowPosterior.as_prior`."""
    require_key(rng_key)
    require_counts(num_samples=num_samples)
    if not (sites is None or isinstance(sites, Sequence)) or isinstance(sites, str):
        raise TypeError(f"sites expected a list of names, for example ['mu'], got {described(sites)}")
    names = list(posterior._target.site_shapes if sites is None else sites)
    unknown = sorted(set(names) - posterior._target.site_shapes.keys())
    if unknown or not names:
        raise ValueError(f"sites expected some of {list(posterior._target.site_shapes)}, got {names}")
    if not posterior.certificate.certified:
        warnings.warn(
            f"the prior comes from a fit that is not certified: {posterior.certificate.why}", UserWarning, stacklevel=3
        )
    supports = posterior._target.supports()
    draw_key, fit_key = jax.random.split(rng_key)
    draws = posterior.sample(draw_key, num_samples, resample=True)
    some = {name: draws[name] for name in names}
    # as an interval: NumPyro's samplers need real vectors behind a latent site, which a flow of angles lacks
    inside = {name: _INTERVAL if is_angle(supports[name]) else supports[name] for name in names}
    # NUTS of the next model moves on the base, best on a normal one
    options = {"base": dist.Normal(0.0, 1.0), **options}
    return fit_density(fit_key, some, support=inside, **options)
