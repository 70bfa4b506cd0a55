"""Angles on the real line: the density is periodic, and a fit should cover one period."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Scalar

from numpyro_flows.bijections.circular import wrap
from numpyro_flows.inference.gaussian import GaussianFit
from numpyro_flows.inference.newton import Density, values
from numpyro_flows.modeling.angles import log_share

_WIDEST = np.pi / np.sqrt(3.0)  # the standard deviation of a uniform angle


def log_share_of_copy(
    x: Float[Any, "*draws dim"], centre: Float[Any, " dim"], periodic: Bool[np.ndarray, " dim"]
) -> Float[Any, "*draws"]:
    """The log share of the copy at `x` among all copies: the sum of `log_share` over the angles.

    The density times this share is one copy of the posterior. Without it the evidence would count every copy that a fit
    covers.
    """
    return log_share(x[..., periodic], centre[periodic])[0].sum(-1)


def nearest_copy(
    x: Float[Array, " dim"], centre: Float[Array, " dim"], periodic: Bool[np.ndarray, " dim"]
) -> tuple[Float[Array, " dim"], Scalar]:
    """The copy within half a turn of a centre, and the log share there."""
    x = jnp.where(periodic, centre + wrap(x - centre), x)
    return x, log_share_of_copy(x, centre, periodic)


def one_copy(
    draws: Float[np.ndarray, "*draws dim"], periodic: Bool[np.ndarray, " dim"]
) -> tuple[Float[np.ndarray, "*draws dim"], Float[np.ndarray, " dim"]]:
    """Draws with every angle within half a turn of its circular mean; the centre has these means, else medians."""
    axes = tuple(range(draws.ndim - 1))
    centre = np.median(draws, axis=axes)
    centre[periodic] = np.angle(np.exp(1j * draws[..., periodic]).mean(axes))
    turns = np.where(periodic, np.round((draws - centre) / (2.0 * np.pi)), 0.0)
    return (draws - 2.0 * np.pi * turns).astype(draws.dtype), centre


def narrowed(gaussian: GaussianFit, periodic: Bool[np.ndarray, " dim"]) -> GaussianFit:
    """A Gaussian at the copy around zero, in which no angle is wider than its period.

    If the data say little about an angle, the fit covers many copies and drifts off to 1e10, where single precision
    cannot represent angles.
    """
    if not (periodic.any() and gaussian.usable):
        return gaussian
    turns = np.round(gaussian.loc.astype(np.float64) / (2.0 * np.pi))
    folded = np.where(periodic, gaussian.loc - 2.0 * np.pi * turns, gaussian.loc)
    gaussian = gaussian._replace(loc=folded.astype(gaussian.loc.dtype))
    scale = np.diag(gaussian.scale) if gaussian.scale.ndim == 1 else gaussian.scale
    with np.errstate(over="ignore"):  # for a Gaussian that is nearly infinitely wide
        wide = periodic & (np.linalg.norm(scale, axis=1) > _WIDEST)
    if not wide.any():
        return gaussian
    covariance = scale @ scale.T
    covariance[wide], covariance[:, wide] = 0.0, 0.0
    covariance[wide, wide] = _WIDEST**2
    scale = np.linalg.cholesky(covariance)
    return gaussian._replace(scale=np.diag(scale) if gaussian.scale.ndim == 1 else scale)


@dataclass(frozen=True)
class OnePeriod:
    """One copy, around a centre, of a periodic density."""

    density: Density
    centre: Float[np.ndarray, " dim"]
    periodic: Bool[np.ndarray, " dim"]

    def __call__(self, x: Float[np.ndarray, "points dim"]) -> tuple[np.ndarray, np.ndarray]:
        log_density, gradient = self.density(x)
        value, slope = log_share(x[:, self.periodic], self.centre[self.periodic])
        gradient = np.array(gradient)
        gradient[:, self.periodic] += slope
        return (log_density + value.sum(-1)).astype(log_density.dtype), gradient

    def values(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        log_density = values(self.density, x)
        share = log_share_of_copy(x, self.centre, self.periodic)
        return (log_density + share).astype(log_density.dtype)


def one_period(density: Density, centre: Float[np.ndarray, " dim"], periodic: Bool[np.ndarray, " dim"]) -> Density:
    """One copy of a periodic density; the density itself if no coordinate is an angle."""
    return OnePeriod(density, centre, periodic) if periodic.any() else density
