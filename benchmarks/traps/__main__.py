"""Fit densities on which importance weights alone mislead: count certified fits, and compare them with exact answers.

    uv run --group benchmarks python -m benchmarks.traps [--seeds 5] [--only TEXT]

Fits are in double precision, with the seeds 0..N-1. A fit is right if its draws and its log evidence are within the
bounds of `benchmarks.traps.scoring`, whether it is certified or not. It is wrongly certified if it is certified but not
right, or the density is improper.
"""

import argparse
import statistics
import time
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.results import num_effective, save
from benchmarks.traps.case import Case, Truth
from benchmarks.traps.cases import CASES
from benchmarks.traps.scoring import Score, score
from numpyro_flows import FlowVI

DRAWS = 20_000


class Fit(NamedTuple):
    certified: bool
    right: bool
    crashed: bool
    seconds: float
    text: str


def fitted(case: Case, truth: Truth | None, seed: int) -> Fit:
    """One fit with its score; an exception is recorded as a crash."""
    start = time.perf_counter()
    try:
        posterior = FlowVI(case.model, progress_bar=False, **case.settings).run(jax.random.key(seed), *case.args)
        seconds = time.perf_counter() - start
        errors = None
        if truth is not None:
            draws = {name: np.asarray(x) for name, x in posterior.sample(jax.random.key(1000 + seed), DRAWS).items()}
            effective = num_effective(posterior, DRAWS)
            errors = score(draws | case.derived(draws), effective, posterior.log_evidence, truth)
    except Exception as error:  # a crash is a result, and the other cases still count
        return Fit(False, False, True, time.perf_counter() - start, f"CRASH {type(error).__name__}: {error}"[:300])
    right = errors is not None and not errors.wrong
    parts = [
        "certified" if posterior.certified else "refused",
        "improper" if errors is None else "right" if right else "WRONG",
        *numbers(errors, posterior.log_evidence),
        "by a flow or Gaussian" if posterior.chains is None else f"by a mixture or chains ({posterior.certificate.by})",
        f"ESS {posterior.ess:.3f}, k-hat {posterior.khat:.2f}, {seconds:.0f} s",
        posterior.why,
    ]
    return Fit(posterior.certified, right, False, seconds, "; ".join(part for part in parts if part))


def numbers(errors: Score | None, log_evidence: float) -> list[str]:
    """The largest errors, those that are compared."""
    if errors is None:
        return [f"log Z {log_evidence:.2f}"]
    formats = {
        "mean": "mean {:.3f} sd",
        "sd": "sd {:.1%}",
        "quantile": "quantile {:.3f} IQR",
        "log_evidence": "log Z {:+.3f}",
    }
    values = errors._asdict()
    return [text.format(values[name]) for name, text in formats.items() if values[name] is not None]


def row(name: str, case: Case, fits: list[Fit]) -> dict[str, Any]:
    return {
        "case": name,
        "kind": case.kind,
        "fits": len(fits),
        "certified": sum(fit.certified for fit in fits),
        "right": sum(fit.right for fit in fits),
        "wrongly_certified": sum(fit.certified and not fit.right for fit in fits),
        "refused": sum(not fit.certified and not fit.crashed for fit in fits),
        "crashed": sum(fit.crashed for fit in fits),
        "median_seconds": f"{statistics.median(fit.seconds for fit in fits):.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="cases whose name or kind contains this; nothing is saved")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", UserWarning)
    rows = []
    for name, case in CASES.items():
        if options.only and options.only not in name and options.only not in case.kind:
            continue
        truth = case.truth() if case.truth else None
        fits = []
        for seed in range(options.seeds):
            fits.append(fitted(case, truth, seed))
            print(f"{name}, seed {seed}: {fits[-1].text}", flush=True)
        rows.append(row(name, case, fits))
        jax.clear_caches()
    if options.only:
        for values in rows:
            print("  ".join(f"{key}={value}" for key, value in values.items()))
    else:
        save("traps", rows)


if __name__ == "__main__":
    main()
