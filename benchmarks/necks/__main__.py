"""Fit hierarchical models whose scales come near zero, and compare log scales and evidence with exact answers.

    uv run --group benchmarks python -m benchmarks.necks --database PATH [--seeds 5] [--only TEXT]

PATH is a clone of posteriordb (the folder that holds `posterior_database`). Fits are by default FlowVI in double
precision, with the seeds 0..N-1. Each log scale must pass two checks. At most 0.5% of the exact posterior lies beyond
the lowest or the highest of 20,000 draws, and the standard deviation is within 3% of the exact one.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.necks.case import Case, Truth
from benchmarks.necks.cases import cases
from benchmarks.necks.scoring import COLUMNS, Score
from benchmarks.results import num_effective, save
from numpyro_flows import FlowPosterior, FlowVI

DRAWS = 20_000
CRASHED = dict.fromkeys(COLUMNS, "") | {
    "as_asked": False,
    "certified": False,
    **dict.fromkeys(("by", "ess", "log_evidence_error", "log_evidence_se", "seconds", "stages"), ""),
}


def rows(name: str, case: Case, truth: Truth, seed: int) -> list[dict[str, Any]]:
    """One fit: a row for each of its log scales. A crash is a result as well."""
    start = time.perf_counter()
    try:
        posterior = FlowVI(case.model, progress_bar=False).run(jax.random.key(seed), *case.args)
        seconds = time.perf_counter() - start
        sampled = posterior.sample(jax.random.key(1000 + seed), DRAWS)
    except Exception as error:
        seconds = time.perf_counter() - start
        crash = CRASHED | {"seconds": f"{seconds:.1f}", "why": f"CRASH {type(error).__name__}: {error}"[:300]}
        return [about(name, truth, seed, scale) | crash for scale in truth.marginals]
    fit = verdict(posterior, truth) | {"seconds": f"{seconds:.1f}", "stages": stages(posterior), "why": posterior.why}
    num = num_effective(posterior, DRAWS)
    log_scales = case.log_scales({site: np.asarray(x) for site, x in sampled.items()})
    return [
        about(name, truth, seed, scale) | Score.of(log_scales[scale], num, exact).columns() | fit
        for scale, exact in truth.marginals.items()
    ]


def about(name: str, truth: Truth, seed: int, scale: str) -> dict[str, Any]:
    """Properties of a log scale that are known before any fit."""
    exact = truth.marginals[scale]
    return {
        "case": name,
        "seed": seed,
        "scale": scale,
        "exact_mean": f"{exact.mean:.4f}",
        "exact_sd": f"{exact.sd:.4f}",
        "exact_sd_se": f"{exact.sd_se:.1g}",
        "exact_log_evidence": f"{truth.log_evidence:.3f}",
        "exact_log_evidence_se": f"{truth.log_evidence_se:.1g}",
    }


def verdict(posterior: FlowPosterior, truth: Truth) -> dict[str, Any]:
    return {
        "certified": posterior.certified,
        "by": posterior.certificate.by,
        "ess": f"{posterior.ess:.3f}",
        "log_evidence_error": f"{posterior.log_evidence - truth.log_evidence:+.3f}",
        "log_evidence_se": f"{posterior.log_evidence_se:.3f}",
    }


def stages(posterior: FlowPosterior) -> str:
    return ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in posterior.seconds.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, required=True, help="a clone of posteriordb")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is saved")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", UserWarning)
    found = []
    for name, case in cases(options.database).items():
        if options.only not in name:
            continue
        truth = case.truth()
        for seed in range(options.seeds):
            for row in rows(name, case, truth, seed):
                print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
                found.append(row)
        jax.clear_caches()
    if not options.only:
        save("necks", found)


if __name__ == "__main__":
    main()
