"""Charts and tables of the page of benchmarks; all values come from the files in docs/benchmarks."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

FOLDER = Path(__file__).parent / "benchmarks"
# of Okabe and Ito, which colour-blind readers tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "oDs^vPX*"
WIDTH = 7.2  # inches: the site shows the picture unscaled

plt.rcParams.update({"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False})


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv", comment="#")


def source(command: str, *names: str) -> Markdown:
    """The command that wrote these files, links to them, and the machine with its versions."""
    links = ", ".join(f"[{name}.csv](benchmarks/{name}.csv)" for name in names)
    first = (FOLDER / f"{names[0]}.csv").read_text().splitlines()
    machine = "; ".join(line.lstrip("# ") for line in first if line.startswith("#"))
    return Markdown(f"`python -m benchmarks.{command}` wrote {links}. Machine: {machine}.")


def short(posteriors: pd.Series) -> pd.Series:
    """The names of models, or of data where posteriors share a model."""
    data, model = posteriors.str.split("-").str[0], posteriors.str.split("-").str[1]
    num_data = pd.Series(data).groupby(model).transform("nunique")
    return model.where(num_data == 1, data)


def digits(value: Any) -> str:
    """A number with three significant digits; whole numbers in full; nothing for NaN."""
    if isinstance(value, bool | np.bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float | np.number):
        return str(value)
    number = float(value)
    if np.isnan(number):
        return ""
    if number.is_integer():
        return f"{number:,.0f}"
    if abs(number) < 1e-4:
        return f"{number:.2e}"
    decimals = 2 - int(np.floor(np.log10(abs(number))))
    text = f"{round(number, decimals):,.{max(decimals, 0)}f}"
    return text.rstrip("0").rstrip(".") if decimals > 0 else text


def table(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> Markdown:
    """A table in Markdown; columns of numbers are aligned to the right."""
    frame = pd.DataFrame(rows)
    rule = ["---:" if pd.api.types.is_numeric_dtype(frame[name]) else "---" for name in frame]
    lines = [list(frame.columns), rule, *([digits(value) for value in row] for row in frame.itertuples(index=False))]
    return Markdown("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))


def spread(values: Any) -> dict[str, float]:
    """The median and the range, as columns of a table."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return {"median": np.median(values), "smallest": values.min(), "largest": values.max(), "values": values.size}


def geometric_mean(ratios: Any) -> float:
    return float(np.exp(np.mean(np.log(np.asarray(ratios, float)))))


def strips(
    groups: Mapping[str, Mapping[str, Any]],
    label: str,
    *,
    reference: float | Mapping[str, float] | None = None,
    log: bool = True,
    hollow: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:
    """A row for each group with all values of each series, and a bar at their median.

    Args:
        groups: values by group and series.
        label: what the values are.
        reference: a line to compare with, of all groups or of each.
        log: whether the axis is logarithmic.
        hollow: further values, drawn as empty markers.
    """
    names = list(dict.fromkeys(name for series in [*groups.values(), *(hollow or {}).values()] for name in series))
    figure, axis = plt.subplots(
        figsize=(WIDTH, 1.1 + (0.18 + 0.11 * min(len(names), 3)) * len(groups)), layout="constrained"
    )
    for row, (group, series) in enumerate(groups.items()):
        if row % 2 == 0:
            axis.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
        if isinstance(reference, Mapping):
            axis.plot([reference[group]] * 2, [row - 0.45, row + 0.45], color="black", linewidth=1, zorder=1)
        for index, name in enumerate(names):
            y = row + (index - (len(names) - 1) / 2) * 0.8 / len(names)
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            style = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 5.5}
            if name in series:
                values = np.atleast_1d(np.asarray(series[name], float))
                values = values[np.isfinite(values)]
                axis.plot(values, np.full(values.size, y), alpha=0.75, **style)
                if values.size > 2:
                    axis.plot(np.median(values), y, color=colour, marker="|", markersize=13, markeredgewidth=2)
            if hollow and name in hollow.get(group, {}):
                values = np.atleast_1d(np.asarray(hollow[group][name], float))
                axis.plot(values, np.full(values.size, y), markerfacecolor="white", **style)
    if reference is not None and not isinstance(reference, Mapping):
        axis.axvline(reference, color="black", linewidth=1, zorder=1)
    if log:
        axis.set_xscale("log")
        plain_numbers(axis)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.set(ylim=(len(groups) - 0.5, -0.5), xlabel=label)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.3)
    if len(names) > 1:
        handles = [
            Line2D([], [], color=COLOURS[i % 8], marker=MARKERS[i % 8], linestyle="none", label=name)
            for i, name in enumerate(names)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(names), 4), frameon=False)
    plt.close(figure)  # the notebook shows it once
    return figure


def plain_numbers(axis: Axes) -> None:
    """Numbers without powers on a logarithmic x-axis, also between decades if there are few."""
    low, high = axis.get_xlim()
    decades = np.log10(high / low)
    plain = FuncFormatter(lambda value, _: f"{value:,.10g}")
    axis.xaxis.set_major_formatter(plain)
    if decades < 2.5:
        between = (2, 5) if decades > 0.7 else (2, 3, 4, 5, 6, 7, 8)
        axis.xaxis.set_minor_locator(LogLocator(subs=between))
        axis.xaxis.set_minor_formatter(plain)
    else:
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlim(low, high)


def lines(x: Any, series: Mapping[str, Any], label: str, values: str, *, log: bool = False) -> Figure:
    """Series over a logarithmic x-axis."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
    for (name, y), colour, marker in zip(series.items(), COLOURS, MARKERS):
        axis.plot(x, y, color=colour, marker=marker, label=name)
    axis.set(xscale="log", yscale="log" if log else "linear", xlabel=label, ylabel=values)
    axis.set_xticks(list(x), [f"{value:,}" for value in x])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(series), frameon=False)
    plt.close(figure)
    return figure
