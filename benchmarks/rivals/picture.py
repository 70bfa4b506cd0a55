"""Gradients to 10,000 effective draws by posterior and method, as a dot chart."""

from pathlib import Path

from benchmarks.posteriordb.table import Row, number
from benchmarks.rivals.methods import STYLES
from benchmarks.rivals.report import FIGURE, trusted, wrong


def draw_picture(rows: list[Row], path: Path) -> None:
    """Posteriors by rows, methods by colour; filled markers are runs that the method trusts, crossed ones are wrong."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    from benchmarks.posteriordb.models import names

    rows = [row for row in rows if not row.get("error")]
    posteriors = [name for name in names() if any(row["posterior"] == name for row in rows)]
    size = (10, 2.2 + 0.42 * len(posteriors))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    for row in sorted(rows, key=lambda row: -list(STYLES).index(row["method"])):  # the first methods on top
        _, colour, marker = STYLES[row["method"]]
        # methods of a posterior side by side
        y = -posteriors.index(row["posterior"]) + 0.35 - 0.1 * list(STYLES).index(row["method"])
        x = number(row, FIGURE)
        face = colour if trusted(row) else "white"
        axis.plot(x, y, color=colour, marker=marker, markerfacecolor=face, markersize=6, linestyle="none")
        if trusted(row) and wrong(row):
            axis.plot(x, y, color="red", marker="x", markersize=11, linestyle="none")
    axis.set_xscale("log")
    axis.set_xlabel("gradients to 10,000 effective draws")
    axis.set_title("filled: the method trusts its run; red cross: trusted, but a mean is wrong", fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    for i in range(0, len(posteriors), 2):
        axis.axhspan(-i - 0.5, -i + 0.5, color="0.95", zorder=0)
    axis.tick_params(axis="y", length=0)
    axis.set_yticks([-i for i in range(len(posteriors))], posteriors, fontsize=9)
    axis.set_ylim(0.5 - len(posteriors), 0.5)
    shown = [style for method, style in STYLES.items() if any(row["method"] == method for row in rows)]
    handles = [Line2D([], [], color=c, marker=m, linestyle="none", markersize=7, label=name) for name, c, m in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
