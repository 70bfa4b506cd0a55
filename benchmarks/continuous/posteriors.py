"""A continuous flow as the guide of `FlowVI`: the eight schools in both forms and a GARCH model.

    uv run --group benchmarks python -m benchmarks.continuous.posteriors --database PATH [--seeds 1]

`FlowVI(model, guide=AutoFlow(model, flows.ffjord))` runs with all defaults, and with a smaller field of two hidden
layers of 32, which the documentation recommends for guides. Certificates use the exact divergence at the default
tolerance. The database is a clone of posteriordb.
"""

import argparse
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax

from benchmarks.posteriordb.models import load
from benchmarks.results import save
from numpyro_flows import AutoFlow, FlowVI, flows
from numpyro_flows.continuous import MLPField

NAMES = (
    "eight_schools-eight_schools_noncentered",
    "garch-garch11",
    "eight_schools-eight_schools_centered",
)
GUIDES = {"small field": partial(flows.ffjord, field=partial(MLPField, hidden=(32, 32))), "default": flows.ffjord}


def measure(database: Path, name: str, guide: str, seed: int) -> dict[str, Any]:
    posterior = load(database, name)
    jax.clear_caches()
    start = time.perf_counter()
    vi = FlowVI(posterior.model, AutoFlow(posterior.model, GUIDES[guide]), fallback=None, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether it is certified is a column
        fit = vi.run(jax.random.key(seed), *posterior.args)
    row = {
        "posterior": name,
        "guide": guide,
        "seed": seed,
        "certified": fit.certified,
        "ess": f"{fit.ess:.3f}",
        "khat": f"{fit.khat:.2f}",
        "log_evidence": f"{fit.log_evidence:.3f}",
        "steps": fit.losses.size,
        "skipped": fit.num_skipped,
        "seconds": f"{time.perf_counter() - start:.1f}",
        **{f"seconds_{stage}": f"{seconds:.1f}" for stage, seconds in fit.seconds.items()},
    }
    print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the first posterior and guide, nothing written")
    options = parser.parse_args()
    cases = [(name, guide, seed) for guide in GUIDES for name in NAMES for seed in range(options.seeds)]
    rows = [measure(options.database, *case) for case in (cases[:1] if options.quick else cases)]
    if not options.quick:
        save("continuous_posteriors", rows)


if __name__ == "__main__":
    main()
