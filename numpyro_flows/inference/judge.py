"""The verdict on a fit: from the weights of fresh draws, and from a search elsewhere."""

import numpy as np
from jaxtyping import Float

from numpyro_flows.inference.certificate import Certificate, certify
from numpyro_flows.inference.checks import checks_of, of_weights
from numpyro_flows.inference.profile import End
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import Survey, Weighed, lacking


def judge(draws: Weighed, survey: Survey, settings: FlowVISettings) -> Certificate:
    """The verdict on fresh draws of a fit."""
    finite = np.abs(draws.log_density[np.isfinite(draws.log_density)])
    most = np.quantile(finite, 0.99) if finite.size else 0.0  # a few draws may be extreme outliers
    resolution = float(np.spacing(most)) if most else 0.0
    certificate = certify(draws.log_weight, resolution, settings)
    certificate = certificate._replace(
        checks=checks_of(survey, of_weights(certificate.num_draws)), tail_index=survey.tails.tail_index
    )
    if np.isnan(certificate.elbo):
        causes = [survey.left_out, certificate.why] if survey.left_out else [certificate.why]
        return certificate._replace(why="; ".join(causes))
    missed = lacking(survey, draws, settings)
    return with_survey(certificate, missed, draws.lowest, draws.highest, survey, settings)


def with_survey(
    certificate: Certificate,
    missed: float,
    lowest: Float[np.ndarray, " dim"],
    highest: Float[np.ndarray, " dim"],
    survey: Survey,
    settings: FlowVISettings,
) -> Certificate:
    """The verdict extended by what a survey found where there are no draws.

    Args:
        certificate: the verdict on the draws alone.
        missed: share of the posterior that the draws lack.
        lowest: lower ends of the draws' range.
        highest: upper ends of the draws' range.
        survey: what was found elsewhere.
        settings: the thresholds.
    """
    cut = [(end, share_beyond(end, lowest, highest, certificate.log_evidence)) for end in survey.ends]
    causes = [survey.left_out] if survey.left_out else []
    if missed > settings.max_missed:
        names = ", ".join({share.name: None for share in survey.shares if share.value > settings.max_missed})
        which = "the fit lacks" if certificate.by == "weights" else "the draws lack"
        causes.append(f"a search found elsewhere about {missed:.0%} of the posterior, which {which} ({names})")
    if survey.tails.tail_index <= 0.0:
        causes.append("the posterior is improper: far out its density falls too slowly for any integral to exist")
    causes += [
        f"the posterior is improper: the marginal density of {end.name} does not fall towards its {end.side} end"
        for end, _ in cut
        if end.improper
    ]
    causes += [
        f"a neck: about {share:.1%} of the posterior of {end.name} lies {end.relation} every draw"
        for end, share in cut
        if share > settings.max_cut and not end.improper
    ]
    # of the posterior itself, 1/n lies beyond the farthest of n draws; by chance 5/n for one of many ends
    by_chance = np.array([1.0 if end.scale else 5.0 for end in survey.ends]) / certificate.num_draws
    beyond = sum(
        max(share - least, 0.0)
        for (end, share), least in zip(cut, by_chance)
        if not end.improper and np.isfinite(share)
    )
    certificate = certificate.with_beyond(min(beyond, 1.0))
    certificate = certificate._replace(log_evidence_se=float(np.hypot(certificate.log_evidence_se, missed)))
    if not causes:
        return certificate
    causes += [certificate.why] if certificate.why else []
    return certificate._replace(certified=False, why="; ".join(causes))


def share_beyond(
    end: End, lowest: Float[np.ndarray, " dim"], highest: Float[np.ndarray, " dim"], log_evidence: float
) -> float:
    """The share of the posterior beyond the farthest draw."""
    extreme = lowest if end.side == "lower" else highest
    beyond = end.beyond(float(extreme[end.coordinate]), log_evidence)
    return beyond / (1.0 + beyond)
