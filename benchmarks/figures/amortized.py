"""Amortised posteriors and simulators."""

from benchmarks.figures.rows import ends, markdown, of, pick
from benchmarks.results import read


def amortized() -> dict[str, str]:
    schools, sets = read("amortized_schools"), read("amortized_sets")
    repaid = of(schools, "data_sets_to_repay")
    return {
        "schools_seeds": str(len(schools)),
        "schools_certified": f"{of(schools, 'certified').min():.1%}",
        "schools_rate": f"{of(schools, 'times_nuts').min():.0f}",
        "schools_repaid": f"{repaid.min():,.0f} to {repaid.max():,.0f}",
        "sets_seeds": str(len({row["seed"] for row in sets})),
        "sets_certified": f"{of(sets, 'certified').min():.1%} to {of(sets, 'certified').max():.0%}",
        "c2st": ends(of(pick("simulators", method="ours", observation="median"), "c2st"), 2),
        "simulators": simulators(),
        "calibrated": calibrated(),
    }


def simulators() -> str:
    """C2ST and training seconds by task and method."""
    header = "task", "method", "C2ST, median", "worst", "asked", "training, s"
    rows = []
    for median in sorted(pick("simulators", observation="median"), key=lambda row: row["task"]):
        (worst,) = pick("simulators", observation="worst", task=median["task"], method=median["method"])
        method = "`fit_density`" if median["method"] == "ours" else f"`sbi`, {median['method'].upper()}"
        scores = f"{float(median['c2st']):.3f}", f"{float(worst['c2st']):.3f}", median["target"]
        rows.append((median["task"].replace("_", " "), method, *scores, median["training_seconds"]))
    return markdown(header, rows)


def calibrated() -> str:
    """Verdicts and seconds of simulation-based calibration by method."""
    header = "method", "data sets", "left out", "verdict", "seconds of one check", "training, s"
    columns = "method", "data_sets", "left_out", "verdict", "seconds", "training_seconds"
    return markdown(header, ([row[name] for name in columns] for row in read("sbc")))
