"""The table of layers: its rows add up, its statistics are those of the samples, and it sees through what flows are."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kurtosis, skew

from numpyro_flows import FlowDistribution, flows
from numpyro_flows.bijections import (
    Affine,
    AffineUnivariate,
    Chain,
    Coupling,
    Frozen,
    Identity,
    Invert,
    StandardizedCondition,
)
from numpyro_flows.gaussianization import fit_rbig, inspect_layers
from tests.bijections.common import made

KEY = jax.random.key(0)
DATA = np.random.default_rng(0).normal(size=(400, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
SMALL = {"num_layers": 2, "hidden": (8,)}
FLOWS = {
    "realnvp": lambda: flows.realnvp(KEY, 3, **SMALL),
    "glow": lambda: flows.glow(KEY, 3, **SMALL),
    "gaussianization": lambda: flows.gaussianization(KEY, 3, num_layers=2),
    "frozen within a chain": lambda: Chain([Frozen(flows.maf(KEY, 3, **SMALL)), flows.nice(KEY, 3, **SMALL)]),
    "inverted": lambda: Invert(flows.iaf(KEY, 3, **SMALL)),
}


@cache
def moved(name):
    with jax.enable_x64(True):
        return made(FLOWS[name], scale=0.05)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "realnvp")) for name in FLOWS])
def test_rows_add_up_to_the_flow(name, x64):
    flow = moved(name)
    table = inspect_layers(flow, DATA)
    z, log_det = eqx.filter_jit(lambda flow, x: jax.vmap(flow.inverse_and_log_det)(x))(flow, jnp.asarray(DATA))
    np.testing.assert_allclose(table.log_det.sum(), np.mean(log_det), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(table.samples[-1], z, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(table.samples[0], DATA)


def test_statistics_are_those_of_the_samples(x64):
    table = inspect_layers(moved("realnvp"), DATA)
    for i, x in enumerate(table.samples):
        np.testing.assert_allclose(table.correlation[i], np.corrcoef(x.T), atol=1e-12)
        np.testing.assert_allclose(table.skew[i], skew(x), atol=1e-12)
        np.testing.assert_allclose(table.kurtosis[i], kurtosis(x), atol=1e-12)


@pytest.mark.slow
def test_push_and_pull_of_rotation_and_marginals(x64):
    """A rotation leaves the divergence from a Gaussian alone, and the marginal map removes what is in the marginals."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2_000, 1))
    data = np.concatenate([x, x**2 + 0.5 * rng.normal(size=x.shape)], axis=1)
    fit = fit_rbig(KEY, data, marginal="spline")
    table = inspect_layers(fit.bijection, data)
    assert table.parts[:4] == ["data", "Affine", "Householder", "Elementwise"]
    assert table.layers[:4] == [0, 1, 2, 2]
    assert table.layers[-1] == 1 + fit.layers
    negentropy = table.negentropy.sum(1)
    rotated, mapped = np.array(table.parts) == "Householder", np.array(table.parts) == "Elementwise"
    assert (table.log_det[rotated] == 0).all()
    # marginals are fitted to within a few parameters' worth
    assert negentropy[mapped].max() < 48 / (2 * 2_000) + 0.01
    assert negentropy[rotated].max() > 0.2
    np.testing.assert_allclose(table.total_correlation[:3], table.total_correlation[0], atol=0.02)
    assert table.total_correlation[0] > 0.5
    assert abs(table.total_correlation[-1]) < 0.1


def test_sees_a_flow_distribution_with_its_condition(x64):
    flow = made(lambda: flows.realnvp(KEY, 3, cond_dim=2, **SMALL), scale=0.05)
    condition = np.array([1.0, -1.0])
    own = inspect_layers(FlowDistribution(flow, condition=condition), DATA)
    given = inspect_layers(flow, DATA, np.broadcast_to(condition, (400, 2)))
    np.testing.assert_allclose(own.samples, given.samples, rtol=1e-12)


def test_looks_through_what_standardises_inverts_and_holds_fixed(x64):
    affine = Affine(np.ones(3), 2.0)
    coupling = made(lambda: Coupling(KEY, 3, AffineUnivariate(), cond_dim=2), scale=0.05)
    chain = Chain([coupling, Invert(Chain([affine, Frozen(Invert(affine)), Identity((3,))]))])
    flow = StandardizedCondition(chain, np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    condition = np.broadcast_to([0.5, -0.5], (400, 2))
    table = inspect_layers(flow, DATA, condition)
    assert table.parts == ["data", "Affine", "Affine", "Identity", "Coupling"]
    z, log_det = jax.vmap(flow.inverse_and_log_det)(DATA, condition)
    np.testing.assert_allclose(table.samples[-1], z, rtol=1e-12)
    np.testing.assert_allclose(table.log_det.sum(), log_det.mean(), rtol=1e-12)


def test_table_and_picture(tmp_path, x64):
    table = inspect_layers(moved("realnvp"), DATA)
    frame = table.table()
    assert list(frame["part"]) == table.parts
    np.testing.assert_allclose(frame["negentropy"], table.negentropy.sum(1))
    figure = table.plot(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 0
    assert len(figure.axes) == len(table.parts) + 3
    assert len(inspect_layers(Affine(np.zeros(1)), DATA[:, :1]).plot().axes) == 2 + 3


@pytest.mark.parametrize("data", [np.ones((20, 2)), np.ones((15, 3)), np.ones(3)])
def test_errors(data):
    with pytest.raises(ValueError, match=r"expected data of shape \(num, \*\(3,\)\) with num >= 16, got \("):
        inspect_layers(Affine(np.zeros(3)), data)
