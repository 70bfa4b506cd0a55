"""Angles on the real line: a density that repeats itself, of which a fit is to have one copy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from numpyro_flows.inference.gaussian import GaussianFit
from numpyro_flows.inference.newton import Density, values

_WIDEST = np.pi / np.sqrt(3.0)  # the standard deviation of a uniform angle


def within_period(
    x: Float[Any, "*draws dim"], centre: Float[Any, " dim"], periodic: Bool[np.ndarray, " dim"]
) -> Bool[Any, "*draws"]:
    """Whether every angle is within half a turn of a centre.

    Draws that are not have weight zero: else the evidence would count as many copies as a fit covers.
    """
    return (abs(x - centre)[..., periodic] <= np.pi).all(-1)


def narrowed(gaussian: GaussianFit, periodic: Bool[np.ndarray, " dim"]) -> GaussianFit:
    """A Gaussian at the copy around zero, that no angle makes wider than its period.

    Where the data say little of an angle, the fit covers many copies, and wanders off to 1e10, where single precision
    knows no angles.
    """
    if not (periodic.any() and gaussian.usable):
        return gaussian
    turns = np.round(gaussian.loc.astype(np.float64) / (2.0 * np.pi))
    folded = np.where(periodic, gaussian.loc - 2.0 * np.pi * turns, gaussian.loc)
    gaussian = gaussian._replace(loc=folded.astype(gaussian.loc.dtype))
    scale = np.diag(gaussian.scale) if gaussian.scale.ndim == 1 else gaussian.scale
    with np.errstate(over="ignore"):  # of one that is nearly infinitely wide
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
    """A density that is zero but within half a turn of a centre."""

    density: Density
    centre: Float[np.ndarray, " dim"]
    periodic: Bool[np.ndarray, " dim"]

    def __call__(self, x: Float[np.ndarray, "points dim"]) -> tuple[np.ndarray, np.ndarray]:
        log_density, gradient = self.density(x)
        return self._cut(x, log_density), gradient

    def values(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        return self._cut(x, values(self.density, x))

    def _cut(self, x: np.ndarray, log_density: np.ndarray) -> np.ndarray:
        return np.where(within_period(x, self.centre, self.periodic), log_density, -np.inf)
