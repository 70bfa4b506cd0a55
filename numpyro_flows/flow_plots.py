"""Plots of continuous flows, by matplotlib: trajectories from base to data, densities on the way, and divergences.

Each is a figure of a column's width; save it by its `savefig`. The flow may be a distribution or a bijection that
contains one continuous flow, such as the result of `fit_density`: its whitening comes after the flow, and plots are on
the data's scale. If a distribution has a constrained support, plots show its real vectors.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from numpyro_flows.arguments import require_counts, require_key
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.bijections.compose import layers_of
from numpyro_flows.bijections.composition import Part
from numpyro_flows.bijections.embedded import layout_of
from numpyro_flows.continuous import ContinuousFlow, Trajectory
from numpyro_flows.continuous.training_form import continuous_flows
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.picture import Picture

_WIDTH = 3.4  # inches of a column
_STYLE: dict[Any, Any] = {"font.size": 8, "axes.titlesize": 8, "axes.linewidth": 0.6, "lines.linewidth": 0.6}
_BASE, _DATA = "#0072B2", "#D55E00"  # of Okabe and Ito: told apart with any colour vision
_TIME_COLORS, _DENSITY_COLORS = "viridis", "cividis"
_FRAME = 500  # draws that set the limits of a picture of densities
_INSIDE = 0.99  # of them, by each coordinate,
_MARGIN = 0.15  # and some room around, as a share of their range


def plot_trajectories(
    flow: FlowDistribution | AbstractBijection,
    rng_key: PRNGKeyArray,
    *,
    condition: ArrayLike | None = None,
    num_paths: int = 100,
    num_times: int = 101,
) -> Figure:
    """Draws of the base on their trajectories to the data, coloured by time.

    The plot shows the first two coordinates, or the only coordinate over time.

    Args:
        flow: a distribution or bijection with one continuous flow.
        rng_key: random key of the draws.
        condition: one condition; that of the distribution by default.
        num_paths: number of draws.
        num_times: number of points on each trajectory.

    Raises:
        ValueError: if there is not exactly one continuous flow, at the top or in chains, or not exactly one condition.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows import flow_plots, flows
        >>> figure = flow_plots.plot_trajectories(flows.ffjord(jax.random.key(0), 2), jax.random.key(1), num_paths=10)
        >>> figure.axes[0].get_xlabel()
        'coordinate 1'
    """
    found = _trajectories(_parts(flow, condition), rng_key, num_paths, num_times)
    times, x = np.asarray(found.times[0]), np.asarray(found.x)
    if x.shape[-1] == 1:
        x = np.concatenate([np.broadcast_to(times[:, None], x.shape), x], axis=-1)
        labels = "time", "coordinate 1"
    else:
        labels = "coordinate 1", "coordinate 2"
    with mpl.rc_context(_STYLE):
        figure = Picture(figsize=(_WIDTH, 0.8 * _WIDTH), layout="constrained")
        axes = figure.add_subplot(xlabel=labels[0], ylabel=labels[1])
        pieces = np.stack([x[:, :-1, :2], x[:, 1:, :2]], axis=2).reshape(-1, 2, 2)
        lines = LineCollection(list(pieces), array=np.tile(times[:-1], len(x)), cmap=_TIME_COLORS, alpha=0.7)
        lines.set_clim(times.min(), times.max())
        axes.add_collection(lines)
        for k, color, marker, label in ((0, _BASE, "o", "base"), (-1, _DATA, "^", "data")):
            axes.scatter(*x[:, k, :2].T, s=7, color=color, marker=marker, linewidths=0, zorder=3, label=label)
        axes.autoscale_view()
        figure.colorbar(lines, label="time", alpha=1.0)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def plot_density_path(
    flow: FlowDistribution | AbstractBijection,
    rng_key: PRNGKeyArray,
    *,
    condition: ArrayLike | None = None,
    shares: Sequence[float] = (0.0, 0.5, 1.0),
    num_cells: int = 80,
) -> Figure:
    """The density of a flow of two coordinates at several times between base and data.

    Args:
        flow: a distribution or bijection with one continuous flow.
        rng_key: random key of draws that set the limits of the plot.
        condition: one condition; that of the distribution by default.
        shares: times, as shares of the interval from the base, 0, to the data, 1.
        num_cells: number of cells of the grid, along each coordinate.

    Raises:
        ValueError: as `plot_trajectories`. Also if the flow does not have two coordinates, or a share is not in [0, 1].

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from diffrax import ConstantStepSize, Euler
        >>> from numpyro_flows import flow_plots
        >>> from numpyro_flows.continuous import ContinuousFlow, LinearField
        >>> flow = ContinuousFlow(LinearField(2), solver=Euler(), stepsize_controller=ConstantStepSize(), num_steps=4)
        >>> figure = flow_plots.plot_density_path(flow, jax.random.key(0), num_cells=10)
        >>> figure.axes[1].get_title()
        'time 0.5'
    """
    parts = _parts(flow, condition)
    if parts.flow.shape != (2,):
        raise ValueError(f"a picture of densities expected a flow of 2 coordinates, got {parts.flow.shape[0]}")
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares expected numbers in [0, 1], got {shares}")
    start, end = parts.flow.interval
    ways = np.asarray(_trajectories(parts, rng_key, _FRAME, 2).x).reshape(-1, 2)
    low, high = np.quantile(ways, [(1 - _INSIDE) / 2, (1 + _INSIDE) / 2], axis=0)
    low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    sides = [np.linspace(*ends, num_cells) for ends in zip(low, high)]
    grid = jnp.asarray(np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2), jnp.result_type(float))
    log_prob = jax.jit(jax.vmap(parts.log_prob_at, in_axes=(None, 0)))
    times = [start + share * (end - start) for share in shares]
    densities = [np.exp(np.asarray(log_prob(time, grid), float)).reshape(num_cells, num_cells) for time in times]
    with mpl.rc_context(_STYLE):
        height = 0.5 * _WIDTH if len(times) > 1 else 0.8 * _WIDTH
        figure = Picture(figsize=(_WIDTH, height), layout="constrained")
        panels = figure.subplots(1, len(times), sharex=True, sharey=True, squeeze=False)[0]
        # a root, because the base is flat compared with the data
        norm = PowerNorm(0.5, vmin=0.0, vmax=max(density.max() for density in densities))
        for panel, time, density in zip(panels, times, densities):
            panel.pcolormesh(*sides, density, cmap=_DENSITY_COLORS, norm=norm, shading="gouraud", rasterized=True)
            panel.set(title=f"time {time:.2g}", aspect="auto")
            panel.locator_params(nbins=4)
        figure.supxlabel("coordinate 1", fontsize=_STYLE["font.size"])
        panels[0].set_ylabel("coordinate 2")
        figure.colorbar(ScalarMappable(norm, _DENSITY_COLORS), ax=list(panels), label="density (1 / area)")
    return figure


def plot_divergence(
    flow: FlowDistribution | AbstractBijection,
    rng_key: PRNGKeyArray,
    *,
    condition: ArrayLike | None = None,
    num_paths: int = 100,
    num_times: int = 101,
) -> Figure:
    """The divergence along trajectories, and its integral, the log-determinant: they show where a flow expands space.

    Lines are draws of the base, the thick one their median. Args and errors are those of `plot_trajectories`.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows import flow_plots, flows
        >>> figure = flow_plots.plot_divergence(flows.ffjord(jax.random.key(0), 2), jax.random.key(1), num_paths=10)
        >>> figure.axes[1].get_xlabel()
        'time'
    """
    found = _trajectories(_parts(flow, condition), rng_key, num_paths, num_times)
    times = np.asarray(found.times[0])
    with mpl.rc_context(_STYLE):
        figure = Picture(figsize=(_WIDTH, _WIDTH), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        _with_median(upper, times, np.asarray(found.divergence), "divergence\n(nats per unit of time)")
        _with_median(lower, times, np.asarray(found.log_det), "log-determinant\n(nats)")
        lower.set_xlabel("time")
        figure.align_ylabels()
        figure.legend(*upper.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def _with_median(
    axes: Axes, times: Float[np.ndarray, " times"], values: Float[np.ndarray, "n times"], name: str
) -> None:
    lines = axes.plot(times, values.T, color=_BASE, alpha=0.25)
    lines[0].set_label("one draw")
    axes.plot(times, np.median(values, axis=0), color=_DATA, linewidth=1.8, label="median")
    axes.axhline(0.0, color="0.4", linewidth=0.6, zorder=0)
    axes.set_ylabel(name)


class _Parts(NamedTuple):
    """A continuous flow, and the bijections before it and after it."""

    distribution: FlowDistribution
    before: list[Part]
    flow: ContinuousFlow
    condition: Array | None
    after: list[Part]

    def trajectory(self, x: Float[Array, " dim"], num_times: int) -> Trajectory:
        for part in self.before:
            x, _ = part.move(x, to_base=False)
        found = self.flow.trajectory(x, self.condition, num_times=num_times)

        def moved(x: Float[Array, " dim"]) -> Float[Array, " dim"]:
            for part in self.after:
                x, _ = part.move(x, to_base=False)
            return x

        return found._replace(x=jax.vmap(moved)(found.x))

    def log_prob_at(self, time: Array, y: Float[Array, " dim"]) -> Array:
        """The log density of draws that were carried until `time` and then put on the data's scale."""
        total = jnp.zeros((), y.dtype)
        for part in reversed(self.after):
            y, log_det = part.move(y, to_base=True)
            total = total + log_det
        y, log_det, _ = self.flow.move(y, self.condition, (time, self.flow.interval[0]))  # pyright: ignore
        total = total + log_det
        for part in reversed(self.before):
            y, log_det = part.move(y, to_base=True)
            total = total + log_det
        return total + jnp.asarray(self.distribution.base_dist.log_prob(y))


