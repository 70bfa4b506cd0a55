"""A search around a fit for what its own weights cannot show."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_flows.inference.certificate import DECIDING, Draws, decided, log_mean
from numpyro_flows.inference.coordinates import Coordinates
from numpyro_flows.inference.exploration import LogProb, Prior, Probe, Share, explore, outside, share_outside, suspects
from numpyro_flows.inference.gaussian import GaussianFit, draw_gaussian, fit_gaussian, gaussian_log_prob
from numpyro_flows.inference.heavy_tails import Tails, tails
from numpyro_flows.inference.modes import Mode, draws_around, draws_of, modes_at
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.one_period import narrowed, one_period
from numpyro_flows.inference.product import Product
from numpyro_flows.inference.profile import End, ends
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.tempering import Whitened, move

_FEW_OF_MODES = 4.0  # times the mass of the modes found: then many are missing
_DEGENERATE = "the Gaussian is infinitely wide or narrow in a direction: the posterior is improper, or far too uneven"


class Survey(NamedTuple):
    """The result of a search around a fit.

    shares: what the fit lacks, by kind of probe.
    modes: other modes, if the fit lacks something.
    product: a distribution of independent coordinates around the same points, if it shows more than the modes: then
        there are too many modes to find them all.
    tails: the decrease of the density in the far tails.
    ends: marginals of single coordinates, extended beyond all draws.
    num_left_out: number of coordinates without such a marginal, because there are many.
    left_out: why there was no search, or an incomplete one; else empty.
    probes: points that no fit chose, for the check of other fits.
    coordinates: properties of the coordinates.
    """

    shares: tuple[Share, ...] = ()
    modes: tuple[Mode, ...] = ()
    product: Product | None = None
    tails: Tails = Tails()
    ends: tuple[End, ...] = ()
    num_left_out: int = 0
    left_out: str = ""
    probes: tuple[Probe, ...] = ()
    coordinates: Coordinates | None = None

    @property
    def improper(self) -> bool:
        """Whether no integral of the density exists."""
        return self.tails.tail_index <= 0.0 or any(end.improper for end in self.ends)


class Weighed(NamedTuple):
    """The figures of draws that a verdict needs; the draws themselves would take gigabytes.

    lowest, highest: range of the draws.
    """

    log_density: Float[np.ndarray, " draws"]
    log_weight: Float[np.ndarray, " draws"]
    lowest: Float[np.ndarray, " dim"]
    highest: Float[np.ndarray, " dim"]


def weigh(blocks: Iterable[Draws], settings: FlowVISettings) -> Weighed:
    """The figures of blocks of draws, one after the other, until they decide a verdict."""
    kept, num = [], 0
    marks = [share * settings.certificate_draws for share in DECIDING]
    for block in blocks:
        x = np.asarray(block.x)
        kept.append((np.asarray(block.log_density), np.asarray(block.log_weight), x.min(0), x.max(0)))
        num += len(x)
        passed = [mark for mark in marks if mark <= num]
        marks = marks[len(passed) :]
        if passed and decided(np.concatenate([log_weight for _, log_weight, _, _ in kept]), settings):
            break
    log_density, log_weight, lowest, highest = zip(*kept)
    return Weighed(np.concatenate(log_density), np.concatenate(log_weight), np.min(lowest, 0), np.max(highest, 0))


def weighed(
    density: Density,
    gaussian: GaussianFit,
    coordinates: Coordinates,
    rng: np.random.Generator,
    settings: FlowVISettings,
) -> Weighed:
    """Fresh draws of a Gaussian."""
    density = one_period(density, gaussian.loc, coordinates.periodic)
    return weigh(draw_gaussian(density, gaussian, rng, settings), settings)


def survey_around(
    density: Density,
    rng: np.random.Generator,
    gaussian: GaussianFit,
    prior: Prior,
    coordinates: Coordinates,
    settings: FlowVISettings,
) -> tuple[GaussianFit, Weighed, Survey]:
    """A Gaussian, figures of its fresh draws, and the result of a search around it.

    If the search finds most of the posterior elsewhere, the Gaussian is fitted again from there. Ctrl-C ends the
    search; a second Ctrl-C raises.
    """
    try:
        while True:
            gaussian = narrowed(gaussian, coordinates.periodic)
            draws = weighed(density, gaussian, coordinates, rng, settings)
            if not gaussian.usable:
                return gaussian, draws, Survey(left_out=_DEGENERATE)
            of_copy = one_period(density, gaussian.loc, coordinates.periodic)
            survey = _searched(of_copy, rng, gaussian, prior, coordinates, draws, settings)
            if survey.improper or lacking(survey, draws, settings) <= settings.heavier or not survey.modes:
                return gaussian, draws, survey
            starts = np.stack([mode.loc for mode in survey.modes]).astype(gaussian.loc.dtype)
            other = fit_gaussian(of_copy, rng, starts, settings)
            if other.elbo <= gaussian.elbo + settings.refine_gain:
                return gaussian, draws, survey
            gaussian = other
    except KeyboardInterrupt:
        draws = weighed(density, gaussian, coordinates, rng, settings)
        left_out = "interrupted before the search for other modes and heavy tails was over"
        return gaussian, draws, Survey(left_out=left_out)


def look_around(
    density: Density,
    rng: np.random.Generator,
    gaussian: GaussianFit,
    prior: Prior,
    coordinates: Coordinates,
    settings: FlowVISettings,
) -> Survey:
    """Tails, ends of marginals, and probes around a Gaussian, for `search` to compare with a fit."""
    probes = tuple(explore(density, gaussian, prior, rng, settings))
    found, num_left_out = ends(density, gaussian, coordinates, settings)
    return Survey(
        tails=tails(density, gaussian, probes, coordinates, rng, settings),
        ends=tuple(found),
        num_left_out=num_left_out,
        probes=probes,
        coordinates=coordinates,
    )


def _searched(
    density: Density,
    rng: np.random.Generator,
    gaussian: GaussianFit,
    prior: Prior,
    coordinates: Coordinates,
    draws: Weighed,
    settings: FlowVISettings,
) -> Survey:
    survey = look_around(density, rng, gaussian, prior, coordinates, settings)

    def log_prob(x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        return gaussian_log_prob(gaussian.loc, gaussian.scale, x)

    return search(density, gaussian, survey, log_prob, log_mean(draws.log_weight), rng, settings)


@np.errstate(over="ignore", invalid="ignore")  # a density that is not finite counts as zero
def search(
    density: Density,
    gaussian: GaussianFit,
    survey: Survey,
    log_prob: LogProb,
    log_evidence: float,
    rng: np.random.Generator,
    settings: FlowVISettings,
) -> Survey:
    """The survey extended by the mass that its probes find outside a fit with the density `log_prob` and this evidence.

    Short chains start at the probes that lie outside the fit. If some end outside as well, draws around them measure
    the mass there.
    """
    if not np.isfinite(log_evidence):
        return survey
    points, shares = suspects(survey.probes, log_prob, log_evidence, rng, settings)
    survey = survey._replace(shares=shares, modes=(), product=None)
    if not len(points):
        return survey
    whitened = Whitened(density, gaussian)
    particles = whitened(Whitened.points(gaussian, points))
    for _ in range(settings.settling_moves):
        particles = move(whitened, particles, rng, settings)
    settled = Probe("", whitened.x(particles.u), particles.log_density)
    there = outside(settled, log_prob, log_evidence, settings)
    there &= settled.log_density > log_evidence - _log_volume(gaussian, settings)
    modes = modes_at(density, gaussian, settled.x[there], rng, settings)
    if not modes:
        return survey

    def share_of(probe: Probe) -> Share:
        return share_outside(probe, outside(probe, log_prob, log_evidence, settings), log_evidence)

    optima = [mode for mode in modes if mode.optimum]
    kinds = (optima, modes) if 0 < len(optima) < len(modes) else (modes,)  # a wide group may spoil an estimate
    by_modes = [share_of(draws_around(density, around, rng, settings)) for around in kinds]
    product = Product.of(settled.x[there], settings)
    by_product = share_of(draws_of(density, product, rng, settings.mode_draws))
    more = by_product.value - 3 * by_product.se > _FEW_OF_MODES * max(share.value for share in by_modes)
    too_many = more and len(modes) >= settings.most_modes / 2
    return survey._replace(
        shares=(*shares, *by_modes, by_product), modes=tuple(modes), product=product if too_many else None
    )


def _log_volume(gaussian: GaussianFit, settings: FlowVISettings) -> float:
    """Log of a thousand times the volume of a region 30 times as wide as a Gaussian in every direction.

    If the density is lower than the evidence divided by this, no region of such a size holds a thousandth of the
    posterior.
    """
    dim, scale = gaussian.loc.size, gaussian.scale
    log_det = np.log(scale if scale.ndim == 1 else np.diag(scale)).sum()
    return float(log_det + dim * np.log(max(settings.ladder) * np.sqrt(2 * np.pi * np.e)) + np.log(1e3))


@np.errstate(invalid="ignore")  # if no weight is finite
def lacking(survey: Survey, draws: Weighed, settings: FlowVISettings) -> float:
    """The share of the posterior that a fit certainly lacks.

    The share that the fit's own draws find where `p / q` is as large is subtracted.
    """
    if not survey.shares:
        return 0.0
    log_weights = np.where(np.isnan(draws.log_weight), -np.inf, np.asarray(draws.log_weight, np.float64))
    weights = np.exp(np.minimum(log_weights - log_mean(draws.log_weight), 50.0))
    own = np.where(weights > settings.outside, weights, 0.0)
    return missed_beyond(survey, float(own.mean()), float(own.std() / np.sqrt(own.size)))


def missed_beyond(survey: Survey, own_share: float, own_se: float) -> float:
    """The missing share beyond that of the fit's own draws: the estimate with the largest lower bound.

    The lower bound is three standard errors below the estimate.
    """
    estimates = [(share.value - own_share, 3 * np.hypot(share.se, own_se)) for share in survey.shares]
    most, error = max(estimates, key=lambda estimate: estimate[0] - estimate[1], default=(0.0, 0.0))
    return most / (1.0 + most) if most > error else 0.0
