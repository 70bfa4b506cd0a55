"""A look around a fit: what its own weights cannot show."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_flows.inference.certificate import Certificate, Draws, certify, log_mean
from numpyro_flows.inference.exploration import LogProb, Prior, Probe, Share, explore, outside, share_outside, suspects
from numpyro_flows.inference.gaussian import GaussianFit, draw_gaussian, fit_gaussian, gaussian_log_prob
from numpyro_flows.inference.heavy_tails import Tails, tails
from numpyro_flows.inference.modes import Mode, draws_around, modes_at
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.profile import End, ends
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.target import Coordinates
from numpyro_flows.inference.tempering import Whitened, move


class Survey(NamedTuple):
    """What was seen around a fit.

    shares: what the fit lacks, by kinds of probes.
    modes: other modes, where it lacks something.
    tails: how the density falls far out.
    ends: marginals of single coordinates, out to where no draws are.
    left_out: why there was no search, or none to its end; else empty.
    probes: points that no fit chose, to look at other fits with.
    coordinates: what is known of the coordinates.
    """

    shares: tuple[Share, ...] = ()
    modes: tuple[Mode, ...] = ()
    tails: Tails = Tails()
    ends: tuple[End, ...] = ()
    left_out: str = ""
    probes: tuple[Probe, ...] = ()
    coordinates: Coordinates | None = None


class Weighed(NamedTuple):
    """What a verdict needs of draws; the draws themselves would take gigabytes.

    lowest, highest: the draws' range.
    """

    log_density: Float[np.ndarray, " draws"]
    log_weight: Float[np.ndarray, " draws"]
    lowest: Float[np.ndarray, " dim"]
    highest: Float[np.ndarray, " dim"]


def weigh(blocks: Iterable[Draws]) -> Weighed:
    """What is kept of blocks of draws, one after the other."""
    kept = []
    for block in blocks:
        x = np.asarray(block.x)
        kept.append((np.asarray(block.log_density), np.asarray(block.log_weight), x.min(0), x.max(0)))
    log_density, log_weight, lowest, highest = zip(*kept)
    return Weighed(np.concatenate(log_density), np.concatenate(log_weight), np.min(lowest, 0), np.max(highest, 0))


def survey_around(
    density: Density,
    rng: np.random.Generator,
    gaussian: GaussianFit,
    prior: Prior,
    coordinates: Coordinates,
    settings: FlowVISettings,
) -> tuple[GaussianFit, Weighed, Survey]:
    """A Gaussian, fresh draws of it, and what a search around it finds.

    Where the search finds most of the posterior elsewhere, the Gaussian is fitted again from there. Ctrl-C ends the
    search; a second time it raises.
    """
    try:
        while True:
            draws = weigh(draw_gaussian(density, gaussian, rng, settings))
            survey = _survey(density, rng, gaussian, prior, coordinates, draws, settings)
            if lacking(survey, draws, settings) <= settings.heavier or not survey.modes:
                return gaussian, draws, survey
            other = fit_gaussian(density, rng, np.stack([mode.loc for mode in survey.modes]), settings)
            if other.elbo <= gaussian.elbo + settings.refine_gain:
                return gaussian, draws, survey
            gaussian = other
    except KeyboardInterrupt:
        draws = weigh(draw_gaussian(density, gaussian, rng, settings))
        return gaussian, draws, Survey(left_out="interrupted before the search for other modes and heavy tails was over")


def _survey(
    density: Density,
    rng: np.random.Generator,
    gaussian: GaussianFit,
    prior: Prior,
    coordinates: Coordinates,
    draws: Weighed,
    settings: FlowVISettings,
) -> Survey:
    probes = tuple(explore(density, gaussian, prior, rng, settings))
    survey = Survey(
        tails=tails(density, gaussian, probes, coordinates.periodic, rng, settings),
        ends=tuple(ends(density, gaussian, coordinates, settings)),
        probes=probes,
        coordinates=coordinates,
    )

    def log_prob(x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        return gaussian_log_prob(gaussian.loc, gaussian.scale, x)

    return search(density, gaussian, survey, log_prob, log_mean(draws.log_weight), rng, settings)


@np.errstate(over="ignore", invalid="ignore")  # what is not finite far out has density zero
def search(
    density: Density,
    gaussian: GaussianFit,
    survey: Survey,
    log_prob: LogProb,
    log_evidence: float,
    rng: np.random.Generator,
    settings: FlowVISettings,
) -> Survey:
    """The survey with what its probes show that a fit lacks, which has the density `log_prob` and this evidence.

    Short chains settle from the probes that lie outside of the fit. Where some end outside as well, draws around them
    measure the mass there.
    """
    if not np.isfinite(log_evidence):
        return survey
    log_prob = _of_one_period(log_prob, gaussian, survey.coordinates)
    points, shares = suspects(survey.probes, log_prob, log_evidence, rng, settings)
    survey = survey._replace(shares=shares, modes=())
    if not len(points):
        return survey
    whitened = Whitened(density, gaussian)
    particles = whitened(Whitened.points(gaussian, points))
    for _ in range(settings.settling_moves):
        particles = move(whitened, particles, rng, settings)
    settled = Probe("", whitened.x(particles.u), particles.log_density)
    there = outside(settled, log_prob, log_evidence, settings)
    modes = modes_at(density, gaussian, settled.x[there], rng, settings)
    if not modes:
        return survey
    probe = draws_around(density, modes, rng, settings)
    share = share_outside(probe, outside(probe, log_prob, log_evidence, settings), log_evidence)
    return survey._replace(shares=(*shares, share), modes=tuple(modes))


def _of_one_period(log_prob: LogProb, gaussian: GaussianFit, coordinates: Coordinates | None) -> LogProb:
    """The same where angles that differ by `2 pi` are the same: a fit has one copy of the posterior."""
    if coordinates is None or not coordinates.periodic.any():
        return log_prob

    def folded(x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        turns = np.round((x - gaussian.loc) / (2.0 * np.pi))
        return log_prob(np.where(coordinates.periodic, x - 2.0 * np.pi * turns, x))

    return folded


def lacking(survey: Survey, draws: Weighed, settings: FlowVISettings) -> float:
    """The share of the posterior that a fit lacks, where it is beyond doubt: the largest that any probes show.

    Taken off is what the fit's own draws find where `p / q` is as large.
    """
    log_weights = np.where(np.isnan(draws.log_weight), -np.inf, np.asarray(draws.log_weight, np.float64))
    weights = np.exp(np.minimum(log_weights - log_mean(draws.log_weight), 50.0))
    own = np.where(weights > settings.outside, weights, 0.0)
    own_share, own_se = own.mean(), own.std() / np.sqrt(own.size)
    sure = [share.value - own_share for share in survey.shares if share.value - own_share > 3 * np.hypot(share.se, own_se)]
    most = max(sure, default=0.0)
    return most / (1.0 + most)


def judge(draws: Weighed, survey: Survey, settings: FlowVISettings) -> Certificate:
    """The verdict on fresh draws of a fit: what their weights say, and what the survey does."""
    finite = np.abs(draws.log_density[np.isfinite(draws.log_density)])
    resolution = float(np.spacing(finite.max())) if finite.size else 0.0
    certificate = certify(draws.log_weight, resolution, settings)
    if np.isnan(certificate.elbo):
        return certificate
    causes = [survey.left_out] if survey.left_out else []
    missed = lacking(survey, draws, settings)
    if missed > settings.max_missed:
        names = ", ".join(share.name for share in survey.shares if share.value > settings.max_missed)
        causes.append(f"a search found elsewhere about {missed:.0%} of the posterior, which the fit lacks ({names})")
    causes += [_cut(end, draws, certificate.log_evidence, survey, settings) for end in survey.ends]
    causes = [cause for cause in causes if cause]
    if survey.tails.index <= 0.0:
        causes.append("the posterior is improper: far out its density falls too slowly for any integral to exist")
    if not causes:
        return certificate
    causes += [certificate.why] if certificate.why else []
    return certificate._replace(certified=False, why="; ".join(causes))


def _cut(end: End, draws: Weighed, log_evidence: float, survey: Survey, settings: FlowVISettings) -> str:
    """What is wrong at one end of a coordinate; empty where nothing is."""
    name = survey.coordinates.names[end.coordinate]
    low = end.at[-1] < end.at[0]
    side, verb = ("lower", "below") if low else ("upper", "above")
    if end.improper:
        return f"the posterior is improper: the marginal density of {name} does not fall towards its {side} end"
    extreme = draws.lowest[end.coordinate] if low else draws.highest[end.coordinate]
    share = end.beyond(float(extreme), log_evidence)
    if share <= settings.max_cut:
        return ""
    share = share / (1.0 + share)
    return f"a neck: about {share:.1%} of the posterior of {name} lies {verb} every draw"
