"""The verdict on a fit: what its weights say, and whether it lacks a mode that was found elsewhere."""

import numpy as np

from numpyro_flows.modes import Mode, missed_share
from numpyro_flows.recipe import RECIPE
from numpyro_flows.sampling import Certificate, Draws, certify


def judge(draws: Draws, modes: list[Mode]) -> Certificate:
    """The certificate of fresh draws of a fit; `modes` are those that a search has found."""
    finite = np.abs(draws.log_density[np.isfinite(draws.log_density)])
    resolution = float(np.spacing(finite.max())) if finite.size else 0.0
    certificate = certify(draws.log_weight, resolution)
    if not np.isfinite(certificate.elbo):
        return certificate
    missed = missed_share(modes, draws.x, draws.log_weight)
    if missed <= RECIPE.max_missed:
        return certificate
    why = f"dispersed starts disagree: a mode that the fit lacks holds about {missed:.0%} of the posterior"
    why += f"; {certificate.why}" if certificate.why else ""
    return certificate._replace(certified=False, why=why, missed=missed)
