"""The verdict on a fit: what the weights of fresh draws say, and what was seen elsewhere."""

import numpy as np

from numpyro_flows.inference.certificate import Certificate, certify
from numpyro_flows.inference.checks import checks_of
from numpyro_flows.inference.profile import End
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import Survey, Weighed, lacking


def judge(draws: Weighed, survey: Survey, settings: FlowVISettings) -> Certificate:
    """The verdict on fresh draws of a fit. The evidence's error contains what the fit may lack."""
    finite = np.abs(draws.log_density[np.isfinite(draws.log_density)])
    resolution = float(np.spacing(finite.max())) if finite.size else 0.0
    certificate = certify(draws.log_weight, resolution, settings)
    certificate = certificate._replace(
        checks=checks_of(survey, certificate.num_draws), tail_index=survey.tails.tail_index
    )
    if np.isnan(certificate.elbo):
        return certificate
    missed = lacking(survey, draws, settings)
    cut = [(end, _share_beyond(end, draws, certificate.log_evidence)) for end in survey.ends]
    causes = [survey.left_out] if survey.left_out else []
    if missed > settings.max_missed:
        names = ", ".join(share.name for share in survey.shares if share.value > settings.max_missed)
        causes.append(f"a search found elsewhere about {missed:.0%} of the posterior, which the fit lacks ({names})")
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
    may_lack = missed + sum(share for end, share in cut if not end.improper)
    certificate = certificate._replace(log_evidence_se=float(np.hypot(certificate.log_evidence_se, may_lack)))
    if not causes:
        return certificate
    causes += [certificate.why] if certificate.why else []
    return certificate._replace(certified=False, why="; ".join(causes))


def _share_beyond(end: End, draws: Weighed, log_evidence: float) -> float:
    """The share of the posterior beyond the fit's farthest draw."""
    extreme = draws.lowest if end.side == "lower" else draws.highest
    beyond = end.beyond(float(extreme[end.coordinate]), log_evidence)
    return beyond / (1.0 + beyond)
