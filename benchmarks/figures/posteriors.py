"""Fits of posteriors: certificates, their limits, and where NUTS is faster."""

from collections.abc import Sequence

import numpy as np

from benchmarks.figures.rows import (
    POSTERIORDB,
    Row,
    beside_nuts,
    count,
    ends,
    of,
    pick,
    thousands,
    with_compilation,
    without_compilation,
)
from benchmarks.figures.settings import SETTINGS
from benchmarks.results import read


def certificates() -> dict[str, str]:
    """What the fits of posteriordb say of certificates."""
    fits = pick(POSTERIORDB, method="flow", certified="True")
    # draws of a mixture are kept, so there are no fresh ones to judge
    again_judged = [row for row in fits if row["by"] == "weights"]
    khat, fresh_khat, fresh_ess = (of(again_judged, name) for name in ("khat", "fresh_khat", "fresh_ess"))
    errors = [of(again_judged, f"weighted_{name}_error") for name in ("mean", "sd")]
    again = ((fresh_khat < SETTINGS.max_khat) & (fresh_ess >= SETTINGS.min_ess)) | (
        fresh_ess >= SETTINGS.sufficient_ess
    )
    gaussian = np.array([row["by"] == "weights" for row in fits]) & (of(fits, "seconds_flow") == 0)
    evidence = {
        name: of(pick(POSTERIORDB, method="flow", posterior=f"eight_schools-eight_schools_{name}"), "log_evidence")
        for name in ("centered", "noncentered")
    }
    mixtures = of([row for row in fits if row["by"].startswith("mixture")], "seconds_mixture")
    missing = evidence["noncentered"].mean() - evidence["centered"]
    return {
        "certified": f"{len(fits)} of {len(pick(POSTERIORDB, method='flow'))}",
        "num_posteriors": str(len({row["posterior"] for row in fits})),
        "by_gaussian": count(gaussian),
        "by_mixture": str(sum(row["by"].startswith("mixture") for row in fits)),
        "by_flow": str((of(fits, "seconds_flow") > 0).sum()),
        "gaussian_seconds": f"{np.median(of(fits, 'seconds')[gaussian]):.1f}",
        "gaussian_evaluations": thousands(evaluations(fits)[gaussian]),
        "evaluations": thousands(evaluations(fits)),
        "mixture_seconds": f"{np.median(mixtures):.1f}",
        "mixture_most_seconds": f"{mixtures.max():.1f}",
        "khat_varies": f"{np.sqrt(np.mean((khat - fresh_khat) ** 2)):.2f}",
        "not_again": count(~again),
        "not_again_mean_error": f"{errors[0][~again].max(initial=0.0):.3f}",
        "not_again_sd_error": f"{errors[1][~again].max(initial=0.0):.1%}",
        "missing_evidence": f"{missing.min():.3f} to {missing.max():.3f}",
        "missing_evidence_fits": str(len(missing)),
    }


def evaluations(rows: Sequence[Row]) -> np.ndarray:
    """All evaluations of the density in a fit, with and without a gradient."""
    return of(rows, "gradient_evaluations") + of(rows, "value_evaluations")


def blind() -> dict[str, str]:
    """Errors that a certificate overlooked."""
    banana = pick("blind", case="banana, 6 dimensions")
    off = 1 - of(banana, "sd_ratio")
    texts = {"seeds": str(len(banana)), "banana_khat": ends(of(banana, "khat"), 2)}
    texts["banana_sd"] = f"{100 * off.min():.0f}% to {100 * off.max():.0f}%"
    for dim in (5, 8, 12):
        lost = 1 - np.exp(of(pick("blind", case=f"modes, {dim} dimensions", certified="True"), "log_evidence"))
        texts |= {f"missed_{dim}": count(lost > 0.1), "share": f"{lost.max():.0%}"}
    return texts


def large() -> dict[str, str]:
    """Regressions with many rows."""
    rows = read("speed_large")
    most = max(rows, key=lambda row: int(row["rows"]))
    return {
        "evaluations": thousands(of(rows, "gradients") + of(rows, "values")),
        "most_rows": f"{int(most['rows']):,}",
        "nuts_share": f"{1 / float(most['seconds_over_nuts']):.0%}",
    }


def calibration() -> dict[str, str]:
    """Ranks of fits, and of draws that are 20% too narrow."""
    rows = read("calibration_ranks")
    inside, narrow_inside = (np.array([row[f"{of}_in_band"] == "True" for row in rows]) for of in ("fit", "shrunk"))
    return {"inside": count(inside), "narrow_outside": count(~narrow_inside), "data_sets": rows[0]["datasets"]}


def nuts() -> dict[str, str]:
    """Where NUTS is faster."""
    hard = read("speed_hard")
    nutpie, ours = (pick("rivals_summary", method=method)[0] for method in ("nutpie_low_rank", "flow"))
    ratios, compiling = beside_nuts(without_compilation), beside_nuts(with_compilation)
    many = 1 / of(read("speed_many"), "data_sets_per_second_over_nuts")[0]
    return {
        "faster": count(ratios > 1),
        "worst": f"{ratios.max():.1f}",
        "faster_compiling": count(compiling > 1),
        "median_compiling": f"{np.median(compiling):.2f}",
        "gradients": f"{float(ours['over_nuts']):.2f}",
        "many_nuts": f"{many:.1f}",
        "nutpie": f"{len(nutpie['wins'].split())} of {nutpie['runs']}",
        "num_hard": str(len(hard)),
        "hard_ratios": ends(of(hard, "seconds_over_nuts"), 1),
    }
