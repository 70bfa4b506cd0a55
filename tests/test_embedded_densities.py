"""Densities given sets, series, images, and dicts of arrays."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from numpyro_flows import FlowDistribution, fit_density, flows
from numpyro_flows.bijections import AffineUnivariate, ConditionLayout, Coupling
from numpyro_flows.continuous import FlowMatching
from numpyro_flows.density.condition_scales import condition_scales
from numpyro_flows.embeddings import ImageEmbedding, JointEmbedding, SeriesEmbedding, SetEmbedding

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


class Mean(eqx.Module):
    """An embedding of one's own, of a dict of `values` and `mask`."""

    scale: jax.Array

    def __call__(self, condition):
        there = condition["mask"][:, None]
        return self.scale * jnp.where(there, condition["values"], 0.0).sum(0) / there.sum()


def normal(key, dim, *, cond_dim=None):
    """Of one number: a normal, whose mean and deviation depend on the condition."""
    return Coupling(key, dim, AffineUnivariate(), cond_dim=cond_dim, hidden=(16,))


def fit(data, flow: Any = normal, **options) -> Any:
    return fit_density(KEY, data, flow=flow, **({"num_steps": 30, "progress_bar": False} | options))


def sets(num, rng, most=10):
    """Sets of 2 to `most` numbers around a centre, with nonsense in masked places."""
    mask = np.arange(most) < rng.integers(2, most + 1, num)[:, None]
    values = rng.normal(size=(num, 1, 1)) + rng.normal(size=(num, most, 1))
    return {"values": np.where(mask[..., None], values, 1e6 * rng.normal(size=values.shape)), "mask": mask}


def given_sets(num, rng):
    """`x ~ N(mean of the set, 1 / n)`, and `-log p(x)`."""
    condition = sets(num, rng)
    number = condition["mask"].sum(1)
    mean = np.where(condition["mask"], condition["values"][..., 0], 0.0).sum(1) / number
    x = rng.normal(mean, 1 / np.sqrt(number))
    return x[:, None], condition, -np.asarray(dist.Normal(mean, 1 / np.sqrt(number)).log_prob(x))


@pytest.fixture(scope="module")
def of_sets():
    x, condition, _ = given_sets(300, np.random.default_rng(1))
    return fit(x, condition=condition, embedding=Mean(jnp.ones(1)))


@jax.jit
def log_prob(flow, condition, x):
    return flow.given(condition).log_prob(x)


def test_masked_places_and_the_order_change_nothing(of_sets):
    x, condition, _ = given_sets(20, RNG)
    expected = log_prob(of_sets, condition, x)
    order = RNG.permutation(10)
    spoilt = np.where(condition["mask"][..., None], condition["values"], np.nan)
    other = {"mask": condition["mask"][:, order], "values": spoilt[:, order]}
    np.testing.assert_allclose(log_prob(of_sets, other, x), expected, rtol=1e-4)


def test_conditions_of_any_batch_shape(of_sets):
    _, condition, _ = given_sets(6, RNG)
    some = jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), condition)
    density = of_sets.given(some)
    assert density.batch_shape == (2, 3)
    np.testing.assert_array_equal(density.condition["mask"], some["mask"])
    draws = jax.jit(lambda key: density.sample(key, (4,)))(KEY)
    found = log_prob(of_sets, some, draws)
    assert found.shape == draws.shape[:-1] == (4, 2, 3)
    for index in np.ndindex(2, 3):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], some)
        np.testing.assert_allclose(log_prob(of_sets, one, draws[:, *index]), found[:, *index], rtol=1e-3)


def scale_of(flow):
    (scale,) = {float(node.scale[0]) for node in jax.tree.leaves(flow.bijection, is_leaf=is_mean) if is_mean(node)}
    return scale


def is_mean(node):
    return isinstance(node, Mean)


def test_files_and_going_on(of_sets, tmp_path):
    x, condition, _ = given_sets(20, RNG)
    of_sets.given(condition).save(tmp_path / "flow")
    with pytest.raises(ValueError, match="trusted"):
        FlowDistribution.load(tmp_path / "flow")
    loaded = FlowDistribution.load(tmp_path / "flow", trusted=(Mean,))
    np.testing.assert_array_equal(loaded.condition["mask"], condition["mask"])
    np.testing.assert_allclose(log_prob(loaded, condition, x), log_prob(of_sets, condition, x), rtol=1e-6)
    x, condition, _ = given_sets(300, RNG)
    further = fit(x, loaded, condition=condition, num_steps=1)
    scales = [scale_of(flow) for flow in (of_sets, loaded, further)]
    assert scales[0] == scales[1]
    assert len({1.0, *scales}) == 3, "the embedding is trained, and trained on"


