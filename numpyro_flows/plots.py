"""Plots of fits, by ArviZ on matplotlib."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import arviz_plots
import numpy as np
import xarray as xr
from arviz_base import extract, rcParams, xarray_var_iter
from arviz_base.labels import BaseLabeller
from arviz_plots.plot_collection import PlotCollection

_SAMPLE_DIMS = ("chain", "draw")


def plot_forest(trees: Mapping[str, xr.DataTree], **kwargs: Any) -> PlotCollection:
    """Means and credible intervals of named DataTrees, side by side.

    The trees have the same numbers of chains and draws. Keywords go to `arviz_plots.plot_forest`.
    """
    defaults: dict[str, Any] = {"combined": True}
    plot = arviz_plots.plot_forest(dict(trees), **(defaults | kwargs))
    plot.add_legend("model", title="")
    return plot


def plot_density(
    trees: Mapping[str, xr.DataTree],
    *,
    var_names: str | list[str] | None = None,
    filter_vars: Literal["like", "regex"] | None = None,
    coords: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> PlotCollection:
    """Marginal densities of named DataTrees in the same axes, with means and credible intervals below.

    The trees have the same numbers of chains and draws. Scalars that never change, such as the upper triangle of a
    Cholesky factor, have no density and are left out. The first three keywords select the variables, as in ArviZ; the
    others go to `arviz_plots.plot_dist`.
    """
    selected = {}
    for name, tree in trees.items():
        data = extract(tree, var_names=var_names, filter_vars=filter_vars, combined=False, keep_dataset=True)
        assert isinstance(data, xr.Dataset)
        selected[name] = data.sel(coords or {})
    changing = _without_constants(selected)
    defaults: dict[str, Any] = {
        "kind": "kde",
        "visuals": {"point_estimate_text": False},
        # two lines that coincide are both visible if one is dashed
        "aes": {"color": ["model"], "linestyle": ["model"]},
        "linestyle": ["-", "--"],
        # titles and labels of neighbours do not overlap
        "figure_kwargs": {"layout": "constrained"},
    }
    plot = arviz_plots.plot_dist(changing, **(defaults | kwargs))
    plot.add_legend("model", title="")
    plot.add_title(f"Marginal posterior densities, means and {rcParams['stats.ci_prob']:.0%} intervals")
    return plot


def save(plot: PlotCollection, path: str | os.PathLike) -> None:
    """Write a plot to a file, in the format of its ending, and close it."""
    from matplotlib import pyplot

    plot.savefig(path, bbox_inches="tight")
    pyplot.close(plot.viz["figure"].item())


def _without_constants(datasets: dict[str, xr.Dataset]) -> dict[str, xr.DataTree]:
    """If a variable has scalars that never change, its other scalars become separate variables, with ArviZ's labels."""
    label = BaseLabeller().make_label_flat
    result: dict[str, dict[str, Any]] = {name: {} for name in datasets}
    for variable in next(iter(datasets.values())).data_vars:
        constant = xr.zeros_like(next(iter(datasets.values()))[variable][0, 0], dtype=bool)
        for dataset in datasets.values():
            array = dataset[variable].astype(np.float64)
            # a spread this small next to the mean is rounding
            constant = constant | (array.std(_SAMPLE_DIMS) <= 1e-6 * np.abs(array.mean(_SAMPLE_DIMS)))
        for name, dataset in datasets.items():
            if not constant.any():
                result[name][str(variable)] = dataset[variable]
                continue
            for _, sel, isel, values in xarray_var_iter(dataset[[variable]], skip_dims=set(_SAMPLE_DIMS)):
                if not constant.isel(isel).item():
                    result[name][label(str(variable), sel, isel)] = (_SAMPLE_DIMS, np.asarray(values))
    return {name: xr.DataTree.from_dict({"posterior": xr.Dataset(arrays)}) for name, arrays in result.items()}