def _parts(flow: FlowDistribution | AbstractBijection, condition: ArrayLike | None) -> _Parts:
    distribution = flow if isinstance(flow, FlowDistribution) else FlowDistribution(flow)
    if condition is not None:
        distribution = distribution.given(condition)
    bijection, told = distribution.bijection, distribution.condition
    if told is not None and (layout := layout_of(bijection)) is not None:
        told = layout.pack(told)
    got = None if told is None else told.shape
    if got != bijection.cond_shape:
        raise ValueError(f"a picture expected one condition of shape {bijection.cond_shape}, got {got}")
    parts = list(chain.from_iterable(layers_of(Part(bijection, told))))
    at = [i for i, p in enumerate(parts) if isinstance(p.bijection, ContinuousFlow) and not p.inverted]
    num = len(continuous_flows(bijection))
    if len(at) != 1 or num != 1:
        name = type(bijection).__name__
        raise ValueError(f"a picture expected one continuous flow, by itself or in a chain, got {num} in a {name}")
    (i,) = at
    flow, told, *_ = parts[i]
    assert isinstance(flow, ContinuousFlow)
    return _Parts(distribution, parts[:i], flow, told, parts[i + 1 :])


def _trajectories(parts: _Parts, rng_key: PRNGKeyArray, num_paths: int, num_times: int) -> Trajectory:
    """Trajectories of draws of the base, along a leading axis."""
    require_key(rng_key)
    require_counts(num_paths=num_paths)
    require_counts(2, num_times=num_times)
    base = jnp.asarray(parts.distribution.base_dist.sample(rng_key, (num_paths,)))
    return jax.jit(jax.vmap(lambda x: parts.trajectory(x, num_times)))(base)
