"""After the initialisation from data a batch leaves every `ActNorm` with mean 0 and deviation 1."""

from functools import cache
from operator import itemgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flowjax.bijections import Affine as TheirAffine
from flowjax.bijections import Chain as TheirChain

from numpyro_flows.bijections import (
    Affine,
    AffineUnivariate,
    Chain,
    Coupling,
    Frozen,
    Invert,
    Permutation,
    Reshape,
    Scan,
    StandardizedCondition,
)
from numpyro_flows.bijections.actnorm import ActNorm
from numpyro_flows.bijections.initialization import initialize_from_data
from numpyro_flows.bijections.linear import Householder
from numpyro_flows.bijections.multiscale import Multiscale
from numpyro_flows.bijections.partial import Partial
from tests.bijections.cases import COND_DIM
from tests.bijections.common import made, single_is_slow

NUM, DIM, NUM_LAYERS = 200, 4, 3
KEY = jax.random.PRNGKey(0)


def data(dim: int = DIM):
    """Skewed, correlated, in different units, far from 0; and conditions that it depends on."""
    rng = np.random.default_rng(0)
    condition = rng.normal(size=(NUM, COND_DIM))
    y = rng.gamma(2.0, size=(NUM, dim)) @ rng.normal(size=(dim, dim)) + condition[:, :1]
    return np.geomspace(1e-2, 1e3, dim) * (y + 3.0), condition


def layer(key, cond_dim=None, dim=DIM) -> Chain:
    coupling = Coupling(key, dim, AffineUnivariate(), cond_dim=cond_dim, hidden=(4,))
    return Chain([coupling, Householder(key, dim), ActNorm(dim), Permutation(jnp.arange(dim)[::-1])])


@cache
def stack(dtype, cond_dim=None) -> Scan:
    """Layers that are not the identity; `dtype` is that of the test."""
    make = eqx.filter_vmap(lambda key: layer(key, cond_dim))
    return made(lambda: Scan(make(jax.random.split(KEY, NUM_LAYERS))), scale=0.3)


def unstacked(scan: Scan) -> list[Chain]:
    arrays, static = eqx.partition(jax.tree.map(np.asarray, scan.layers), eqx.is_array)
    return [eqx.combine(jax.tree.map(itemgetter(i), arrays), static) for i in range(NUM_LAYERS)]


@eqx.filter_jit
def ways_to_base(bijections, y, condition=None):
    """What leaves each of the bijections, which a batch goes through one after the other, on the way to the base."""
    batches = []
    for bijection in bijections:
        y = jax.vmap(bijection.inverse)(y, condition)
        batches.append(y)
    return batches


def to_base(bijection, y):
    return ways_to_base([bijection], y)[0]


def check_each_actnorm(bijections, y, condition=None, tolerance=1e-12):
    """What leaves each `ActNorm`, as it is or inverted, is standard; and what leaves the last bijection."""
    batches = ways_to_base(bijections, y, condition)
    is_actnorm = [isinstance(getattr(bijection, "bijection", bijection), ActNorm) for bijection in bijections]
    assert sum(is_actnorm) == 1
    assert_standard(batches[is_actnorm.index(True)], tolerance)
    return np.asarray(batches[-1])


def assert_standard(batch, tolerance):
    """`tolerance`: what rounding makes of values some deviations from 0, which layers amplify by a few times."""
    batch = np.float64(batch)
    np.testing.assert_allclose(batch.mean(0), 0.0, atol=tolerance)
    np.testing.assert_allclose(batch.std(0), 1.0, atol=tolerance)


@single_is_slow
def test_every_layer_of_a_stack_standardizes(dtype):
    y, condition = data()
    flow = Chain([stack(dtype, COND_DIM), ActNorm(DIM)])
    got = initialize_from_data(flow, y, condition)

    assert jax.tree.structure(got) == jax.tree.structure(flow)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(got)] == [(a.shape, a.dtype) for a in jax.tree.leaves(flow)]
    scan, actnorm = got.bijections
    assert isinstance(scan, Scan)
    layers = unstacked(scan)
    tolerance = 1e3 * np.finfo(dtype).eps
    y = to_base(actnorm, y)
    assert_standard(y, tolerance)
    for chain in reversed(layers):
        y = check_each_actnorm(chain.bijections[::-1], y, condition, tolerance)


@pytest.mark.unchecked  # one is FlowJAX's
def test_all_but_actnorm_stays(x64):
    inner: Any = ActNorm(DIM)
    others: list[Any] = [Affine(jnp.ones(DIM), 2.0), Frozen(ActNorm(DIM)), TheirChain([inner])]
    flow = Chain([stack(np.dtype("float64")), *others, ActNorm(DIM)])
    got = initialize_from_data(flow, data()[0])

    def without_actnorm(flow):
        scan, *others, last = flow.bijections
        coupling, householder, actnorm, permutation = scan.layers.bijections
        return [coupling, householder, permutation, *others], [actnorm, last]

    (same, moved), (same_before, moved_before) = without_actnorm(got), without_actnorm(flow)
    for after, before in zip(jax.tree.leaves(same), jax.tree.leaves(same_before)):
        np.testing.assert_array_equal(after, before)
    for after, before in zip(jax.tree.leaves(moved), jax.tree.leaves(moved_before)):
        assert (np.abs(np.asarray(after) - np.asarray(before)) > 1e-3).all()


