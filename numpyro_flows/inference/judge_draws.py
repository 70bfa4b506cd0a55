"""The verdict on draws of Markov chains: whether the chains agree, and what a search found where they have no draws."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from numpyro_flows.inference.certificate import Certificate, Check
from numpyro_flows.inference.checks import checks_of
from numpyro_flows.inference.exploration import LogProb
from numpyro_flows.inference.gaussian import moment_matched
from numpyro_flows.inference.judge import with_survey
from numpyro_flows.inference.newton import Density, values
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import Survey, missed_beyond, search

# Vehtari, Gelman, Simpson, Carpenter, Bürkner 2021, arXiv 1903.08008
MAX_RHAT = 1.01
MIN_ESS = 400.0
_MOST_OUTSIDE = 0.1  # share of the draws outside the fitted density; a search cannot find modes with a smaller share

_EXPECTED = f"a certificate needs r-hat < {MAX_RHAT} with bulk and tail ESS > {MIN_ESS:.0f}"


class Agreement(NamedTuple):
    """Rank-normalised r-hat, bulk and tail ESS of every coordinate of chains; NaN if a coordinate never changes."""

    rhat: Float[np.ndarray, " dim"]
    ess_bulk: Float[np.ndarray, " dim"]
    ess_tail: Float[np.ndarray, " dim"]

    @classmethod
    def of(cls, chains: Float[np.ndarray, "chains draws dim"]) -> "Agreement":
        from arviz_stats.base.array import array_stats  # here: its import takes a second

        chains = np.asarray(chains, np.float64)
        if len(chains) == 1:  # its halves are compared: ArviZ has no r-hat of one chain
            chains = np.stack(np.array_split(chains[0, : chains.shape[1] // 2 * 2], 2))
        along: Any = {"chain_axis": 0, "draw_axis": 1}
        with np.errstate(divide="ignore", invalid="ignore"):  # of coordinates that never change
            figures = (
                array_stats.rhat(chains, **along),
                array_stats.ess(chains, method="bulk", **along),
                array_stats.ess(chains, method="tail", prob=(0.05, 0.95), **along),
            )
        return cls(*map(np.asarray, figures))

    def worst(self) -> dict[str, Any]:
        """The worst figures over all coordinates, as fields of a certificate by Markov chains."""
        return {
            "by": "mcmc",
            "rhat": float(self.rhat.max()),
            "ess_bulk": float(self.ess_bulk.min()),
            "ess_tail": float(self.ess_tail.min()),
        }

    def why(self, names: np.ndarray) -> str:
        """Why chains are not certified, with the worst coordinate's name; empty if they are."""
        worst = np.argmax(self.rhat)  # the first NaN, where there is one
        if not self.rhat[worst] < MAX_RHAT:
            return f"r-hat {self.rhat[worst]:.2f} of {names[worst]} ({_EXPECTED}): the chains do not agree"
        for kind, ess in (("bulk", self.ess_bulk), ("tail", self.ess_tail)):
            worst = np.argmin(ess)
            if not ess[worst] > MIN_ESS:
                return f"{kind} ESS {ess[worst]:.0f} of {names[worst]} ({_EXPECTED}): the chains are too short"
        return ""


@np.errstate(over="ignore", invalid="ignore")  # of a density that is zero at draws
def judge_draws(
    density: Density,
    chains: Float[np.ndarray, "chains draws dim"],
    log_prob: LogProb,
    log_evidence: float,
    survey: Survey,
    rng: np.random.Generator,
    settings: FlowVISettings,
    log_evidence_se: float = float("nan"),
) -> Certificate:
    """The verdict on the draws of chains.

    Chains cannot show modes that none of them visited. So the survey's probes are compared with a density that was
    fitted to the draws. This comparison is crude: if a posterior has a neck, `p / q` is large at many draws, too. So a
    search counts only as far as its result exceeds the share of the draws at which `p / q` is as large.

    Args:
        density: density of the posterior, unnormalised.
        chains: unconstrained draws.
        log_prob: log density `q` that was fitted to `chains[:, ::2]`; the other half shows what it lacks.
        log_evidence: log evidence by importance weights of draws of `q`. If it is not finite, the search uses the
            estimate `1 / mean(q / p)` over the draws.
        survey: probes, tails and ends, as `look_around` finds them.
        rng: random generator for the search.
        settings: thresholds of the search.
        log_evidence_se: standard error of `log_evidence`.
    """
    num_chains, num_draws, dim = chains.shape
    agreement = Agreement.of(chains)
    names = survey.coordinates.names if survey.coordinates is not None else np.arange(dim)
    why = agreement.why(names)
    draws = chains.reshape(-1, dim)
    nan = float("nan")
    certificate = Certificate(
        certified=not why,
        why=why,
        khat=nan,
        ess=nan,
        max_weight=nan,
        elbo=nan,
        elbo_se=nan,
        log_evidence=log_evidence,
        log_evidence_se=log_evidence_se,
        num_draws=len(draws),
        tail_index=survey.tails.tail_index,
        **agreement.worst(),
    )
    of_chains = Check(
        "agreement of chains",
        f"r-hat {certificate.rhat:.3f}, bulk ESS {certificate.ess_bulk:.0f}, tail ESS {certificate.ess_tail:.0f} of "
        f"{num_chains} chains of {num_draws:,} draws",
        0,
        "anything where no chain has been",
    )
    held_out = chains[:, 1::2].reshape(-1, dim)
    log_density = np.asarray(values(density, held_out), np.float64)
    broken = ~np.isfinite(log_density)
    if broken.mean() > settings.max_broken:
        why = f"the model's density is zero or NaN at {broken.mean():.1%} of the draws: they are of another model"
        return certificate._replace(certified=False, why=why, checks=checks_of(survey, of_chains))
    gaussian = moment_matched(draws, settings)
    log_ratio = log_density[~broken] - np.asarray(log_prob(held_out[~broken]), np.float64)
    if not np.isfinite(log_evidence):
        log_evidence = float(np.log(log_ratio.size) - logsumexp(-log_ratio))
    if survey.probes:
        survey = search(density, gaussian, survey, log_prob, log_evidence, rng, settings)
    own_share = float((log_ratio > log_evidence + np.log(settings.outside)).mean())
    effective = min(log_ratio.size, certificate.ess_bulk) if certificate.ess_bulk > 1.0 else 1.0
    missed = missed_beyond(survey, own_share, float(np.sqrt(own_share * (1.0 - own_share) / effective)))
    if survey.probes and own_share > _MOST_OUTSIDE:
        survey = survey._replace(
            left_out=f"the search elsewhere is blind: {own_share:.0%} of the draws lie outside of the density that was "
            'fitted to them (verify="weights" leaves the search out)'
        )
    verdict = with_survey(
        certificate._replace(log_evidence=log_evidence), missed, draws.min(0), draws.max(0), survey, settings
    )
    return verdict._replace(checks=checks_of(survey, of_chains), log_evidence=certificate.log_evidence)
