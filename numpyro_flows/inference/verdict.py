"""A verdict as text."""

from numpyro_flows.inference.result import Result


def verdict(posterior: Result) -> str:
    """The certificate of a posterior, and what it took, in a few lines."""
    c = posterior.certificate
    first = "CERTIFIED" if c.certified else f"NOT CERTIFIED: {c.why}"
    if c.certified and (loosened := posterior._settings.loosened()):
        first += f", by looser settings than the default: {loosened}"
    kept = posterior.chains
    figures = (
        f"by Markov chains, {c.num_draws:,} draws in {len(kept.x)} chains: r-hat {c.rhat:.3f}, bulk ESS "
        f"{c.ess_bulk:,.0f}, tail ESS {c.ess_tail:,.0f}, log evidence {c.log_evidence:.3f} +- {c.log_evidence_se:.3f}"
        if c.by == "mcmc" and kept is not None
        else f"k-hat {c.khat:.2f}, ESS {c.ess:.1%} of {c.num_draws} draws, largest weight {c.max_weight:.2g}, "
        f"ELBO {c.elbo:.3f}, log evidence {c.log_evidence:.3f} +- {c.log_evidence_se:.3f}"
    )
    if kept is not None and c.by == "weights":
        figures = f"by a mixture: {figures}"
    run = [check for check in c.checks if check.run]
    not_run = [check for check in c.checks if not check.run]
    checked = f"\nchecked by {', '.join(check.name for check in run)}" if run else ""
    checked += f"\nnot checked by {', '.join(check.name for check in not_run)}" if not_run else ""
    heavy = ""
    if c.tail_index <= 2.0:
        missing = "no mean and no variance" if c.tail_index <= 1.0 else "no variance"
        heavy = f"\nheavy tails, of index {c.tail_index:.2g}: {missing}; read medians and quantiles"
    seconds, gradients = sum(posterior.seconds.values()), sum(posterior.gradient_evaluations.values())
    work = f"{seconds:.1f} s, {gradients:,} gradient evaluations, {posterior.num_skipped} steps skipped as not finite"
    free = [f"{num} entries of {name!r}" for name, num in posterior._target.free_entries.items()]
    masked = f"\nmasked, so not in the density, and standard normal here: {', '.join(free)}" if free else ""
    alone = "\nloaded without its model: draws are the flow's own, not resampled"
    alone = "" if posterior.has_model or kept is not None else alone
    return f"{first}\n{figures}{heavy}{checked}\n{work}{masked}{alone}"
