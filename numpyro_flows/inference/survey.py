"""A look around a fit: what its own weights cannot show."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_flows.inference.certificate import Certificate, Draws, certify, log_mean
from numpyro_flows.inference.exploration import LogProb, Prior, Probe, Share, explore, outside, share_outside, suspects
from numpyro_flows.inference.gaussian import GaussianFit, draw_gaussian, fit_gaussian, gaussian_log_prob
from numpyro_flows.inference.heavy_tails import degrees_of_freedom
from numpyro_flows.inference.modes import Mode, draws_around, modes_at
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.tempering import Whitened, move


class Survey(NamedTuple):
    """What was seen around a fit.

    shares: what the fit lacks, by kinds of probes.
    modes: other modes, where it lacks something.
    degrees_of_freedom: of the heaviest tail; infinite for ordinary ones.
    left_out: why there was no search, or none to its end; else empty.
    probes: points that no fit chose, to look at other fits with.
    """

    shares: tuple[Share, ...] = ()
    modes: tuple[Mode, ...] = ()
    degrees_of_freedom: float = np.inf
    left_out: str = ""
    probes: tuple[Probe, ...] = ()


class Weighed(NamedTuple):
    """What a verdict needs of draws; the draws themselves would take gigabytes."""

    log_density: Float[np.ndarray, " draws"]
    log_weight: Float[np.ndarray, " draws"]


def weigh(blocks: Iterable[Draws]) -> Weighed:
    """What is kept of blocks of draws, one after the other."""
    kept = [(np.asarray(block.log_density), np.asarray(block.log_weight)) for block in blocks]
    return Weighed(*(np.concatenate(parts) for parts in zip(*kept)))


def survey_around(
    density: Density, rng: np.random.Generator, gaussian: GaussianFit, prior: Prior, settings: FlowVISettings
) -> tuple[GaussianFit, Weighed, Survey]:
    """A Gaussian, fresh draws of it, and what a search around it finds.

    Where the search finds most of the posterior elsewhere, the Gaussian is fitted again from there. Ctrl-C ends the
    search; a second time it raises.
    """
    try:
        while True:
            draws = weigh(draw_gaussian(density, gaussian, rng, settings))
            survey = _survey(density, rng, gaussian, prior, draws, settings)
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
    draws: Weighed,
    settings: FlowVISettings,
) -> Survey:
    tails = degrees_of_freedom(density, gaussian, rng, settings)
    survey = Survey(degrees_of_freedom=tails, probes=tuple(explore(density, gaussian, prior, rng, settings)))

    def log_prob(x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        return gaussian_log_prob(gaussian.loc, gaussian.scale, x)

    return search(density, gaussian, survey, log_prob, log_mean(draws.log_weight), rng, settings)


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
    if survey.degrees_of_freedom <= settings.min_degrees_of_freedom:
        causes.append(
            f"heavy tails: far out the posterior falls like a Student-t with {survey.degrees_of_freedom:.2g} degrees "
            f"of freedom, and with {settings.min_degrees_of_freedom:g} or fewer there is no variance"
        )
    if not causes:
        return certificate
    causes += [certificate.why] if certificate.why else []
    return certificate._replace(certified=False, why="; ".join(causes))
