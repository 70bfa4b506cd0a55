"""Pictures run for what `fit_density` makes, say what their axes are, and show what they say."""

import io
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh

from numpyro_flows import FlowDistribution, flow_plots
from numpyro_flows.bijections import Affine, Chain, Frozen, Invert, StandardizedCondition
from numpyro_flows.continuous import ContinuousFlow, LinearField
from tests.continuous.common import COARSE, KEY, linear_field, trained_field

LOC, SCALE = np.array([10.0, -3.0]), np.array([2.0, 0.5])
SPREAD = np.array([0.5, -0.25])
PLOTS = [flow_plots.plot_trajectories, flow_plots.plot_density_path, flow_plots.plot_divergence]


def linear() -> FlowDistribution:
    """What `fit_density` makes, around a flow that stretches by `exp(0.5 t)` and `exp(-0.25 t)`."""
    flow = ContinuousFlow(linear_field(np.diag(SPREAD)), **(COARSE | {"solver": diffrax.Heun(), "num_steps": 32}))
    return FlowDistribution(Chain([flow, Frozen(Affine(jnp.asarray(LOC), jnp.asarray(SCALE)))]))


def texts(figure) -> list[str]:
    labels = [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel(), axes.get_title())]
    return [text for text in (*labels, figure.get_supxlabel()) if text]


@pytest.mark.slow
def test_trajectories_are_those_of_the_flow(tmp_path):
    figure = flow_plots.plot_trajectories(linear(), KEY, num_paths=20, num_times=11)
    assert texts(figure) == ["coordinate 1", "coordinate 2", "time"]
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["base", "data"]
    axes = figure.axes[0]
    lines = next(c for c in axes.collections if isinstance(c, LineCollection))
    assert lines.get_clim() == (0.0, 1.0)
    base = np.asarray(jax.random.normal(KEY, (20, 2)))
    starts, ends = (np.asarray(c.get_offsets()) for c in axes.collections if not isinstance(c, LineCollection))
    np.testing.assert_allclose(starts, LOC + SCALE * base, rtol=1e-5)
    np.testing.assert_allclose(ends, LOC + SCALE * np.exp(SPREAD) * base, rtol=1e-4)
    assert len(lines.get_segments()) == 20 * 10
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    notebook: Any = figure
    shown = plt.imread(io.BytesIO(notebook._repr_png_()))
    assert shown.shape[1] == round(150 * figure.get_figwidth())
    assert shown.std() > 0.01


@pytest.mark.slow
def test_of_one_coordinate_trajectories_are_over_time():
    flow = ContinuousFlow(linear_field([[1.0]]), **COARSE)
    figure = flow_plots.plot_trajectories(flow, KEY, num_paths=5, num_times=11)
    assert texts(figure) == ["time", "coordinate 1", "time"]


@pytest.mark.slow
def test_densities_are_those_at_their_times():
    """Of a linear flow each is a Gaussian, whose deviations are known; it integrates to one."""
    shares = (0.0, 0.5, 1.0)
    figure = flow_plots.plot_density_path(linear(), KEY, shares=shares, num_cells=40)
    labels = {"coordinate 1", "coordinate 2", "density (1 / area)"}
    assert set(texts(figure)) == {"time 0", "time 0.5", "time 1", *labels}
    for share, axes in zip(shares, figure.axes):
        mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
        points = np.asarray(mesh.get_coordinates()).reshape(-1, 2)
        deviation = SCALE * np.exp(share * SPREAD)
        standard = (points - LOC) / deviation
        expected = np.exp(-0.5 * (standard**2).sum(1)) / (2 * np.pi * deviation.prod())
        np.testing.assert_allclose(
            np.ravel(np.asarray(mesh.get_array(), float)), expected, rtol=0, atol=1e-4 * expected.max()
        )
        assert 1e-2 < mesh.norm.vmax / expected.max() <= 100


def test_divergences_and_log_determinants_along_the_way():
    figure = flow_plots.plot_divergence(linear(), KEY, num_paths=5, num_times=11)
    assert texts(figure) == ["divergence\n(nats per unit of time)", "time", "log-determinant\n(nats)"]
    upper, lower = figure.axes
    for line in upper.lines[:6]:
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), SPREAD.sum(), rtol=1e-5)
        np.testing.assert_allclose(np.asarray(line.get_xdata(), float), np.linspace(0, 1, 11), rtol=1e-6)
    for line in lower.lines[:6]:
        np.testing.assert_allclose(
            np.asarray(line.get_ydata(), float), SPREAD.sum() * np.linspace(0, 1, 11), rtol=1e-5, atol=1e-6
        )


def conditional() -> FlowDistribution:
    """With standardised conditions, as `fit_density` has them."""
    flow = ContinuousFlow(trained_field("mlp with time beside", dim=2, cond_dim=1), **COARSE)
    inner = Chain([flow, Frozen(Affine(jnp.asarray(LOC), 2.0))])
    return FlowDistribution(StandardizedCondition(inner, jnp.ones(1), 2 * jnp.ones(1)))


@pytest.mark.slow
def test_paths_of_a_conditional_flow_end_at_its_draws():
    flow, condition = conditional(), jnp.full(1, 3.0)
    figure = flow_plots.plot_trajectories(flow, KEY, condition=condition, num_paths=5, num_times=3)
    expected = eqx.filter_jit(lambda: flow.given(condition).sample(KEY, (5,)))()
    np.testing.assert_allclose(np.asarray(figure.axes[0].collections[-1].get_offsets()), expected, rtol=1e-4)
    # a condition may as well come with the distribution
    np.testing.assert_array_equal(flow_plots._parts(flow.given(condition), None).condition, (condition - 1) / 2)


@pytest.mark.parametrize("plot", PLOTS)
def test_a_picture_is_of_one_condition(plot):
    with pytest.raises(ValueError, match=r"expected one condition of shape \(1,\), got None"):
        plot(conditional(), KEY)
    with pytest.raises(ValueError, match=r"expected one condition of shape \(1,\), got \(4, 1\)"):
        plot(conditional().given(jnp.ones((4, 1))), KEY)


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Affine(jnp.asarray(LOC), 2.0), "one continuous flow, .* got 0 in a Affine"),
        (lambda: Chain([ContinuousFlow(LinearField(2))] * 2), "one continuous flow, .* got 2 in a Chain"),
        (lambda: Invert(ContinuousFlow(LinearField(2))), "one continuous flow, .* got 1 in a Invert"),
    ],
)
def test_other_flows_are_errors(plot, make, message):
    with pytest.raises(ValueError, match=message):
        plot(make(), KEY)


@pytest.mark.parametrize(
    ("dim", "shares", "message"),
    [(3, (0.0, 1.0), "a flow of 2 coordinates, got 3"), (2, (0.5, 1.5), r"numbers in \[0, 1\]"), (2, (), "numbers in")],
)
def test_densities_that_cannot_be_drawn(dim, shares, message):
    with pytest.raises(ValueError, match=message):
        flow_plots.plot_density_path(ContinuousFlow(LinearField(dim)), KEY, shares=shares)
