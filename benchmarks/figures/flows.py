"""Flows by recipe, and continuous flows."""

import numpy as np

from benchmarks.figures.rows import markdown, of, pick
from benchmarks.results import read

COLUMNS = {
    "recipe": "recipe",
    "parameters": "parameters",
    "fast": "fast direction",
    "moons_seconds_compile": "compile, s",
    "moons_ms_per_step": "step, ms",
    "moons_nll": "NLL moons",
    "gaussians_nll": "NLL eight Gaussians",
    "schools_ess": "ESS schools",
    "banana_ess": "ESS banana",
}


def flows() -> dict[str, str]:
    table = read("flows")
    rows = {row["recipe"]: row for row in table}
    return {
        "num_of_gaussianization": f"{int(rows['gaussianization']['parameters']):,}",
        "num_of_splines": f"{int(rows['nsf_coupling']['parameters']):,}",
        "gaussian_on_banana": f"{float(rows['matrix_exponential']['banana_ess']):.0%}",
        "table": markdown(list(COLUMNS.values()), ([row[name] for name in COLUMNS] for row in table)),
    }


def continuous() -> dict[str, str]:
    long = pick("continuous_moons", budget="long")
    matching = np.median(of(long, "seconds") / of(long, "matching_steps"))
    likelihood = of(pick("continuous_training_step", side="ours"), "milliseconds_a_step")[0] / 1e3
    return {"likelihood_over_matching": f"{likelihood / matching:.0f}"}
