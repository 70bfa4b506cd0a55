"""Who may depend on whom: masks, adjacencies, passes and blocks, and angles."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_flows import FlowDistribution, flows
from numpyro_flows.bijections import (
    AffineUnivariate,
    Autoregressive,
    BlockAutoregressive,
    Coupling,
    StandardizedCondition,
    Sylvester,
    masked_autoregressive,
)
from numpyro_flows.networks import CausalTransformer, MaskedMLP
from tests.bijections.common import drawn

KEY = jax.random.key(0)


def dependence(construct, x, function=lambda module: module, scale: float = 0.5) -> np.ndarray:
    """`[i, j]`: whether output `i` depends on input `j`, of a module of random parameters: it moves, or it does not."""
    places = np.concatenate([x[None], x + np.eye(x.size)])
    outputs = eqx.filter_jit(lambda module, places: jax.vmap(function(module))(places))
    first, *moved = np.asarray(outputs(drawn(construct, scale), places))
    return (np.stack(moved) != first).T


def transform(bijection):
    return bijection.transform


def random_adjacency(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).random((rows, columns)) < 0.4


def test_a_masked_network_depends_on_what_it_may_and_on_all_of_that():
    adjacency = random_adjacency(6, 5)
    seen = dependence(lambda: MaskedMLP(KEY, adjacency, 2, (32, 32), cond_dim=3), np.ones(8))
    expected = np.repeat(np.concatenate([adjacency, np.ones((6, 3), bool)], axis=1), 2, axis=0)
    np.testing.assert_array_equal(seen, expected)


def test_a_network_narrower_than_its_outputs_stays_within_its_mask():
    seen = dependence(lambda: MaskedMLP(KEY, np.tri(12, k=-1), 1, (4,)), np.ones(12))
    assert not (seen & ~np.tri(12, k=-1, dtype=bool)).any()
    assert seen.any(1)[-4:].all()


@pytest.mark.parametrize(
    "block_size", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(5, marks=pytest.mark.slow)]
)
def test_a_transformer_sees_the_blocks_before_only(block_size):
    dim, options = 5, {"width": 8, "num_heads": 2, "num_blocks": 2, "cond_dim": 2}
    seen = dependence(
        lambda: CausalTransformer(KEY, dim, 1, block_size=block_size, **options), np.linspace(-1.0, 1.0, dim + 2)
    )
    block = np.arange(dim) // block_size
    np.testing.assert_array_equal(seen[:, :dim], block[:, None] > block[None])
    assert seen[:, dim:].all()


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="expected a width that 3 heads divide, got 8"):
        CausalTransformer(KEY, 4, 1, block_size=1, width=8, num_heads=3, num_blocks=1)


@pytest.mark.parametrize(
    ("layer", "order"),
    [
        (lambda: BlockAutoregressive(KEY, 5), 1),
        (lambda: Sylvester(KEY, 5), -1),
    ],
    ids=["block", "sylvester"],
)
def test_autoregressive_layers_are_triangular(layer, order):
    seen = dependence(layer, np.linspace(-1.0, 1.0, 5), transform)
    np.testing.assert_array_equal(seen[::order, ::order], np.tri(5, dtype=bool))


@pytest.mark.parametrize(
    "passes", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow), 5]
)
def test_passes_are_groups_that_depend_on_the_groups_before(passes):
    """As many passes as coordinates are the triangle."""

    def layer():
        return masked_autoregressive(KEY, 5, AffineUnivariate(), hidden=(16,), passes=passes)

    seen = dependence(layer, np.linspace(-1.0, 1.0, 5), transform)
    group = np.arange(5) * passes // 5
    np.testing.assert_array_equal(seen, (group[:, None] > group[None]) | np.eye(5, dtype=bool))
    assert eqx.filter_eval_shape(layer).depth == passes


@pytest.mark.parametrize("recipe", [flows.realnvp, pytest.param(flows.iaf, marks=pytest.mark.slow), flows.maf])
def test_blocks_that_may_not_depend_on_each_other_stay_independent(recipe):
    """In whatever order the layers of a stack come, and however many there are."""
    adjacency = np.kron(np.eye(2), np.ones((3, 3))).astype(bool)

    def flow():
        return recipe(KEY, 6, num_layers=8, hidden=(16, 16), adjacency=adjacency)

    seen = dependence(flow, np.linspace(-1.0, 1.0, 6), transform, scale=0.3)
    np.testing.assert_array_equal(seen, adjacency)


def test_a_coupling_keeps_to_its_adjacency():
    adjacency = random_adjacency(6, 6)
    seen = dependence(
        lambda: Coupling(KEY, 6, AffineUnivariate(), adjacency=adjacency), np.linspace(-1.0, 1.0, 6), transform
    )
    np.testing.assert_array_equal(seen[3:, :3], adjacency[3:, :3])


def test_sweeps_are_exact_after_as_many_as_the_longest_chain(x64):
    """A chain of maps that grow one from another: each sweep puts one more coordinate right, and no fewer do."""
    dim = 12
    x = np.random.default_rng(0).normal(size=dim)

    @eqx.filter_jit
    def back(layer):
        y, too_few = layer.transform(x), Autoregressive(layer.conditioner, layer.univariate, dim, depth=2)
        return layer.inverse(y), too_few.inverse(y)

    layer = drawn(lambda: masked_autoregressive(KEY, dim, AffineUnivariate(), hidden=(16,)), scale=1.5)
    after_all, after_two = back(layer)
    np.testing.assert_allclose(after_all, x, rtol=1e-6, atol=1e-6)
    assert np.abs(after_two - x).max() > 1e-3


def test_passes_make_the_slow_direction_short(x64):
    """Two passes are two sweeps at most, and the inverse is still exact."""
    x = np.linspace(-1.0, 1.0, 8)
    layer = drawn(lambda: masked_autoregressive(KEY, 8, AffineUnivariate(), hidden=(16,), passes=2), scale=0.5)
    assert layer.depth == 2
    back = eqx.filter_jit(lambda layer: layer.inverse(layer.transform(x)))
    np.testing.assert_allclose(back(layer), x, atol=1e-10)


def flow_of_angles(recipe):
    return drawn(lambda: recipe(KEY, 2, circular=True, num_layers=2, hidden=(16,)), scale=0.2)


def density_of_angles(flow) -> FlowDistribution:
    return FlowDistribution(flow, dist.Uniform(-math.pi, math.pi).expand([2]).to_event(1))


@pytest.mark.parametrize("recipe", [flows.nsf_coupling, flows.nsf_autoregressive])
def test_flows_of_angles(recipe):
    """The density on the torus integrates to 1 and has no seam."""
    num = 128
    grid = (np.arange(num) + 0.5) / num * 2 * math.pi - math.pi
    inside = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    edges = [np.stack([np.full(num, sign * math.pi * (1 - 1e-6)), grid], axis=-1) for sign in (1, -1)]
    points = np.concatenate([inside, *edges, *(edge[:, ::-1] for edge in edges)])
    log_prob = eqx.filter_jit(lambda flow, points: density_of_angles(flow).log_prob(points))
    log_density = np.asarray(log_prob(flow_of_angles(recipe), points.astype("float32")), np.float64)
    values = np.exp(log_density[: num**2])
    assert abs(values.sum() * (2 * math.pi / num) ** 2 - 1) < 1e-3
    assert values.std() > 0.1 * values.mean()
    for edge, other in np.split(log_density[num**2 :].reshape(4, num), 2):
        np.testing.assert_allclose(edge, other, atol=1e-3)


@pytest.mark.parametrize("recipe", [flows.nsf_coupling, pytest.param(flows.nsf_autoregressive, marks=pytest.mark.slow)])
def test_draws_of_angles_are_angles(recipe):
    draw = eqx.filter_jit(lambda flow, key: density_of_angles(flow).sample(key, (100,)))
    assert (np.abs(draw(flow_of_angles(recipe), KEY)) <= math.pi).all()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: masked_autoregressive(KEY, 0, AffineUnivariate()), r"dim expected at least 1, got 0"),
        (lambda: masked_autoregressive(KEY, 3, AffineUnivariate(), passes=4), "passes expected at most dim=3, got 4"),
        (lambda: masked_autoregressive(KEY, 3, AffineUnivariate(), passes=0), "passes expected at least 1, got 0"),
        (
            lambda: masked_autoregressive(KEY, 3, AffineUnivariate(), adjacency=np.ones((3, 2))),
            r"adjacency expected the shape \(3, 3\), got \(3, 2\)",
        ),
        (lambda: Coupling(KEY, 3, AffineUnivariate(), adjacency=np.ones(3)), r"shape \(3, 3\), got \(3,\)"),
        (lambda: flows.realnvp(KEY, 3, adjacency=np.ones((2, 2))), r"shape \(3, 3\), got \(2, 2\)"),
        (lambda: flows.realnvp(KEY, 3, order="forward"), r"order expected one of \['random', .*\], got 'forward'"),  # pyright: ignore[reportArgumentType]
        (lambda: flows.naf(KEY, 3, fast="both"), r"fast expected one of \['density', 'sampling'\], got 'both'"),  # pyright: ignore[reportArgumentType]
        (lambda: flows.naf(KEY, 3, num_units=0), "num_units expected at least 1, got 0"),
        (lambda: flows.bernstein(KEY, 3, degree=0), "degree expected from 1 to 50, got 0"),
        (lambda: flows.bernstein(KEY, 3, bound=-1.0), r"bound expected a number in \(0, inf\), got -1"),
        (lambda: flows.bnaf(KEY, 3, hidden=()), "hidden expected at least one width, got none"),
        (lambda: flows.sylvester(KEY, -1), "dim expected at least 1, got -1"),
        (lambda: Sylvester(KEY, -2), "dim expected at least 1, got -2"),
        (lambda: flows.tarflow(KEY, 3, block_size=4), "block_size expected from 1 to 3, got 4"),
        (lambda: flows.tarflow(KEY, 3, width=9), r"a width that 4 heads divide, got 9"),
        (
            lambda: flows.multiscale(KEY, 6, num_levels=3),
            r"dim expected a multiple of 2 \*\* \(num_levels - 1\) = 4, got 6",
        ),
        (lambda: flows.multiscale(KEY, 1), r"\(num_levels - 1\) = 2, got 1"),
        (lambda: flows.multiscale(KEY, 4, num_levels=0), "num_levels expected at least 1, got 0"),
        (lambda: flows.planar(KEY, 2, num_layers=0), "num_layers expected at least 1, got 0"),
    ],
)
def test_impossible_structures_are_errors(construct, message):
    with pytest.raises(ValueError, match=message):
        eqx.filter_eval_shape(construct)


def test_a_standardized_condition():
    inner = drawn(lambda: Coupling(KEY, 3, AffineUnivariate(), cond_dim=2, hidden=(16,)), scale=0.3)
    outer = StandardizedCondition(inner, jnp.asarray([1.0, -1.0]), jnp.asarray([2.0, 0.5]))

    @eqx.filter_jit
    def both_ways(bijection, condition):
        x = np.arange(3.0)
        return bijection.transform_and_log_det(x, condition), bijection.inverse_and_log_det(x, condition)

    got, expected = both_ways(outer, np.array([5.0, 0.0])), both_ways(inner, np.array([2.0, 2.0]))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-6)
