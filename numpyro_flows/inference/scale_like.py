"""How much others' scales depend on a coordinate, such as `log tau` of a hierarchical model, by the curvature."""

import numpy as np
from jaxtyping import Bool, Float

from numpyro_flows.inference.gaussian import GaussianFit
from numpyro_flows.inference.newton import Density

_AWAY = 2.0  # standard deviations from the centre, to both sides
_DIRECTIONS = 4
_ONE = 1.0  # above this, a coordinate is a scale of others; in `posteriordb`, `tau` of one centred model has more
_ALL = 20.0  # of all others together: if they are many they determine their scale well, and it changes little


def are_scales(dependence: Float[np.ndarray, " dim"]) -> Bool[np.ndarray, " dim"]:
    """Which coordinates are scales of others."""
    return dependence > min(_ONE, _ALL / max(dependence.size - 1, 1))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def scale_like(density: Density, fit: GaussianFit) -> Float[np.ndarray, " dim"]:
    """`|log (c_i+ / c_i-)|` for each coordinate `i`, with `c` the others' curvature on either side of it.

    With `y` the other coordinates, `-d^2 log p / dy^2` is taken at `x_i` two standard deviations above and below the
    centre, along a few directions, by differences of gradients.
    """
    dim, half = fit.loc.size, np.finfo(fit.loc.dtype).eps ** (1 / 3)
    sds = np.linalg.norm(fit.scale, axis=1, keepdims=True)
    along = fit.scale / sds  # the direction of `x_i` in standard coordinates: a row for each `i`
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_DIRECTIONS, 1, dim))
    aside = signs - (signs * along).sum(-1, keepdims=True) * along  # `x_i` stays
    centres = _AWAY * np.stack([along, -along])
    ahead, behind = (centres[:, None] + step * aside for step in (half, -half))
    points = np.stack([ahead, behind]) @ fit.scale.T + fit.loc
    gradients = density(points.reshape(-1, dim).astype(fit.loc.dtype))[1].reshape(points.shape)
    curvature = -((gradients[0] - gradients[1]) * (aside @ fit.scale.T)).sum(-1).sum(1)
    ratio = np.abs(np.log(curvature[0] / curvature[1]))
    return np.where(np.isfinite(ratio), ratio, 0.0)  # convex on one side: not near a mode
