"""What follows after a fit is refused: a mixture with components in every known mode, and Markov chains."""

from dataclasses import dataclass, replace

import numpy as np
from tqdm.auto import tqdm

from numpyro_flows.inference.bridge import bridged
from numpyro_flows.inference.certificate import log_mean, relative_ess, resample
from numpyro_flows.inference.chains import Sampler
from numpyro_flows.inference.exploration import explore
from numpyro_flows.inference.gaussian import GaussianFit, moment_matched, no_climbs, refined
from numpyro_flows.inference.judge_draws import Agreement, judge_draws
from numpyro_flows.inference.mixture import Bell, Mixture, adapted, fitted, weighted_draws
from numpyro_flows.inference.modes import Mode
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.one_period import one_period
from numpyro_flows.inference.proposals import along_necks, by_weights, is_one_of_modes, of_particles, trained_flow
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.stages import Context, Fit
from numpyro_flows.inference.survey import Survey, look_around, search
from numpyro_flows.training.reasons import Reason

_MOST_NUMBERS = 50_000_000  # in memory at a time: fewer draws if they are long vectors
_LEAST_DRAWS = 100  # effective draws, which a covariance needs
HELP = "docs/refused_fit.md"


@dataclass(frozen=True)
class Fallback:
    """The stage that makes draws after a fit is refused.

    It first fits a mixture of Student-t distributions: one for the fit, and one for each mode that a search finds. The
    search compares points with the mixture so far, and is repeated until it finds no further mode. The mixture's own
    weights move it towards the posterior, and then certify or refuse it, as for a flow. If the mixture is refused, it
    becomes the proposal of Markov chains.

    If a certified fit cuts off a small part of a neck, it gets a component that reaches into the neck. A fit that was
    interrupted, or whose posterior is improper, stays as it is.

    Args:
        of_modes: True for the use before a flow is trained. Then only the mixture is fitted, and only if a search found
            other modes and the fit is good for one mode, or there are very many modes. A flow that starts in one mode
            rarely reaches another.
    """

    of_modes: bool = False

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a density that is not finite counts as zero
    def __call__(self, context: Context, fit: Fit) -> Fit:
        if fit.chains is not None or fit.stopped:
            return fit if self.of_modes or not fit.survey.improper else _with_help(fit, fit.certificate.why)
        if np.isnan(fit.certificate.elbo):  # nothing was fitted, or the density is broken
            return fit
        if self.of_modes and not is_one_of_modes(fit, context.settings):
            return fit
        density = one_period(context.density, fit.loc, context.target.coordinates.periodic)
        context = context._replace(density=density)
        gaussian = GaussianFit(fit.loc, fit.scale, -np.inf, no_climbs(fit.loc))
        rng = context.seeds.rng("fallback")
        if fit.certificate.certified:
            with context.clock.stage("mixture"):
                return fit if self.of_modes else _into_necks(context, fit, gaussian, rng)
        with context.clock.stage("mixture"):
            if fit.refused is None or fit.draw is not None:
                mixture, survey = fit_mixture(context, fit, gaussian, rng)
                num = context.settings.pool * context.settings.certificate_draws
                refused = mixture, survey, by_weights(context, fit, gaussian, mixture, survey, rng, num)
            else:  # no flow was trained since then
                refused = fit.refused
        mixture, survey, by_mixture = refused
        if by_mixture.certificate.certified:
            return by_mixture
        if self.of_modes:
            return fit._replace(refused=refused)
        if np.isnan(by_mixture.certificate.elbo):
            return _explained(fit, fit, by_mixture)
        with context.clock.stage("mcmc"):
            by_chains = _by_chains(context, fit, gaussian, mixture, survey, rng)
        if by_chains.certificate.certified:
            return by_chains
        return _explained(by_chains, fit, by_mixture, by_chains)


def _explained(result: Fit, fit: Fit, mixture: Fit, chains: Fit | None = None) -> Fit:
    """A result with the reasons of all refusals, and a link to advice."""
    why = f"{fit.certificate.why}; by a mixture as well: {mixture.certificate.why}"
    why += f"; and by Markov chains: {chains.certificate.why}" if chains else ""
    return _with_help(result, why)


def _with_help(fit: Fit, why: str) -> Fit:
    return fit._replace(certificate=fit.certificate._replace(why=f"{why}. What to try: {HELP}"))


