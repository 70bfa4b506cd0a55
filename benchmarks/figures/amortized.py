"""Amortised posteriors and simulators."""

from benchmarks.figures.rows import ends, of, pick
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
    }
