"""The stage that fits a mixture of simple distributions. It needs only values of the density, and no compilation."""

from dataclasses import dataclass

import numpy as np

from numpyro_flows.inference.gaussian import GaussianFit, no_climbs
from numpyro_flows.inference.mixture import Bell, Mixture, adapted, stepped, tempered, weighted_draws
from numpyro_flows.inference.one_period import one_period
from numpyro_flows.inference.proposals import along_necks, by_weights, is_one_of_modes, of_particles
from numpyro_flows.inference.rounds import finished
from numpyro_flows.inference.stages import Context, Fit

_BELLS = 8  # components at good draws, and maximum number at optima that a search found
_WIDTH = 0.7  # initial scale of these, relative to the Gaussian's
_SHARE = 0.7  # total share of these
_ENOUGH = 0.9  # above this ESS, draws are cheaper than a better mixture
_COMFORTABLE = 0.5  # a Gaussian with a smaller k-hat needs no mixture


@dataclass(frozen=True)
class MixtureTraining:
    """The stage that fits a mixture around the Gaussian of the earlier stages. If certified, it is the posterior.

    The components are the Gaussian, Student-t distributions at good draws of it, and a distribution with independent
    coordinates. Laplace's approximation adds components along coordinates that are scales of others, or that the
    Gaussian cuts off. The mixture's own weighted draws move the components towards the posterior.

    In up to about 20 dimensions this takes a tenth of the time of a flow, which has to be compiled. In more dimensions,
    mixtures are rarely close to a posterior that is not Gaussian. The stage leaves a fit as it is if the fit is good
    enough or lacks other modes, or if the posterior is improper.

    Source: Cappe, Douc, Guillin, Marin, Robert 2008 (population Monte Carlo), arXiv 0710.4242.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import FlowVI, GaussianStart, MixtureTraining
        >>> def model():
        ...     numpyro.sample("x", dist.Gamma(0.5, 1.0))
        >>> fit = FlowVI(model, stages=(GaussianStart(), MixtureTraining()), progress_bar=False)
        >>> fit.run(jax.random.key(0)).certified
        True
    """

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a density that is not finite counts as zero
    def __call__(self, context: Context, fit: Fit) -> Fit:
        settings, certificate = context.settings, fit.certificate
        good = finished(certificate, settings) and certificate.certified
        comfortable = certificate.khat < _COMFORTABLE or certificate.ess >= settings.sufficient_ess
        left = fit.chains is not None or fit.stopped or np.isnan(certificate.elbo) or (good and comfortable)
        if left or is_one_of_modes(fit, settings):
            return fit
        density = one_period(context.density, fit.loc, context.target.coordinates.periodic)
        context = context._replace(density=density)
        rng = context.seeds.rng("mixture")
        gaussian = GaussianFit(fit.loc, fit.scale, -np.inf, no_climbs(fit.loc))
        with context.clock.stage("mixture"):
            mixture = _fitted(context, fit, rng)
            by_mixture = by_weights(context, fit, gaussian, mixture, fit.survey, rng, settings.certificate_draws)
        return by_mixture if by_mixture.certificate.certified else fit


def _fitted(context: Context, fit: Fit, rng: np.random.Generator) -> Mixture:
    density, survey, settings = context.density, fit.survey, context.settings
    mixture = Mixture.even([Bell(fit.loc, fit.scale)])
    mixture = mixture.joined(along_necks(mixture, density, survey, settings.min_cut, rng, settings), 0.5)
    optima = [Bell(mode.loc, mode.factor) for mode in survey.modes if mode.optimum]
    mixture = mixture.joined([*of_particles(survey, settings), *optima[:_BELLS]], 0.5)
    draws = weighted_draws(mixture, density, rng, settings.mixture_draws)
    weights = tempered(draws.log_weight)
    if not weights.any():
        return mixture
    centres = rng.choice(len(weights), _BELLS, p=weights)
    mixture = mixture.joined([Bell(draws.x[i], _WIDTH * fit.scale) for i in centres], _SHARE)
    return adapted(stepped(mixture, draws.x, weights, settings), density, rng, settings, _ENOUGH)