def fit_mixture(context: Context, fit: Fit, gaussian: GaussianFit, rng: np.random.Generator) -> tuple[Mixture, Survey]:
    """A mixture extended until a search finds nothing that it lacks, and the result of the last search."""
    density, settings = context.density, context.settings
    bell, flow = Bell(gaussian.loc, gaussian.scale), trained_flow(fit, settings)
    prior = context.prior(context.seeds, settings.thorough().prior_draws)
    survey = look_around(density, rng, gaussian, prior, context.target.coordinates, settings.thorough())
    # the probes of the earlier search are kept: only the first climbs find modes 10,000 standard deviations away
    survey = survey._replace(probes=(*survey.probes, *fit.survey.probes))
    mixture = Mixture.even([bell, *([] if flow is None else [flow]), *of_particles(survey, settings)])
    mixture = mixture.joined(_bells(fit.survey.modes, density, rng, settings), 0.5)
    mixture = mixture.joined(along_necks(mixture, density, survey, settings.min_cut, rng, settings), 0.5)
    centre, exhausted = gaussian, False
    for _ in range(settings.searches):
        if len(mixture.components) > settings.most_components:
            break
        mixture = adapted(mixture, density, rng, settings)
        draws = weighted_draws(mixture, density, rng, settings.mixture_draws)
        survey = search(density, centre, survey, mixture.log_prob, log_mean(draws.log_weight), rng, settings)
        if survey.modes and max(share.value for share in survey.shares) > settings.min_cut:
            found = [survey.product] if survey.product else _bells(survey.modes, density, rng, settings)
            mixture, exhausted = mixture.joined(found, 0.5), False
        elif exhausted or relative_ess(draws.log_weight) * len(draws.x) < _LEAST_DRAWS:
            break
        else:  # once more, around all that was found
            centre = moment_matched(draws.x[resample(draws.log_weight, len(draws.x), rng)], settings)
            probes = explore(density, centre, prior, rng, settings.thorough())
            survey, exhausted = survey._replace(probes=(*probes, *fit.survey.probes)), True
    return mixture if exhausted else adapted(mixture, density, rng, settings), survey


def _bells(modes: tuple[Mode, ...], density: Density, rng: np.random.Generator, settings: FlowVISettings) -> list[Bell]:
    """Gaussians at modes. Few modes are refined by natural gradients: in many dimensions these need fewer points."""
    bells = [Bell(mode.loc, mode.factor) for mode in modes]
    if len(modes) > settings.num_candidates:
        return bells
    better = [refined(density, rng, mode.loc, mode.factor, settings) for mode in modes]
    return [Bell(new.loc, new.scale) if np.isfinite(new.elbo) else bell for new, bell in zip(better, bells)]


def _into_necks(context: Context, fit: Fit, gaussian: GaussianFit, rng: np.random.Generator) -> Fit:
    """A certified fit extended into necks, if it cuts off enough of them and the extended fit is certified too.

    The mixture contains the fit itself, with a fixed share `s`. So its weights are at most `1 / s` times the fit's, and
    their tail is no heavier: the smaller k-hat of the two counts.
    """
    density, settings = context.density, context.settings
    least = 0.25 * settings.min_cut  # all draws reach farther than the resampled ones
    if fit.certificate.beyond < least and not any(end.scale for end in fit.survey.ends):
        return fit
    mixture = Mixture.even([trained_flow(fit, settings) or Bell(gaussian.loc, gaussian.scale)])
    necks = along_necks(mixture, density, fit.survey, least, rng, settings)
    if not necks:
        return fit
    mixture = mixture.joined(necks, 0.2)
    khat = fit.certificate.khat
    without_khat = context._replace(settings=replace(settings, max_khat=np.finfo(float).max))
    deeper = by_weights(without_khat, fit, gaussian, mixture, fit.survey, rng, 2 * settings.certificate_draws)
    if not deeper.certificate.certified:
        return fit
    # a file stores the fit's own weights and checks them again
    certificate = deeper.certificate._replace(khat=min(khat, deeper.certificate.khat))
    return deeper._replace(certificate=certificate, log_weights=fit.log_weights)


def _by_chains(
    context: Context, fit: Fit, gaussian: GaussianFit, mixture: Mixture, survey: Survey, rng: np.random.Generator
) -> Fit:
    """The fit with draws of Markov chains, and their verdict; Ctrl-C ends the chains, after the first sweeps."""
    density, settings = context.density, context.settings
    sampler = Sampler(density, gaussian, mixture, rng, settings)
    num, done, every = settings.first_sweeps, 0, 1
    quiet = not context.watch.progress_bar
    with tqdm(total=settings.most_sweeps, desc="Markov chains", unit="sweep", disable=quiet) as progress:
        chains, reason = sampler.sweeps(num, every), fit.reason
        while reason is not Reason.INTERRUPTED:
            done += num
            while chains.x.shape[1] > 2 * max(8, min(settings.chain_draws, _MOST_NUMBERS // chains.x[:, 0].size)):
                chains, every = chains.halved(), 2 * every
            agreement = Agreement.of(chains.later().x)
            progress.update(num)
            progress.set_postfix({"rhat": f"{agreement.rhat.max():.3f}", "ess": f"{agreement.ess_bulk.min():,.0f}"})
            if not agreement.why(context.target.coordinates.names) or done >= settings.most_sweeps:
                break
            num = done  # twice as many in all
            try:
                chains = chains.followed_by(sampler.sweeps(num, every))
            except KeyboardInterrupt:
                reason = Reason.INTERRUPTED
    chains = chains.later()
    # fitted to one half of the draws, compared with the other
    mixture = fitted(mixture, chains.x[:, ::2].reshape(-1, fit.loc.size), rng, settings)
    draws = weighted_draws(mixture, density, rng, settings.certificate_draws)
    log_evidence, se = bridged(chains.halved(), mixture, draws)
    certificate = judge_draws(density, chains.x, mixture.log_prob, log_evidence, survey, rng, settings, se)
    return fit._replace(certificate=certificate, log_weights=draws.log_weight, chains=chains, reason=reason)