@pytest.mark.slow
def test_a_dict_of_columns_is_a_table():
    """Without an embedding, with whole numbers; to rounding the same density as by one array."""
    data, table = RNG.normal(size=(200, 2)), {"dose": RNG.normal(50, 9, (200, 2)), "age": RNG.integers(18, 90, 200)}
    array = np.column_stack([table["age"], table["dose"]])
    by_dict, by_array = fit(data, condition=table), fit(data, condition=array)
    expected = log_prob(by_array, array, data)
    np.testing.assert_allclose(log_prob(by_dict, table, data), expected, rtol=1e-5)
    assert by_dict.given({"dose": np.ones((7, 2)), "age": np.ones(7)}).batch_shape == (7,)


def test_conditions_are_standardised_by_feature():
    """Vectors by number, sets and series by feature, images by channel; without what is masked; others not at all."""
    mask = np.arange(5) < RNG.integers(1, 6, 40)[:, None]
    condition = {
        "vector": RNG.normal(3, 2, (40, 2)),
        "set": {"values": RNG.normal(-1, [5, 9], (40, 5, 2)), "mask": mask},
        "image": RNG.normal(1, 4, (40, 3, 2, 6)),
        "count": RNG.integers(0, 9, (40, 2)),
    }
    layout, weights = ConditionLayout.of(condition, 1), RNG.uniform(0.5, 2.0, 40)
    flat = np.concatenate([np.asarray(value, float).reshape(40, -1) for value in layout.values(condition)], axis=1)
    loc, scale = (layout.unpack(jnp.asarray(part)) for part in condition_scales(flat, weights, layout))
    for name, array, where, axes in [
        ("vector", condition["vector"], weights[:, None], 0),
        ("image", condition["image"], weights[:, None, None, None], (0, 2, 3)),
        ("set", condition["set"]["values"], (weights[:, None] * mask)[..., None], (0, 1)),
    ]:
        where = np.broadcast_to(where, array.shape)
        mean = np.average(array, axes, where, keepdims=True)
        deviation = np.sqrt(np.average((array - mean) ** 2, axes, where, keepdims=True))
        of_loc, of_scale = (part["set"]["values"] if name == "set" else part[name] for part in (loc, scale))
        np.testing.assert_allclose(of_loc, np.broadcast_to(mean[0], array.shape[1:]), rtol=1e-5)
        np.testing.assert_allclose(of_scale, np.broadcast_to(deviation[0], array.shape[1:]), rtol=1e-5)
    assert not loc["count"].any()
    assert (scale["count"] == 1).all()
    assert scale["set"]["mask"].all()