def test_an_inverted_stack_standardizes_the_other_way(x64):
    y, _ = data()
    y = (y - y.mean(0)) / y.std(0) * 3.0 + 5.0
    scan = stack(np.dtype("float64"))
    got: Any = initialize_from_data(Invert(Chain([scan, Invert(scan)])), y)
    forward, inverted = got.bijection.bijections
    for chain in unstacked(forward):
        y = check_each_actnorm([Invert(bijection) for bijection in chain.bijections], y)
    for chain in reversed(unstacked(inverted.bijection)):
        y = check_each_actnorm(chain.bijections[::-1], y)


@cache
def levels():
    return made(lambda: [layer(key, dim=dim) for key, dim in zip(jax.random.split(KEY), (4, 2))], scale=0.3)


@pytest.mark.parametrize("direction", [lambda bijection: bijection, Invert])
def test_each_level_standardizes_what_reaches_it(direction, x64):
    y, _ = data()
    got = initialize_from_data(direction(Multiscale([direction(level) for level in levels()])), y)
    first, second = (got if direction is not Invert else got.bijection).levels
    steps = [(1, first), (2, second)] if direction is not Invert else [(2, second.bijection), (1, first.bijection)]
    for stride, chain in steps:
        y[:, ::stride] = check_each_actnorm(chain.bijections[::-1], y[:, ::stride])


def test_the_batch_goes_through_all_compositions(x64):
    """Each on its own coordinates, with the condition and in the shape that it sees."""
    y, condition = data()
    inner = Reshape(Partial(ActNorm(2), jnp.array([3, 1]), DIM), (2, 2))
    chain = Chain([Reshape(inner, (DIM,)), made(lambda: layer(KEY, COND_DIM))])
    loc = np.array([1.0, 2.0])
    flow = StandardizedCondition(chain, loc, 3.0)
    got: Any = initialize_from_data(flow, y, condition)
    assert jax.tree.structure(got) == jax.tree.structure(flow)
    first, last = got.bijection.bijections
    x = check_each_actnorm(last.bijections[::-1], y, (condition - loc) / 3.0)
    actnorm = first.bijection.bijection.bijection
    np.testing.assert_allclose(actnorm.loc, x.mean(0)[[3, 1]], atol=1e-12)


@pytest.mark.unchecked
def test_bijections_of_flowjax_pass_the_batch_on(x64):
    y, _ = data()
    loc, scale = np.arange(4.0), np.array([0.5, 1.0, 2.0, 3.0])
    theirs: Any = TheirAffine(loc, scale)
    got: Any = initialize_from_data(Chain([ActNorm(DIM), theirs]), y)
    assert_standard(to_base(got, y), 1e-13)
    np.testing.assert_allclose(got.bijections[0].loc, (y.mean(0) - loc) / scale, rtol=1e-12)


@single_is_slow
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6])
@pytest.mark.parametrize("direction", [lambda bijection: bijection, Invert])
def test_a_constant_column_keeps_its_scale(direction, constant, dtype):
    y, _ = data()
    y[:, 1] = constant
    got = initialize_from_data(direction(ActNorm(DIM)), y)
    actnorm = got if direction is not Invert else got.bijection
    assert actnorm.log_scale[1] == 0
    x = to_base(got, y)
    np.testing.assert_allclose(x[:, 1], 0.0, atol=4 * np.finfo(dtype).eps * abs(constant))
    assert_standard(np.delete(x, 1, axis=1), 1e2 * np.finfo(dtype).eps)


def test_types_of_the_bijection_stay():
    flow = stack(np.dtype("float32"), COND_DIM)
    with jax.enable_x64(True):
        got = initialize_from_data(flow, *data())
        assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {leaf.dtype for leaf in jax.tree.leaves(flow)}


def test_within_jit_and_from_integers():
    y = np.arange(8).reshape(4, 2) ** 2
    got = eqx.filter_jit(initialize_from_data)(ActNorm(2), y)
    np.testing.assert_allclose(got.loc, y.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.log_scale, np.log(y.std(0)), rtol=1e-6)


def test_a_condition_that_nobody_needs_is_ignored():
    y, condition = data()
    assert eqx.tree_equal(initialize_from_data(ActNorm(DIM), y, condition[:3]), initialize_from_data(ActNorm(DIM), y))


@pytest.mark.parametrize(
    ("shape", "cond_shape", "message"),
    [
        ((DIM,), (NUM, COND_DIM), r"Chain expected data of shape \(num, \*\(4,\)\) with num >= 2, got \(4,\)"),
        ((), (NUM, COND_DIM), r"data of shape \(num, \*\(4,\)\) with num >= 2, got \(\)"),
        ((1, DIM), (1, COND_DIM), r"data of shape \(num, \*\(4,\)\) with num >= 2, got \(1, 4\)"),
        ((NUM, 3), (NUM, COND_DIM), r"data of shape \(num, \*\(4,\)\) with num >= 2, got \(200, 3\)"),
        ((NUM, DIM), None, r"Chain expected conditions of shape \(200, 2\), got None"),
        ((NUM, DIM), (COND_DIM,), r"Chain expected conditions of shape \(200, 2\), got \(2,\)"),
        ((NUM, DIM), (3, COND_DIM), r"Chain expected conditions of shape \(200, 2\), got \(3, 2\)"),
    ],
)
def test_wrong_shapes_are_errors(shape, cond_shape, message):
    with pytest.raises(ValueError, match=message):
        initialize_from_data(
            eqx.filter_eval_shape(layer, KEY, COND_DIM),
            np.ones(shape),
            None if cond_shape is None else np.ones(cond_shape),
        )


def test_no_dimension_is_an_error():
    with pytest.raises(ValueError, match="dim expected at least 1, got 0"):
        ActNorm(0)
