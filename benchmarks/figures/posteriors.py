"""Fits of posteriors: certificates, and where NUTS is faster."""

import numpy as np

from benchmarks.figures.rows import (
    POSTERIORDB,
    beside_nuts,
    count,
    ends,
    of,
    pick,
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
    again = ((fresh_khat < SETTINGS.max_khat) & (fresh_ess >= SETTINGS.min_ess)) | (
        fresh_ess >= SETTINGS.sufficient_ess
    )
    gaussian = np.array([row["by"] == "weights" for row in fits]) & (of(fits, "seconds_flow") == 0)
    evidence = {
        name: of(pick(POSTERIORDB, method="flow", posterior=f"eight_schools-eight_schools_{name}"), "log_evidence")
        for name in ("centered", "noncentered")
    }
    missing = evidence["noncentered"].mean() - evidence["centered"]
    return {
        "num_posteriors": str(len({row["posterior"] for row in fits})),
        "by_gaussian": count(gaussian),
        "by_mixture": str(sum(row["by"].startswith("mixture") for row in fits)),
        "by_flow": str((of(fits, "seconds_flow") > 0).sum()),
        "gaussian_seconds": f"{np.median(of(fits, 'seconds')[gaussian]):.1f}",
        "khat_varies": f"{np.sqrt(np.mean((khat - fresh_khat) ** 2)):.2f}",
        "not_again": count(~again),
        "missing_evidence": f"{missing.min():.3f} to {missing.max():.3f}",
        "missing_evidence_fits": str(len(missing)),
    }


def nuts() -> dict[str, str]:
    """Where NUTS is faster."""
    hard = read("speed_hard")
    nutpie = pick("rivals_summary", method="nutpie_low_rank")[0]
    return {
        "faster": count(beside_nuts(without_compilation) > 1),
        "faster_compiling": count(beside_nuts(with_compilation) > 1),
        "nutpie": f"{len(nutpie['wins'].split())} of {nutpie['runs']}",
        "num_hard": str(len(hard)),
        "hard_ratios": ends(of(hard, "seconds_over_nuts"), 1),
    }