DATA = RNG.normal(size=(50, 2))
SETS = sets(50, RNG)
ANY = SetEmbedding(KEY, 1)
ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no condition": ({"embedding": ANY}, ValueError, "embedding expected None without a condition"),
    "a class": ({"condition": SETS, "embedding": SetEmbedding}, TypeError, "got the class SetEmbedding"),
    "a function": ({"condition": SETS, "embedding": lambda c: c}, TypeError, "embedding expected an object such as"),
    "no vector": (
        {"condition": SETS, "embedding": eqx.nn.Lambda(lambda c: c["values"])},
        ValueError,
        "embedding expected to return an array of one axis",
    ),
    "another structure": (
        {"condition": {"values": SETS["values"]}, "embedding": ANY},
        ValueError,
        r"embedding expected to take one condition, a dict of {'values': \(10, 1\)}.*'values' and 'mask'",
    ),
    "rows": (
        {"condition": {"values": SETS["values"][1:], "mask": SETS["mask"]}, "embedding": ANY},
        ValueError,
        r"condition\['values'\] expected 50 rows, like data, got an array of shape \(49, 10, 1\)",
    ),
    "not finite": (
        {"condition": np.full((50, 3, 1), np.nan), "embedding": ANY},
        ValueError,
        "condition expected finite values",
    ),
    "coarse": (
        {"condition": {"t": 1.7e9 + RNG.normal(size=(50, 3, 1))}, "embedding": JointEmbedding({"t": ANY})},
        ValueError,
        r"condition\['t'\] expected columns whose values",
    ),
    "an image without an embedding": (
        {"condition": {"image": np.ones((50, 3, 3))}},
        ValueError,
        r"condition\['image'\] expected the shape .* got \('num', 3, 3\): give an embedding",
    ),
    "an array of sets without an embedding": (
        {"condition": SETS["values"]},
        ValueError,
        r"condition expected the shape \(num, cond_dim\)",
    ),
    "angles": (
        {"condition": SETS, "embedding": ANY, "support": constraints.circular},
        ValueError,
        "embedding expected None for data with angles or whole numbers",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    options, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        fit(DATA, **options)


def test_errors_of_a_fitted_flow(of_sets):
    for told, message in [
        ({"values": SETS["values"]}, "condition expected a dict of .*mask.*, got a dict of {'values'"),
        (SETS["values"], "condition expected a dict of .*, got an array"),
        (SETS | {"values": SETS["values"][:, :9]}, r"condition\['values'\] expected a shape that ends with \(10, 1\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            of_sets.given(told)
        with pytest.raises(ValueError, match="condition expected"):
            fit(DATA[:, :1], of_sets, condition=told)
    with pytest.raises(ValueError, match="embedding expected None because flow is a distribution"):
        fit(DATA[:, :1], of_sets, condition=SETS, embedding=ANY)


def images_and_table(num, rng):
    """Images of one bump, whose place is the mean of `x`, and a table whose first column is its log deviation."""
    place, table = rng.uniform(0, 1, (num, 2)), rng.normal(0, 0.5, (num, 2))
    grid = np.linspace(0, 1, 8)
    ways = [np.exp(-0.5 * ((grid - place[:, i : i + 1]) / 0.2) ** 2) for i in range(2)]
    condition = {"image": (ways[0][:, :, None] * ways[1][:, None])[:, None], "table": table}
    density = dist.Normal(4 * place, np.exp(table[:, :1]))
    x = np.asarray(density.loc + density.scale * rng.normal(size=(num, 2)))
    return x, condition, -np.asarray(density.log_prob(x)).sum(1)


def series(num, rng):
    """Walks of 5 to 20 steps; `x` is normal around where they end, with the deviation of the largest step."""
    mask = np.arange(20) < rng.integers(5, 21, num)[:, None]
    steps = np.where(mask, rng.normal(0, 0.3, (num, 20)), 0.0)
    condition = {"values": np.cumsum(steps, axis=1)[..., None], "mask": mask}
    density = dist.Normal(steps.sum(1), 0.3)
    x = np.asarray(density.loc + 0.3 * rng.normal(size=num))
    return x[:, None], condition, -np.asarray(density.log_prob(x))


FITS = {
    "sets": (given_sets, SetEmbedding(KEY, 1)),
    "series": (series, SeriesEmbedding(KEY, 1, width=16)),
    "an image and a table": (images_and_table, JointEmbedding({"image": ImageEmbedding(KEY, (1, 8, 8), width=8)})),
}


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("name", FITS)
def test_densities_are_near_the_truth(name, tmp_path):
    draw, embedding = FITS[name]
    x, condition, _ = draw(4000, np.random.default_rng(2))
    flow = fit(x, partial(flows.realnvp, num_layers=2), condition=condition, embedding=embedding, num_steps=3000)
    x, condition, truth = draw(4000, np.random.default_rng(3))
    excess = -np.asarray(log_prob(flow, condition, x)) - truth
    assert -0.05 < excess.mean() < 0.05 + 3 * excess.std() / np.sqrt(len(excess))
    flow.save(tmp_path / "flow")
    again = FlowDistribution.load(tmp_path / "flow")
    np.testing.assert_array_equal(log_prob(again, condition, x), log_prob(flow, condition, x))


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("coupling", ["independent", "minibatch_ot"])
def test_flow_matching(coupling):
    x, condition, _ = given_sets(4000, np.random.default_rng(2))
    options = {"objective": FlowMatching(coupling=coupling), "num_steps": 3000}
    flow = fit(x, flows.ffjord, condition=condition, embedding=SetEmbedding(KEY, 1), **options)
    x, condition, truth = given_sets(1000, np.random.default_rng(3))
    excess = -np.asarray(log_prob(flow, condition, x)) - truth
    assert excess.mean() < 0.1 + 3 * excess.std() / np.sqrt(len(excess))


@pytest.mark.slow
def test_restarts_weights_and_a_checkpoint(tmp_path):
    """Interrupted and gone on with, it ends as it would have, bit for bit."""
    x, condition, _ = given_sets(300, np.random.default_rng(2))
    options = {"condition": condition, "embedding": SetEmbedding(KEY, 1, width=8), "num_steps": 200, "num_restarts": 2}
    options |= {"weights": np.random.default_rng(0).uniform(0.5, 2.0, 300)}
    whole = fit(x, **options)
    looks = iter([False, True])
    fit(x, **options, checkpoint=tmp_path / "file", callback=lambda *_, **__: next(looks, True))
    again = fit(x, **options, checkpoint=tmp_path / "file")
    np.testing.assert_array_equal(again.given(condition).log_prob(x), whole.given(condition).log_prob(x))


@pytest.mark.slow
def test_double_precision(x64):
    x, condition, _ = given_sets(100, np.random.default_rng(2))
    flow = fit(x, condition=condition, embedding=Mean(jnp.ones(1)), num_steps=2)
    assert flow.given(condition).log_prob(x).dtype == jnp.float64
