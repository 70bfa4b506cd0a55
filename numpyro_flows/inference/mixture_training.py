"""The stage that fits a mixture of simple distributions, which needs values of the density only, and no compiler."""

from dataclasses import dataclass

import numpy as np

from numpyro_flows.inference.gaussian import GaussianFit, no_climbs
from numpyro_flows.inference.mixture import Bell, Mixture, adapted, stepped, tempered, weighted_draws
from numpyro_flows.inference.one_period import one_period
from numpyro_flows.inference.proposals import along_necks, by_weights, is_one_of_modes, of_particles
from numpyro_flows.inference.rounds import finished
from numpyro_flows.inference.stages import Context, Fit

_BELLS = 8  # at good draws, and most at optima that a search found
_WIDTH = 0.7  # of their scale, to begin with
_SHARE = 0.7  # of them together
_ENOUGH = 0.9  # an ESS from which on draws are cheaper than a better mixture
_COMFORTABLE = 0.5  # k-hat of a Gaussian that needs nothing more


@dataclass(frozen=True)
class MixtureTraining:
    """The stage that fits a mixture around the Gaussian of the fit before; where it is certified, it is the posterior.

    Its components are the Gaussian, Student-t distributions at good draws of it, independent coordinates, and
    Laplace's approximation along coordinates that others' scales depend on, or that are cut off. They are moved to the
    posterior by their own weighted draws.

    In up to some 20 dimensions that takes a tenth of the time of a flow, which has to be compiled. In more, mixtures
    are rarely close to a posterior that is not Gaussian. A fit that is good enough, one that lacks other modes, or is
    of an improper posterior, is left as it is.

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

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what is not finite far out has density zero
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
