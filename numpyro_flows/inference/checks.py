"""The checks behind a verdict: what each of them found, what it cost, and what it cannot detect."""

import numpy as np

from numpyro_flows.inference.certificate import Check
from numpyro_flows.inference.survey import Survey

_BLIND = {
    "draws of the prior": "what holds much of the posterior but little of the prior",
    "wider and narrower Gaussians": "narrow modes away from the centre in many dimensions",
    "points on axes": "modes off the axes",
    "ends of climbs": "modes that few starts climb to, kinks, necks",
    "tempered particles": "modes much narrower than the fit, in many dimensions",
    "draws around other modes": "modes that no other check found",
}


def of_weights(num_draws: int) -> Check:
    """The check by `num_draws` weights."""
    return Check("weights", f"of {num_draws:,} draws", num_draws, "anything where the fit has no draws")


def checks_of(survey: Survey, of_draws: Check) -> tuple[Check, ...]:
    """The checks by draws and by a survey."""
    checks = [of_draws]
    if survey.left_out:
        return (*checks, Check("a search elsewhere", f"not run: {survey.left_out}", 0, "everything"))
    if not survey.probes:
        return (*checks, Check("a search elsewhere", 'not run: verify="weights"', 0, "everything"))
    shares = {share.name: share for share in sorted(survey.shares, key=lambda share: share.value)}  # the largest
    for name, blind in _BLIND.items():
        probe = next((probe for probe in survey.probes if probe.name == name), None)
        if name in shares:
            found, cost = f"{shares[name].value:.2g} of the posterior lie outside of the fit", shares[name].cost
        elif probe is not None and len(probe.x):
            found, cost = "no mass outside of the fit", probe.cost
        elif name == "draws around other modes":  # always listed: a checkpoint needs a constant number of checks
            found, cost = "no other modes to draw around", 0
        else:
            found, cost = f"not run: {_why_not(name)}", 0
        checks.append(Check(name, found, cost, blind))
    index = survey.tails.tail_index
    tails = f"heavy: index {index:.2g}" if np.isfinite(index) else "ordinary"
    checks.append(Check("tails on rays", tails, survey.tails.cost, "heavy tails along directions that no draw shows"))
    names = sorted({end.name for end in survey.ends})
    others = f"; {survey.num_left_out} other coordinates were left out" if survey.num_left_out else ""
    why_none = "too many dimensions" if survey.num_left_out else "no site is constrained, flat or a scale of others"
    found = f"of {', '.join(names)}{others}" if names else f"not run: {why_none}"
    cost = sum(end.cost for end in survey.ends)
    return (*checks, Check("ends of marginals", found, cost, "necks of other coordinates, and crooked ones"))


def _why_not(name: str) -> str:
    reasons = {
        "draws of the prior": "no site has a prior to draw from",
        "ends of climbs": "too many dimensions",
    }
    return reasons.get(name, "the density is zero or broken at every point")
