"""Verdicts as text."""

from numpyro_flows.inference.result import Result


def verdict(posterior: Result) -> str:
    """The certificate of a posterior and the cost of the fit, in a few lines."""
    c = posterior.certificate
    first = "CERTIFIED" if c.certified else f"NOT CERTIFIED: {c.why}"
    if c.certified and (loosened := posterior._settings.loosened()):
        first += f", by looser settings than the default: {loosened}"
    figures = "\n".join(c.figures())
    if posterior.chains is not None and c.by == "weights":
        figures = f"by a mixture: {figures}"
    seconds, gradients = sum(posterior.seconds.values()), sum(posterior.gradient_evaluations.values())
    values = sum(posterior.value_evaluations.values())
    work = f"{seconds:.1f} s, {gradients:,} gradients of the density and {values:,} values"
    work += f", {posterior.num_skipped} steps skipped as not finite" if posterior.num_skipped else ""
    free = [f"{num} entries of {name!r}" for name, num in posterior._target.free_entries.items()]
    masked = f"\nmasked, so not in the density, and standard normal here: {', '.join(free)}" if free else ""
    alone = "\nloaded without its model: draws are the flow's own, not resampled"
    alone = "" if posterior.has_model or posterior.chains is not None else alone
    return f"{first}\n{figures}\n{work}{masked}{alone}"
