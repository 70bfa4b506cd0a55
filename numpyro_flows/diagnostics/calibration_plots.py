"""Pictures of calibration: differences of ECDFs in their bands, and posterior means over true values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from numpyro_flows.diagnostics.ranks import band
from numpyro_flows.picture import Picture

_COLUMNS = 4  # of panels
_SIZE = 2.3  # inches of a panel
_GOOD, _BAD = "#0072B2", "#D55E00"  # of Okabe and Ito: told apart with any colour vision
_STYLE: dict[str, Any] = {"fontsize": 9}


def plot_ecdf_differences(
    ranks: Mapping[str, Float[np.ndarray, " num"]], verdicts: Mapping[Any, str], error: float
) -> Picture:
    """A panel for each of the named ranks, with the band that it leaves by chance with probability `error`."""
    limits = band(len(next(iter(ranks.values()))), 1 - error)
    points = np.concatenate([[0.0], limits.points, [1.0]])
    figure, panels = _panels(list(ranks), sharey=True)
    for name, panel in zip(ranks, panels):
        wrong = verdicts[name] != "calibrated"
        lower, upper = (np.concatenate([[0.0], edge - limits.points, [0.0]]) for edge in (limits.lower, limits.upper))
        panel.fill_between(points, lower, upper, color="0.88", linewidth=0)
        panel.axhline(0.0, color="0.6", linewidth=0.8)
        difference = np.concatenate([[0.0], limits.ecdf(ranks[name]) - limits.points, [0.0]])
        panel.plot(points, difference, color=_BAD if wrong else _GOOD, linewidth=1.2)
        panel.set_title(f"{name}\n{verdicts[name]}", **_STYLE, color=_BAD if wrong else "black")
        panel.set_xticks([0, 0.5, 1])
    figure.supxlabel("normalised rank of the true value", **_STYLE)
    figure.supylabel("ECDF - uniform", **_STYLE)
    return figure


def plot_recovery(recovery: pd.DataFrame, names: Sequence[str]) -> Picture:
    """A panel for each scalar; intervals without the true value have another colour."""
    figure, panels = _panels(names, sharey=False)
    for name, panel in zip(names, panels):
        table = recovery.xs(name, level="scalar")
        missed = (table["true"] < table["lower"]) | (table["true"] > table["upper"])
        for some, colour in ((table[~missed], _GOOD), (table[missed], _BAD)):
            panel.vlines(some["true"], some["lower"], some["upper"], color=colour, linewidth=0.5, alpha=0.3)
            panel.plot(some["true"], some["mean"], ".", color=colour, markersize=3)
        ends = [table["true"].min(), table["true"].max()]
        panel.plot(ends, ends, color="black", linewidth=0.8)
        panel.set_title(f"{name}: {1 - missed.mean():.0%} inside", **_STYLE)
    figure.supxlabel("true value", **_STYLE)
    figure.supylabel("posterior mean, central 95% interval", **_STYLE)
    return figure


def _panels(names: Sequence[Any], *, sharey: bool) -> tuple[Picture, list[Axes]]:
    columns = min(len(names), _COLUMNS)
    rows = -(-len(names) // columns)
    figure = Picture(figsize=(max(_SIZE * columns, 3.2), _SIZE * rows + 0.3), layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, sharey=sharey, squeeze=False)).tolist()
    for panel in panels:
        panel.tick_params(labelsize=8)
        panel.set_visible(False)
    for panel in panels[: len(names)]:
        panel.set_visible(True)
    return figure, panels
