"""Simulation-based calibration of default FlowVI, and z-scores of its log evidence where the exact one is known.

    uv run --group benchmarks python -m benchmarks.calibration [--datasets 200] [--only NAME] [--resume]

Data set i is simulated from the prior by key i and fitted in double precision. Two models are checked by ranks: the
rank of each true scalar, and of the log joint density, among 200 draws of the fit. Over all data sets these ranks are
uniform where the draws follow the posterior; the ECDF of each is compared with ArviZ's simultaneous band. The same
draws with standard deviations that are 20% too small must leave the bands. Two conjugate models are checked by
`z = (log_evidence - exact) / log_evidence_se`, whose mean should be 0 and whose standard deviation 1.

Refused fits are counted and stay in all results: which fits are refused depends on the data, so to leave them out would
bias the ranks. `calibration_NAME.csv` is written after every data set; `--resume` goes on after the last one in it.
"""

import argparse
import warnings

import jax

from benchmarks.calibration import conjugate, models
from benchmarks.calibration.fits import Fit, evidence, ranks
from benchmarks.calibration.report import SHRUNK, Row, draw_picture, summarised_evidence, summarised_ranks
from benchmarks.results import FOLDER, read, save, write

KEPT_COMPILED = 10  # data sets, after which what is compiled is forgotten to free memory
NAMES = [*models.MODELS, *conjugate.MODELS]


def row(name: str, number: int) -> Row:
    """The results of one data set."""
    if name in models.MODELS:
        fit, ranked = ranks(models.MODELS[name], number)
        values = dict(zip(ranked.names, ranked.fit)) | {n + SHRUNK: x for n, x in zip(ranked.names, ranked.shrunk)}
        return rounded(fit) | {quantity: f"{value:.5f}" for quantity, value in values.items()}
    fit, compared = evidence(conjugate.MODELS[name], number)
    return rounded(fit) | {quantity: f"{value:.5g}" for quantity, value in compared._asdict().items()}


def rounded(fit: Fit) -> Row:
    return fit._asdict() | {"ess": f"{fit.ess:.5f}", "seconds": f"{fit.seconds:.1f}"}


def run(name: str, num_datasets: int, resume: bool) -> None:
    """Fit the data sets of one model."""
    rows: list[Row] = [*read(f"calibration_{name}")] if resume else []
    for number in range(len(rows), num_datasets):
        rows.append(row(name, number))
        write(f"calibration_{name}", rows)
        print(f"{name}: " + "; ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        if number % KEPT_COMPILED == KEPT_COMPILED - 1:
            jax.clear_caches()


def report() -> None:
    """Summarise the results of all models that were run."""
    results = {name: read(f"calibration_{name}") for name in NAMES}
    results = {name: rows for name, rows in results.items() if rows}
    ranked = {name: rows for name, rows in results.items() if name in models.MODELS}
    for name, rows in ranked.items():
        draw_picture(name, rows, FOLDER.parent / "images" / f"calibration_{name}.png")
    if ranked:
        save("calibration_ranks", [row for name, rows in ranked.items() for row in summarised_ranks(name, rows)])
    if len(results) > len(ranked):
        compared = [name for name in results if name not in ranked]
        save("calibration_evidence", [summarised_evidence(name, results[name]) for name in compared])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=200)
    parser.add_argument("--only", choices=NAMES, help="one model; the summaries contain the others' earlier results")
    parser.add_argument("--resume", action="store_true", help="go on after the data sets that were written")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", UserWarning)
    for name in [options.only] if options.only else NAMES:
        run(name, options.datasets, options.resume)
    report()


if __name__ == "__main__":
    main()
