"""The NumPyro model and guide of a latent ODE, for series that are checked already."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from numpyro_flows.arguments import require_counts
from numpyro_flows.latent_ode.networks import thinned
from numpyro_flows.latent_ode.series import Series

LatentODE = Any  # of model.py, which imports this file

PARAM_NAME = "latent_ode$params"


def model_of_series(latent_ode: LatentODE, series: Series, batch_size: int | None) -> None:
    """Sites `z0` and `values` in a plate `series`, of `batch_size` random ones if given."""
    trained = _registered(latent_ode)
    with _plate(series, batch_size) as rows:
        times, values, mask, covariates = _rows(series, rows)
        z0 = jnp.asarray(numpyro.sample("z0", trained.prior_given(covariates, len(times))))
        mean = trained.decode(trained.path(z0, times, covariates, in_training=True))
        numpyro.sample("values", dist.Normal(mean, trained.noise).mask(mask).to_event(2), obs=values)


def guide_of_series(latent_ode: LatentODE, series: Series, batch_size: int | None) -> None:
    """Site `z0` by the encoder, which sees a random share of each series' times."""
    trained = _registered(latent_ode)
    with _plate(series, batch_size) as rows:
        batch = _rows(series, rows)
        key = numpyro.prng_key() if latent_ode.dropout else None
        if key is not None:  # as it is where the guide is not seeded
            batch = batch._replace(mask=thinned(key, batch.mask, latent_ode.dropout))
        numpyro.sample("z0", trained._posterior(batch))


def _registered(latent_ode: LatentODE) -> LatentODE:
    """The latent ODE with its arrays as NumPyro has them: in one parameter site, for model and guide alike."""
    params, static = eqx.partition(latent_ode, eqx.is_inexact_array)
    registered: Any = numpyro.param(PARAM_NAME, lambda rng_key: params)
    return eqx.combine(registered, static)


def _rows(series: Series, rows: Any) -> Series:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], series)


def _plate(series: Series, batch_size: int | None) -> numpyro.plate:
    if batch_size is not None:
        require_counts(batch_size=batch_size)
        if batch_size > len(series.times):
            raise ValueError(f"batch_size expected at most the {len(series.times)} series, got {batch_size}")
    return numpyro.plate("series", len(series.times), subsample_size=batch_size)
