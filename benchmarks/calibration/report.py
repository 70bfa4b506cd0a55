"""What the results of all data sets say: ranks against bands, z-scores of the log evidence, and pictures."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from numpyro_flows.diagnostics.ranks import Band, band

# all but grey, which is that of lines without a name
_COLOURS = ["blue", "orange", "green", "red", "purple", "brown", "pink", "olive", "cyan"]
FALSE_ALARM = 0.05  # probability that any of a model's quantities leaves its band by chance
SHRUNK = " shrunk"  # ends the columns of ranks among shrunk draws
FIT_COLUMNS = ("number", "certified", "by", "ess", "seconds")
Row = dict[str, Any]


def ranked(rows: list[Row]) -> list[str]:
    """Names of the quantities that have ranks."""
    return [name for name in rows[0] if name not in FIT_COLUMNS and not name.endswith(SHRUNK)]


def column(rows: list[Row], name: str) -> Float[np.ndarray, " rows"]:
    return np.array([float(row[name]) for row in rows])


def band_of(rows: list[Row]) -> Band:
    """The band of each quantity: Bonferroni's correction makes the bands of all of them simultaneous."""
    return band(len(rows), 1 - FALSE_ALARM / len(ranked(rows)))


def verdicts(rows: list[Row]) -> Row:
    """How many fits are certified, and the numbers of the data sets whose fit is refused."""
    refused = [str(row["number"]) for row in rows if str(row["certified"]) != "True"]
    seconds = f"{np.median(column(rows, 'seconds')):.1f}"
    return {
        "datasets": len(rows),
        "certified": len(rows) - len(refused),
        "refused": " ".join(refused),
        "by_mcmc": sum(row["by"] == "mcmc" for row in rows),
        "median_seconds": seconds,
    }


def summarised_ranks(model: str, rows: list[Row]) -> list[Row]:
    """One row for each quantity: whether the ECDF of its ranks lies in the band; refused fits are included."""
    limits = band_of(rows)
    return [
        {
            "model": model,
            "quantity": name,
            "fit_in_band": limits.contains(column(rows, name)),
            "shrunk_in_band": limits.contains(column(rows, name + SHRUNK)),
            **verdicts(rows),
        }
        for name in ranked(rows)
    ]


def summarised_evidence(model: str, rows: list[Row]) -> Row:
    """Mean and standard deviation of `z = error / se`, for the reported error and for that of the weights alone."""
    scores = {"": column(rows, "error") / column(rows, "se")}
    scores["_monte_carlo"] = column(rows, "error") / column(rows, "monte_carlo_se")
    moments = {f"z{kind}_{name}": f"{f(z):.3f}" for kind, z in scores.items() for name, f in MOMENTS.items()}
    ess, se = (np.median(column(rows, name)) for name in ("ess", "se"))
    return {"model": model, **moments, "median_ess": f"{ess:.4f}", "median_se": f"{se:.2g}", **verdicts(rows)}


def sd(values: Float[np.ndarray, " num"]) -> float:
    return float(values.std(ddof=1))


MOMENTS = {"mean": np.mean, "sd": sd}


def draw_picture(model: str, rows: list[Row], path: Path) -> None:
    """Differences of the ranks' ECDFs from the uniform distribution, for the fit and for shrunk draws."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind, title in zip(axes, ("", SHRUNK), ("FlowVI", "draws with sds 20% too small")):
        draw_differences(axis, rows, kind)
        axis.set_title(f"{model}: {title}", fontsize=10)
        axis.set_xlabel("normalised rank")
    axes[0].set_ylabel("ECDF - uniform")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def draw_differences(axis: Axes, rows: list[Row], kind: str) -> None:
    """One line for each quantity; those that leave the band are named."""
    limits = band_of(rows)
    axis.set_prop_cycle(color=[f"tab:{name}" for name in _COLOURS])
    lower, upper = limits.lower - limits.points, limits.upper - limits.points
    axis.fill_between(limits.points, lower, upper, color="0.9")
    for name in ranked(rows):
        values = column(rows, name + kind)
        style: Any = {"color": "0.5"} if limits.contains(values) else {"label": name}
        axis.plot(limits.points, limits.ecdf(values) - limits.points, linewidth=1, **style)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False, ncols=2, loc="upper right")
