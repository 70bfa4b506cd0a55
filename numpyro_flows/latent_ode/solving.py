"""Latent paths: the solver of training, the solver of predictions, and what both solve."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_flows.continuous.solving import ODESolver, adaptive
from numpyro_flows.continuous.training_settings import MAX_TRAINING_STEPS
from numpyro_flows.latent_ode.networks import LatentField

_TOLERANCE = 1e-5  # of the solver that predicts
_MAX_STEPS = 4096


def training_solver(num_steps: int) -> ODESolver:
    """A few steps of one size. A training step whose solver fails is NaN, and skipped."""
    constant, adjoint = diffrax.ConstantStepSize(), diffrax.RecursiveCheckpointAdjoint()
    return ODESolver(
        diffrax.Bosh3(), constant, adjoint, max_steps=MAX_TRAINING_STEPS, num_steps=num_steps, raises=False
    )


def prediction_solver() -> ODESolver:
    """Steps as small as the tolerance needs."""
    adjoint = diffrax.RecursiveCheckpointAdjoint()
    return ODESolver(diffrax.Tsit5(), adaptive(_TOLERANCE), adjoint, max_steps=_MAX_STEPS)


def solve_paths(
    ode: ODESolver,
    field: LatentField,
    z0: Float[Array, "num latent_dim"],
    times: Float[Array, "num at"],
    covariates: Float[Array, "num cov_dim"],
) -> Float[Array, "num at latent_dim"]:
    """`z` at sorted times since the window's start, in units of its length; covariates are standardised."""

    def rate(t: Any, z: Array, args: tuple[LatentField, Array]) -> Array:
        field, known = args
        return field(z, known)

    def one(z0: Array, times: Array, known: Array) -> Array:
        # the whole window at least: steps of one size are then alike for all series
        end: Any = jnp.maximum(times[-1], 1.0)
        return ode(rate, z0, (0.0, end), (field, known), times)[0]

    return jax.vmap(one)(z0, times, covariates.astype(z0.dtype))
