"""Figures for README and pages, from the settings of a fit and from results; `docs/figures.py` writes them there."""

from benchmarks.figures import amortized, flows, posteriors, readme, settings


def figures() -> dict[str, str]:
    """Names and texts, such as `"settings.num_steps"` and `"5,000"`."""
    groups = {
        "settings": settings.settings(),
        "summary": settings.summary(),
        "chains": settings.chains(),
        "precision": settings.precision(),
        "certificates": posteriors.certificates(),
        "blind": posteriors.blind(),
        "large": posteriors.large(),
        "calibration": posteriors.calibration(),
        "nuts": posteriors.nuts(),
        "flows": flows.flows(),
        "speed": flows.speed(),
        "densities": flows.densities(),
        "continuous": flows.continuous(),
        "amortized": amortized.amortized(),
        "readme": readme.blocks(),
    }
    return {f"{group}.{name}": text for group, texts in groups.items() for name, text in texts.items()}
