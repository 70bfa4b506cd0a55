"""A look around a Gaussian: what a fit's own weights cannot show."""

from typing import NamedTuple

import numpy as np

from numpyro_flows.inference.certificate import Certificate, certify
from numpyro_flows.inference.gaussian import GaussianFit, draw_gaussian, fit_gaussian
from numpyro_flows.inference.heavy_tails import degrees_of_freedom
from numpyro_flows.inference.modes import Mode, Weighed, find_modes, missed_share, weigh
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.settings import FlowVISettings


class Survey(NamedTuple):
    """The modes that a search found, and the degrees of freedom of the heaviest tail (infinite for an ordinary one).

    left_out: why there was no search, or none to its end; else empty.
    """

    modes: list[Mode]
    degrees_of_freedom: float
    left_out: str = ""


def survey_around(
    density: Density, rng: np.random.Generator, gaussian: GaussianFit, settings: FlowVISettings
) -> tuple[GaussianFit, Weighed, Survey]:
    """A Gaussian, fresh draws of it, and what a search around it finds.

    Where the search finds most of the posterior elsewhere, the Gaussian is fitted again from there. Ctrl-C ends the
    search; a second time it raises.
    """
    try:
        return _survey(density, rng, gaussian, settings)
    except KeyboardInterrupt:
        draws = weigh(draw_gaussian(density, gaussian, rng, settings), [])
        left_out = "interrupted before the search for other modes and heavy tails was over"
        return gaussian, draws, Survey([], np.inf, left_out)


def _survey(
    density: Density, rng: np.random.Generator, gaussian: GaussianFit, settings: FlowVISettings
) -> tuple[GaussianFit, Weighed, Survey]:
    while True:
        modes = find_modes(density, gaussian, rng, settings)
        draws = weigh(draw_gaussian(density, gaussian, rng, settings), modes)
        if missed_share(modes, draws) > settings.heavier:
            other = fit_gaussian(density, rng, np.stack([mode.loc for mode in modes]), settings)
            if other.elbo > gaussian.elbo + settings.refine_gain:
                gaussian = other
                continue
        return gaussian, draws, Survey(modes, degrees_of_freedom(density, gaussian, rng, settings))


def judge(draws: Weighed, survey: Survey, settings: FlowVISettings) -> Certificate:
    """The verdict on fresh draws of a fit: what their weights say, and what the survey does."""
    finite = np.abs(draws.log_density[np.isfinite(draws.log_density)])
    resolution = float(np.spacing(finite.max())) if finite.size else 0.0
    certificate = certify(draws.log_weight, resolution, settings)
    if np.isnan(certificate.elbo):
        return certificate
    causes = [survey.left_out] if survey.left_out else []
    missed = missed_share(survey.modes, draws)
    if missed > settings.max_missed:
        causes.append(f"dispersed starts disagree: a mode that the fit lacks holds about {missed:.0%} of the posterior")
    if survey.degrees_of_freedom <= settings.min_degrees_of_freedom:
        causes.append(
            f"heavy tails: far out the posterior falls like a Student-t with {survey.degrees_of_freedom:.2g} degrees "
            f"of freedom, and with {settings.min_degrees_of_freedom:g} or fewer there is no variance"
        )
    if not causes:
        return certificate
    causes += [certificate.why] if certificate.why else []
    return certificate._replace(certified=False, why="; ".join(causes))
