"""Figures for prose, from the settings of a fit or from a benchmark's file: pages say `{{ settings.num_steps }}`."""

import dataclasses

import numpy as np

from benchmarks.readme import beside_nuts, ends, of, pick, without_compilation
from benchmarks.results import read
from numpyro_flows.inference.judge_draws import MAX_RHAT, MIN_ESS
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.summary import MAX_KHAT_OF_SQUARES, NUM_DRAWS

SETTINGS = FlowVISettings()

SHARES = {"forward_ess", "target_ess", "min_ess", "sufficient_ess", "max_missed", "max_broken"}


def constant(name: str, value: float | tuple[float, ...]) -> str:
    if isinstance(value, tuple):
        return " to ".join(f"{end:,g}" for end in value)
    return f"{value:.3g}" if name not in SHARES else f"{100 * value:g}%"


def rounds() -> list[int]:
    """Steps of the rounds of a fit that uses all its budget."""
    lengths = [SETTINGS.first_round]
    while sum(lengths) < SETTINGS.num_steps:
        length = min(lengths[-1] * SETTINGS.round_growth, SETTINGS.longest_round)
        lengths.append(min(length, SETTINGS.num_steps - sum(lengths)))
    return lengths


def settings() -> dict[str, str]:
    numbers = {field.name: getattr(SETTINGS, field.name) for field in dataclasses.fields(SETTINGS)}
    counts = {name: f"{value:,}" for name, value in numbers.items() if isinstance(value, int)}
    others = {name: constant(name, value) for name, value in numbers.items() if name not in counts}
    return {
        **counts,
        **others,
        "first_rounds": ", ".join(f"{steps:,}" for steps in rounds()[:4]),
        "num_verdicts": str(1 + len(rounds())),
    }


def certificates() -> dict[str, str]:
    """What the fits of posteriordb say of certificates."""
    fits = pick("posteriordb", method="flow", certified="True")
    # draws of a mixture are kept, so there are no fresh ones to judge
    again_judged = [row for row in fits if row["by"] == "weights"]
    khat, fresh_khat, fresh_ess = (of(again_judged, name) for name in ("khat", "fresh_khat", "fresh_ess"))
    again = ((fresh_khat < SETTINGS.max_khat) & (fresh_ess >= SETTINGS.min_ess)) | (
        fresh_ess >= SETTINGS.sufficient_ess
    )
    gaussian = np.array([row["by"] == "weights" for row in fits]) & (of(fits, "seconds_flow") == 0)
    evidence = {
        name: of(pick("posteriordb", method="flow", posterior=f"eight_schools-eight_schools_{name}"), "log_evidence")
        for name in ("centered", "noncentered")
    }
    missing = evidence["noncentered"].mean() - evidence["centered"]
    return {
        "num_posteriors": str(len({row["posterior"] for row in fits})),
        "by_gaussian": f"{gaussian.sum()} of {len(fits)}",
        "by_mixture": str(sum(row["by"].startswith("mixture") for row in fits)),
        "by_flow": str((of(fits, "seconds_flow") > 0).sum()),
        "gaussian_seconds": f"{np.median(of(fits, 'seconds')[gaussian]):.1f}",
        "khat_varies": f"{np.sqrt(np.mean((khat - fresh_khat) ** 2)):.2f}",
        "not_again": f"{(~again).sum()} of {len(again_judged)}",
        "missing_evidence": f"{missing.min():.3f} to {missing.max():.3f}",
    }


def nuts() -> dict[str, str]:
    """Where NUTS is faster."""
    ratios, hard = beside_nuts(without_compilation), read("speed_hard")
    compiling = beside_nuts(lambda row: float(row["seconds"]))
    nutpie = pick("rivals_summary", method="nutpie_low_rank")[0]
    return {
        "faster": f"{(ratios > 1).sum()} of {len(ratios)}",
        "faster_compiling": f"{(compiling > 1).sum()} of {len(compiling)}",
        "nutpie": f"{len(nutpie['wins'].split())} of {nutpie['runs']}",
        "num_hard": str(len(hard)),
        "hard_ratios": ends(of(hard, "seconds_over_nuts"), 1),
    }


def precision(size: float) -> str:
    return f"{np.spacing(np.float32(size)):.1g}"


def flows() -> dict[str, str]:
    rows = {row["recipe"]: row for row in read("flows")}
    return {
        "num_of_gaussianization": f"{int(rows['gaussianization']['parameters']):,}",
        "num_of_splines": f"{int(rows['nsf_coupling']['parameters']):,}",
        "gaussian_on_banana": f"{float(rows['matrix_exponential']['banana_ess']):.0%}",
    }


def continuous() -> dict[str, str]:
    long = pick("continuous_moons", budget="long")
    matching = np.median(of(long, "seconds") / of(long, "matching_steps"))
    likelihood = of(pick("continuous_training_step", side="ours"), "milliseconds_a_step")[0] / 1e3
    return {"likelihood_over_matching": f"{likelihood / matching:.0f}"}


def figures() -> dict[str, str | dict[str, str]]:
    return {
        "settings": settings(),
        "summary": {"num_draws": f"{NUM_DRAWS:,}", "max_khat_of_squares": f"{MAX_KHAT_OF_SQUARES}"},
        "chains": {"max_rhat": f"{MAX_RHAT}", "min_ess": f"{MIN_ESS:.0f}"},
        "certificates": certificates(),
        "nuts": nuts(),
        "precision_of_ten_thousand": precision(1e4),
        "precision_of_a_million": precision(1e6),
        "flows": flows(),
        "continuous": continuous(),
    }
