"""Points that no fit chose. If the posterior density there far exceeds the fit's, the fit lacks something.

Importance weights cannot detect mass where the fit has no draws. So other points are made: draws of the prior, draws of
the fit's Gaussian at many scales, points along its axes, and tempered particles. They are made once for a model and
serve every fit of it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp

from numpyro_flows.inference.gaussian import GaussianFit, outward
from numpyro_flows.inference.newton import Climb, Counted, Density, climb, values
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.tempering import Whitened, temper
from numpyro_flows.training.logs import log_sum_exp

LogProb = Callable[[Float[np.ndarray, "points dim"]], Float[np.ndarray, " points"]]


class Probe(NamedTuple):
    """Points of one kind with their `log p`.

    log_proposal: log density of the distribution that they were drawn from, if it is known.
    follows_posterior: whether they are roughly draws of the posterior.
    cost: number of evaluations of the density that they took.
    """

    name: str
    x: Float[np.ndarray, "points dim"]
    log_density: Float[np.ndarray, " points"]
    log_proposal: Float[np.ndarray, " points"] | None = None
    follows_posterior: bool = False
    cost: int = 0


class Share(NamedTuple):
    """The posterior's mass outside a fit by one kind of probe, relative to the fit's mass, with its standard error.

    cost: number of evaluations of the density.
    """

    name: str
    value: float
    se: float
    cost: int = 0


class Prior(NamedTuple):
    """Draws of the prior, unconstrained, with their log densities."""

    x: Float[np.ndarray, "draws dim"]
    log_prob: Float[np.ndarray, " draws"]


@np.errstate(over="ignore", invalid="ignore")
def explore(
    density: Density, fit: GaussianFit, prior: Prior, rng: np.random.Generator, settings: FlowVISettings
) -> list[Probe]:
    """All probes around a Gaussian."""
    density = counted = Counted(density)
    whitened = Whitened(density, fit)

    def probe(name: str, x: np.ndarray, log_proposal: np.ndarray | None = None) -> Probe:
        return Probe(name, x, values(density, x), log_proposal, cost=len(x))

    probes = [probe("wider and narrower Gaussians", *_ladder(fit, rng, settings))]
    probes.append(probe("points on axes", _on_axes(fit, rng, settings)))
    before = counted.num
    ends = _ends_of_climbs(density, fit, rng, settings)
    probes.append(Probe("ends of climbs", ends.x, ends.log_density, cost=counted.num - before))
    before = counted.num
    tempered = temper(whitened, fit.loc.size, rng, settings)
    x = whitened.x(tempered.u)
    probes.append(
        Probe("tempered particles", x, tempered.log_density, follows_posterior=True, cost=counted.num - before)
    )
    if len(prior.x):
        probes.append(probe("draws of the prior", prior.x, prior.log_prob))
    return [_finite(probe) for probe in probes]


def outside(
    probe: Probe, log_prob: LogProb, log_evidence: float, settings: FlowVISettings
) -> Bool[np.ndarray, " points"]:
    """Which points have `p / q > 10 Z`, ten times the value that a perfect fit has everywhere."""
    log_ratio = probe.log_density - np.asarray(log_prob(probe.x), np.float64)
    return ~(log_ratio <= log_evidence + np.log(settings.outside))  # also True if q is not finite


def share_outside(probe: Probe, there: Bool[np.ndarray, " points"], log_evidence: float) -> Share:
    """The posterior's mass at such points, by draws of a known density `r`: `E_r[p / r 1(outside)] / Z`.

    The estimate is unbiased, but nearly always too low if `r` has few draws there.
    """
    log_weights = probe.log_density - probe.log_proposal
    log_weights = np.where(there & ~np.isnan(log_weights), log_weights, -np.inf)  # a NaN would hide all other shares
    weights = np.exp(np.minimum(log_weights - log_evidence, 50.0))
    return Share(probe.name, float(weights.mean()), float(weights.std() / np.sqrt(weights.size)), probe.cost)


def suspects(
    probes: Sequence[Probe],
    log_prob: LogProb,
    log_evidence: float,
    rng: np.random.Generator,
    settings: FlowVISettings,
) -> tuple[Float[np.ndarray, "points dim"], tuple[Share, ...]]:
    """Points outside the fit, at most `settings.particles`, and the shares shown by probes of known density."""
    chosen, shares = [np.zeros((0, probes[0].x.shape[1]))], []
    most = settings.particles // len(probes)
    for probe in probes:
        there = outside(probe, log_prob, log_evidence, settings)
        if not there.any():
            continue
        points, log_density = probe.x[there], probe.log_density[there]
        if probe.log_proposal is None:
            highest = np.argsort(-log_density)[: most // 2]
            chosen.append(points[np.union1d(highest, rng.permutation(len(points))[: most // 2])])
        else:
            shares.append(share_outside(probe, there, log_evidence))
            log_weights = np.asarray(log_density - probe.log_proposal[there], np.float64)
            weights = np.exp(log_weights - logsumexp(log_weights))
            chosen.append(points[np.unique(rng.choice(len(points), most, p=weights))])
    return np.concatenate(chosen), tuple(shares)


def _ends_of_climbs(density: Density, fit: GaussianFit, rng: np.random.Generator, settings: FlowVISettings) -> Climb:
    """The ends of climbs by Newton's method that start around the fit; none above `max_full_dim` dimensions.

    They include the ends of the climbs that led to the fit.
    """
    dim = fit.loc.size
    if dim > settings.max_full_dim:
        return fit.climbs
    low, high = np.log(settings.dispersion)
    radii = np.exp(np.linspace(low, high, settings.dispersed_starts))[:, None]
    starts = fit.loc + outward(fit.scale, radii * rng.standard_normal((settings.dispersed_starts, dim)))
    factor = np.diag(fit.scale) if fit.scale.ndim == 1 else fit.scale
    climbs = climb(density, starts.astype(fit.loc.dtype), factor, settings, curvature_at_ends=False)
    return Climb(*(np.concatenate(both) for both in zip(fit.climbs, climbs)))


def _ladder(fit: GaussianFit, rng: np.random.Generator, settings: FlowVISettings) -> tuple[np.ndarray, np.ndarray]:
    """Draws of `N(loc, s^2 scale scale^T)` at several `s`, and the log density of their mixture."""
    scales, dim = np.asarray(settings.ladder), fit.loc.size
    each = np.repeat(scales, -(-settings.ladder_draws // len(scales)))
    u = each[:, None] * rng.standard_normal((each.size, dim))
    log_det = np.log(fit.scale if fit.scale.ndim == 1 else np.diag(fit.scale)).sum()
    squares = (u**2).sum(1)[:, None]
    parts = -0.5 * squares / scales**2 - dim * np.log(scales * np.sqrt(2 * np.pi)) - np.log(len(scales))
    return fit.loc + outward(fit.scale, u), log_sum_exp(parts, 1) - log_det


def _on_axes(fit: GaussianFit, rng: np.random.Generator, settings: FlowVISettings) -> np.ndarray:
    """Points on both sides along the coordinates' axes; with many coordinates fewer points, or not all axes."""
    dim = fit.loc.size
    num = int(np.clip(settings.axis_points // (2 * dim), 4, settings.axis_distances))
    distances = np.geomspace(*settings.dispersion, num)
    most = max(settings.axis_points // (2 * len(distances)), 1)
    axes = np.arange(dim) if dim <= most else rng.choice(dim, most, replace=False)
    sds = fit.scale if fit.scale.ndim == 1 else np.linalg.norm(fit.scale, axis=1)
    steps = np.repeat(distances, 2) * np.tile([1.0, -1.0], num)  # near points first: a solver is slow in the tails
    moves = np.zeros((len(steps), len(axes), dim))
    moves[:, np.arange(len(axes)), axes] = steps[:, None] * sds[axes]
    # and the origin, where sparse priors have a spike
    return np.concatenate([fit.loc + moves.reshape(-1, dim), np.zeros((1, dim))])


def _finite(probe: Probe) -> Probe:
    """The points without those that are infinite, and without those at which the density is zero or broken."""
    usable = np.isfinite(probe.log_density) & np.isfinite(probe.x).all(axis=1)
    if probe.log_proposal is None:
        return probe._replace(x=probe.x[usable], log_density=probe.log_density[usable])
    # draws of zero density count in the mean
    return probe._replace(
        x=np.where(usable[:, None], probe.x, 0.0),
        log_density=np.where(usable, probe.log_density, -np.inf),
        log_proposal=np.where(usable, probe.log_proposal, 0.0),
    )
