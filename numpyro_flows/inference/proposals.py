"""Mixtures that replace a fit: their components, and the verdict on their draws."""

import equinox as eqx
import numpy as np

from numpyro_flows.bijections.noise import estimates
from numpyro_flows.inference.certificate import log_mean, resample
from numpyro_flows.inference.draws import Chains
from numpyro_flows.inference.flow_component import FlowComponent
from numpyro_flows.inference.gaussian import GaussianFit
from numpyro_flows.inference.judge import judge, share_beyond
from numpyro_flows.inference.mixture import Mixture, weighted_draws
from numpyro_flows.inference.modes import Mode
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.product import Product
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.sliced import Sliced
from numpyro_flows.inference.stages import Context, Fit
from numpyro_flows.inference.survey import Survey, search, weigh

_LEAST_KEPT = 1_000  # draws, so that each chain has some
_MOST_NUMBERS = 50_000_000  # in memory at a time: fewer draws if they are long vectors


def is_one_of_modes(fit: Fit, settings: FlowVISettings) -> bool:
    """Whether a search found optima outside a fit that is good for one mode, or very many of them."""
    modes = fit.survey.modes
    if fit.survey.product is not None or len(modes) >= settings.most_modes:
        return True
    own = Mode(fit.loc, fit.scale)
    others = [mode for mode in modes if mode.optimum and not own.around(mode.loc[None])[0]]
    return bool(others) and fit.certificate.ess >= settings.min_ess


def trained_flow(fit: Fit, settings: FlowVISettings) -> FlowComponent | None:
    """The trained flow, if there is one with an exact density."""
    if fit.draw is None or fit.log_prob is None or estimates(fit.bijection):
        return None
    return FlowComponent(eqx.filter(fit.bijection, eqx.is_array), fit.draw, fit.log_prob, settings.block)


def of_particles(survey: Survey, settings: FlowVISettings) -> list[Product]:
    """Independent coordinates, fitted to the probes that follow the posterior."""
    return [Product.of(probe.x, settings) for probe in survey.probes if probe.follows_posterior and len(probe.x) > 1]


def along_necks(
    mixture: Mixture,
    density: Density,
    survey: Survey,
    least: float,
    rng: np.random.Generator,
    settings: FlowVISettings,
) -> list[Sliced]:
    """Distributions along the coordinates whose marginals extend beyond the mixture's draws."""
    draws = weighted_draws(mixture, density, rng, settings.mixture_draws)
    lowest, highest, log_evidence = draws.x.min(0), draws.x.max(0), log_mean(draws.log_weight)
    found = []
    for downwards, upwards in zip(survey.ends, survey.ends[1:]):
        if downwards.coordinate == upwards.coordinate:
            shares = [share_beyond(end, lowest, highest, log_evidence) for end in (downwards, upwards)]
            if downwards.scale or max(shares) > least:  # deep in a neck of scales there are draws, but too few
                found.append(Sliced.of(downwards, upwards))
    return found


def by_weights(
    context: Context,
    fit: Fit,
    gaussian: GaussianFit,
    mixture: Mixture,
    survey: Survey,
    rng: np.random.Generator,
    num: int,
) -> Fit:
    """The fit with draws that importance resampling keeps out of `num` draws of the mixture, and their verdict."""
    density, settings = context.density, context.settings
    num = max(1_000, min(num, _MOST_NUMBERS // fit.loc.size))
    draws = weighted_draws(mixture, density, rng, num)
    if survey.probes:
        survey = search(density, gaussian, survey, mixture.log_prob, log_mean(draws.log_weight), rng, settings)
    certificate = judge(weigh([draws], settings), survey, settings)
    # half the effective number, so that few are repeated
    kept = int(np.clip(0.5 * np.nan_to_num(certificate.ess) * num, _LEAST_KEPT, settings.certificate_draws))
    index = resample(draws.log_weight, kept, rng)
    return fit._replace(
        certificate=certificate,
        log_weights=draws.log_weight,
        mixture=mixture,
        chains=Chains.split(draws.x[index], draws.log_density[index], settings.chains),
    )
