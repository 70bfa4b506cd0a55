"""Flows by recipe, and continuous flows."""

import numpy as np

from benchmarks.figures.rows import Row, count, ends, geometric_mean, markdown, of, pick
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


def speed_ratios() -> tuple[dict[str, list[float]], str]:
    """Our training steps per second over those of the best peer, by architecture, and a text for the worst case."""
    rows = [row for row in read("flows_speed") if row["dim"]]  # the last row is a mean
    cases: dict[tuple[str, ...], float] = {}
    for row in rows:
        case = (row["flow"], row["kl"], row["gradient"], row["dim"])
        cases[case] = min(float(row["ratio"]), cases.get(case, np.inf))
    by_flow: dict[str, list[float]] = {}
    for (flow, *_), ratio in cases.items():
        by_flow.setdefault(flow, []).append(ratio)
    worst = min(rows, key=lambda row: float(row["ratio"]))
    return by_flow, f"{worst['ratio']} ({worst['flow']}, {worst['dim']} dimensions, against {worst['peer']})"


def speed() -> dict[str, str]:
    by_flow, worst = speed_ratios()
    ratios = np.concatenate(list(by_flow.values()))
    others = np.concatenate([values for flow, values in by_flow.items() if flow != "planar"])
    beside_numpyro = of(pick("flows_speed", peer="NumPyro"), "ratio")
    fits = [row for row in read("density_seconds") if row["num"]]  # the last row is a mean
    return {
        "all": f"{geometric_mean(ratios):.1f}",
        "without_planar": f"{geometric_mean(others):.1f}",
        "worst": worst,
        "numpyro": f"{geometric_mean(beside_numpyro):.2f}",
        "numpyro_faster": count(beside_numpyro < 1),
        "flowjax_nll": count(of(fits, "flowjax_nll") < of(fits, "ours_nll")),
        "flowjax_seconds": f"{geometric_mean(of(fits, 'ratio')):.2f}",
    }


def densities() -> dict[str, str]:
    tables, tabular = read("density_tables"), [row for row in read("density_tabular") if row["side"] != "ours"]
    zuko = geometric_mean(of(tables, "zuko_nsf_seconds") / of(tables, "ours_seconds"))
    return {"zuko": f"{zuko:.0%}", "lost": count(of(tabular, "above_ours") < 0)}


def medians(rows: list[Row], column: str, *by: str) -> dict[tuple[str, ...], float]:
    """The median of a column over the rows that agree in the columns `by`."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return {key: float(np.median(of(group, column))) for key, group in groups.items()}


def over_independent(column: str) -> np.ndarray:
    """Medians of optimal-transport pairs over those of independent pairs, for each task."""
    values = medians(read("continuous_coupling"), column, "task", "coupling")
    tasks = dict.fromkeys(task for task, _ in values)
    return np.array([values[task, "minibatch_ot"] / values[task, "independent"] for task in tasks])


def continuous() -> dict[str, str]:
    long = pick("continuous_moons", budget="long")
    matching = np.median(of(long, "seconds") / of(long, "matching_steps"))
    likelihood = of(pick("continuous_training_step", side="ours"), "milliseconds_a_step")[0] / 1e3
    evaluations = np.concatenate([of(read(f"continuous_{name}"), "evaluations") for name in ("moons", "coupling")])
    return {
        "likelihood_over_matching": f"{likelihood / matching:.0f}",
        "evaluations": ends(evaluations, 0),
        "transport_worse": count(over_independent("above_truth") > 1),
    }
