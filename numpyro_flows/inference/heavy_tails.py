"""The decrease of a density far beyond all draws: without moments, or so slow that the density is improper."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_flows.inference.coordinates import Coordinates
from numpyro_flows.inference.exploration import Probe
from numpyro_flows.inference.gaussian import GaussianFit, outward
from numpyro_flows.inference.newton import Counted, Density, values
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.tempering import Whitened

_MARGIN = 20.0  # nats: a heavy tail with little mass may lie so far below the bulk


class Tails(NamedTuple):
    """The smallest tail index on any ray, infinite for ordinary tails.

    The probability beyond a distance `r` falls like `r^-tail_index`; for a Student-t the index is its degrees of
    freedom. If a ray has an index of 0 or less, no integral exists: the posterior is improper. `cost` counts
    evaluations.
    """

    tail_index: float = np.inf
    cost: int = 0


@np.errstate(over="ignore", invalid="ignore")
def tails(
    density: Density,
    fit: GaussianFit,
    probes: tuple[Probe, ...],
    coordinates: Coordinates,
    rng: np.random.Generator,
    settings: FlowVISettings,
) -> Tails:
    """The heaviest tail on rays from a fit's centre.

    The rays are both sides of every coordinate's axis, rays between any two axes, random ones, and rays through the
    farthest of the probes that follow the posterior, which may lie along no axis.

    Between two far distances `r`, a hundred times apart, the log density falls by `a` per unit of `log r`. The index is
    `a - 1 - k`. Here `k` counts the directions across the ray in which the density is as wide as it is far out. It is 0
    for one heavy-tailed coordinate among others, and counts all directions for a joint Student-t. For a Gaussian `a` is
    in the thousands there.
    """
    dim, periodic = fit.loc.size, coordinates.periodic
    sds = fit.scale if fit.scale.ndim == 1 else np.linalg.norm(fit.scale, axis=1)
    axes = np.diag(sds)
    others = outward(fit.scale, _unit(rng.standard_normal((settings.tail_rays, dim))))
    rays = np.concatenate([axes, -axes, _diagonals(sds, settings), others, _through_farthest(fit, probes, settings)])
    rays = np.where(periodic, 0.0, rays)
    rays = rays[rays.any(axis=1)]
    near, far = settings.tail_distances
    density = counted = Counted(density)
    heights = [values(density, fit.loc + distance * rays) for distance in (near, far, far**2 / near)]
    falls = -np.diff(heights, axis=0) / np.log(far / near)
    # not finite: the density overflows out there
    slow = np.isfinite(falls) & (falls < settings.min_degrees_of_freedom + dim)
    # a plateau below any such power law is the end of a constraint's arithmetic, which is near in single precision
    lost = (settings.min_degrees_of_freedom + dim) * np.log([[far], [far**2 / near]]) + _MARGIN
    underflow = -float(np.log(np.finfo(fit.loc.dtype).tiny))
    lost = np.where((rays != 0.0) @ coordinates.constrained, np.minimum(lost, 0.5 * underflow), lost)
    slow &= np.array(heights[1:]) > values(density, fit.loc[None]) - lost
    index = np.inf
    for i in np.flatnonzero(slow[1]):
        index = min(index, _index(density, fit, far / near * rays[i], falls[1, i], heights[2][i], periodic, settings))
    # if only nearer distances are left, they show nothing about a density that rises there
    for i in np.flatnonzero(slow[0] & ~np.isfinite(falls[1]) & (falls[0] > 1.0)):
        index = min(index, _index(density, fit, rays[i], falls[0, i], heights[1][i], periodic, settings))
    return Tails(index, counted.num)


def _index(
    density: Density,
    fit: GaussianFit,
    ray: np.ndarray,
    fall: float,
    height: float,
    periodic: np.ndarray,
    settings: FlowVISettings,
) -> float:
    """The tail index on a ray, along which the log density falls by `fall` to `height`."""
    far = settings.tail_distances[1]
    u = Whitened.points(fit, (fit.loc + ray)[None])[0]
    length = np.linalg.norm(u)
    _, _, across = np.linalg.svd(u[None])  # the first row is the ray's direction
    there = np.where(periodic, 0.0, outward(fit.scale, 0.5 * far * length * across[1:]))
    beside = values(density, fit.loc + far * ray + there)
    # at half the distance to the side a joint Student-t loses less than (df + dim) / 2 log 1.25
    wide = beside > height - 0.25 * (fall + u.size)
    wide &= there.any(axis=1)
    return float(fall - 1.0 - wide.sum())


def _diagonals(sds: Float[np.ndarray, " dim"], settings: FlowVISettings) -> np.ndarray:
    """Rays between any two axes, because a density may not depend on sums or differences of coordinates.

    There are none in many dimensions, where they would be too many.
    """
    dim = sds.size
    if dim > settings.most_dim_of_diagonals:
        return np.zeros((0, dim))
    axes = np.eye(dim)
    pairs = [(i, j, sign) for i in range(dim) for j in range(i) for sign in (1.0, -1.0)]
    rays = np.array([max(sds[i], sds[j]) * (axes[i] + sign * axes[j]) for i, j, sign in pairs]).reshape(-1, dim)
    return np.concatenate([rays, -rays])


def _through_farthest(fit: GaussianFit, probes: tuple[Probe, ...], settings: FlowVISettings) -> np.ndarray:
    """Rays through those probes that follow the posterior and lie farthest from the centre."""
    x = np.concatenate([np.zeros((0, fit.loc.size)), *(probe.x for probe in probes if probe.follows_posterior)])
    u = Whitened.points(fit, x)
    farthest = np.argsort(-(u**2).sum(1))[: settings.tail_rays]
    return outward(fit.scale, _unit(u[farthest]))


def _unit(u: Float[np.ndarray, "rays dim"]) -> Float[np.ndarray, "rays dim"]:
    return u / np.linalg.norm(u, axis=1, keepdims=True)
