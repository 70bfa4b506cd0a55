"""The table of results in words and as a picture."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.posteriordb.table import Row, number

# method -> name, colour, marker; the colours are those of Okabe and Ito, which colour-blind readers tell apart
STYLES = {
    "flow": ("FlowVI", "#0072B2", "o"),
    "nuts": ("NUTS", "#D55E00", "D"),
    "AutoMultivariateNormal": ("AutoMultivariateNormal", "#E69F00", "s"),
    "AutoIAFNormal": ("AutoIAFNormal", "#009E73", "^"),
    "AutoBNAFNormal": ("AutoBNAFNormal", "#CC79A7", "v"),
    "flowjax_coupling": ("FlowJAX coupling", "#56B4E9", "P"),
}
_ESS_TICKS = {0.001: "≤ 0.1%", 0.01: "1%", 0.1: "10%", 0.5: "50%", 0.9: "90%", 0.99: "99%", 0.999: "≥ 99.9%"}


def line(row: Row) -> str:
    """A row in one line of text."""
    start = f"{row['posterior']}  {row['method']} seed {row['seed']}: "
    if row.get("error"):
        return f"{start}ERROR {row['error']}"
    if row["method"] == "nuts":
        quality = f"min ESS {number(row, 'min_ess'):.0f}, {row['divergences']} divergences"
    else:
        quality = "certified" if _certified(row) else "NOT certified"
        quality += f", k-hat {number(row, 'khat'):.2f}, ESS {number(row, 'ess'):.1%}, ELBO {number(row, 'elbo'):.8g}"
        quality += f", weighted errors {_errors([row], 'weighted_')}"
    work = f"{number(row, 'seconds'):.1f} s ({number(row, 'compile_seconds'):.1f} s compiling)"
    work += f", {number(row, 'gradient_evaluations'):,.0f} gradients"
    return f"{start}{quality}; errors {_errors([row])}; {work}; {number(row, 'seconds_to_10000'):.1f} s to 10,000"


def summary(rows: list[Row]) -> str:
    """What all rows together say about each method."""
    by_method, lines = defaultdict(list), []
    for row in rows:
        by_method[row["method"]].append(row)
    nuts = {row["posterior"]: row for row in by_method["nuts"]}
    for method in sorted(by_method, key=list(STYLES).index):
        group = by_method[method]
        done = [row for row in group if not row.get("error")]
        lines.append(f"{STYLES[method][0]}: {len(group)} runs, {len(group) - len(done)} failed")
        if not done:
            continue
        if method == "nuts":
            lines.append(f"  worst errors: {_errors(done)}")
            divergent = sum(number(row, "divergences") > 0 for row in done)
            lines.append(
                f"  smallest ESS {min(number(row, 'min_ess') for row in done):.0f}; {divergent} with divergences"
            )
            continue
        good = sum(number(row, "ess") >= 0.9 for row in done)
        lines.append(f"  certified {sum(map(_certified, done))} of {len(group)}, ESS >= 0.9: {good}")
        trusted = [row for row in done if _certified(row)]
        if trusted:
            lines.append(f"  worst weighted errors of certified runs: {_errors(trusted, 'weighted_')}")
        first = [row for row in done if row["seed"] == "0"]
        for column in ("seconds", "seconds_to_10000"):
            ratios = [number(row, column) / number(nuts.get(row["posterior"]), column) for row in first]
            lines.append(f"  {column} over NUTS: {_ratios(ratios, first)}")
        if method == "flow":
            lines += _about_flow(done)
    return "\n".join(lines)


def _about_flow(rows: list[Row]) -> list[str]:
    elbos = defaultdict(list)
    for row in rows:
        elbos[row["posterior"]].append(number(row, "elbo"))
    ranges = [np.ptp(values) for values in elbos.values() if len(values) > 1]
    lines = [f"  range of the ELBO over seeds, median: {np.median(ranges):.4f} nats"] if ranges else []
    columns = dict.fromkeys(name for row in rows for name in row if row[name])
    stages = [name for name in columns if name.startswith("seconds_") and name != "seconds_to_10000"]
    means = {name.removeprefix("seconds_"): np.nanmean([number(row, name) for row in rows]) for name in stages}
    lines.append("  mean seconds: " + ", ".join(f"{stage} {mean:.2f}" for stage, mean in means.items()))
    fresh = sum(number(row, "fresh_khat") < 0.7 or number(row, "fresh_ess") >= 0.99 for row in rows if _certified(row))
    return [*lines, f"  certified ones that 10,000 more draws would certify too: {fresh}"]


def _certified(row: Row) -> bool:
    return row.get("certified") == "True"


def _errors(rows: list[Row], kind: str = "") -> str:
    mean, sd = (np.max([number(row, f"{kind}{name}_error") for row in rows]) for name in ("mean", "sd"))
    return f"mean {mean:.3f} sd, sd {sd:.1%}"


def _ratios(ratios: list[float], rows: list[Row]) -> str:
    finite = np.isfinite(ratios)
    if not finite.any():
        return "no run to compare"
    worst = int(np.nanargmax(ratios))
    mean = np.exp(np.mean(np.log(np.asarray(ratios)[finite])))
    return f"geometric mean {mean:.2f}, max {ratios[worst]:.2f} ({rows[worst]['posterior']}), of {finite.sum()}"


def draw_picture(rows: list[Row], path: Path) -> None:
    """ESS of all methods, seconds of FlowVI and NUTS, and their seconds to 10,000 effective draws, by posterior."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = [row for row in rows if not row.get("error")]
    posteriors = list(dict.fromkeys(row["posterior"] for row in rows))
    height = {name: -i for i, name in enumerate(posteriors)}
    size = (13, 1.6 + 0.33 * len(posteriors))
    figure, axes = plt.subplots(1, 3, sharey=True, figsize=size, width_ratios=[2, 1, 1], layout="constrained")

    for row in rows[::-1]:  # the first methods on top
        _, colour, marker = STYLES[row["method"]]
        face = colour if _certified(row) or row["method"] == "nuts" else "white"
        style = {"color": colour, "marker": marker, "markerfacecolor": face, "markersize": 6, "linestyle": "none"}
        y = height[row["posterior"]]
        if row["method"] == "nuts":
            times_y = y - 0.13
        else:
            times_y = y + 0.13
            own_y = y + 0.3 - 0.12 * list(STYLES).index(row["method"])  # methods of a row side by side
            axes[0].plot(np.clip(number(row, "ess"), 0.001, 0.999), own_y, **style)
        if row["method"] in ("flow", "nuts"):
            axes[1].plot(number(row, "seconds"), times_y, **style)
            axes[2].plot(number(row, "seconds_to_10000"), times_y, **style)

    axes[0].set_xscale("logit")
    axes[0].set_xlim(7e-4, 0.9993)
    axes[0].set_xticks(list(_ESS_TICKS), list(_ESS_TICKS.values()))
    axes[0].set_xticks([], minor=True)
    axes[0].set_title("ESS of the importance weights\n(filled: certified)", fontsize=10)
    axes[1].set_title("seconds of the fit", fontsize=10)
    axes[2].set_title("seconds to 10,000 effective draws", fontsize=10)
    for axis in axes[1:]:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator())
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    for axis in axes:
        axis.grid(axis="x", alpha=0.3)
        for y in list(height.values())[::2]:
            axis.axhspan(y - 0.5, y + 0.5, color="0.95", zorder=0)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks([-i for i in range(len(posteriors))], posteriors, fontsize=9)
    axes[0].set_ylim(0.5 - len(posteriors), 0.5)
    shown = [style for method, style in STYLES.items() if any(row["method"] == method for row in rows)]
    handles = [Line2D([], [], color=c, marker=m, linestyle="none", markersize=7, label=name) for name, c, m in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(shown), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
