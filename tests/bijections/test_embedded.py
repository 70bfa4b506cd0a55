"""Layouts of conditions, embeddings, and the bijection that puts them before a flow."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.bijections import (
    AffineUnivariate,
    Chain,
    ConditionLayout,
    Coupling,
    EmbeddedCondition,
    StandardizedCondition,
)
from numpyro_flows.bijections.embedded import layout_of
from numpyro_flows.embeddings import ImageEmbedding, JointEmbedding, SeriesEmbedding, SetEmbedding
from numpyro_flows.files.tree import load_tree, save_tree
from tests.bijections.cases import perturbed

RNG = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(0), 6)


def conditions(*batch):
    """Two sets, one with a mask, a count and a vector."""
    return {
        "sets": {"values": RNG.normal(size=(*batch, 4, 2)), "mask": np.arange(4) < RNG.integers(1, 5, (*batch, 1))},
        "count": RNG.integers(0, 9, batch),
        "vector": RNG.normal(size=(*batch, 3)),
    }


LAYOUT = ConditionLayout.of(conditions())
EMBEDDING = JointEmbedding({"sets": SetEmbedding(KEYS[0], 2, out_dim=5, width=8)})  # 5, and 1 + 3 as they are


@pytest.fixture(scope="module")
def flow():
    inner = Coupling(KEYS[1], 2, AffineUnivariate(), cond_dim=9, hidden=(8,))
    return EmbeddedCondition(perturbed(inner, scale=0.5), EMBEDDING, LAYOUT)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_a_layout_packs_and_unpacks(batch):
    condition = conditions(*batch)
    vector = LAYOUT.pack(condition)
    assert vector.shape == (*batch, LAYOUT.size) == (*batch, 8 + 4 + 1 + 3)
    again = LAYOUT.unpack(vector)
    assert again["sets"]["mask"].dtype == bool
    assert jnp.issubdtype(again["count"].dtype, jnp.integer)
    assert jax.tree.structure(again) == jax.tree.structure(condition)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, a.dtype)), again, condition)


def test_batch_shapes_broadcast():
    condition = conditions(3) | {"vector": np.ones(3), "count": np.zeros((2, 1), int)}
    assert LAYOUT.pack(condition).shape == (2, 3, LAYOUT.size)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (np.ones(3), r"condition expected a dict of .*'sets.values': \(4, 2\).*, got an array"),
        (conditions() | {"other": 1.0}, "got a dict of .*other"),
        ({"count": 1, "vector": np.ones(3)}, "got a dict of"),
        (conditions() | {"vector": np.ones(4)}, r"condition\['vector'\] expected a shape that ends with \(3,\), got"),
        (conditions(3) | {"vector": np.ones((2, 3))}, "expected arrays of one batch shape"),
    ],
    ids=["an array", "a key too many", "a key too few", "another shape", "two batch shapes"],
)
def test_a_layout_refuses_other_conditions(condition, message):
    with pytest.raises(ValueError, match=message):
        LAYOUT.pack(condition)


def test_what_has_no_layout():
    with pytest.raises(ValueError, match="at least one array, got an empty dict"):
        ConditionLayout.of({"a": {}})
    with pytest.raises(TypeError, match="keys are strings"):
        ConditionLayout.of({1: np.ones(2)})
    with pytest.raises(ValueError, match=r"condition\['a'\] expected an array with 1 axis or more"):
        ConditionLayout.of({"a": 1.0}, 1)


def test_the_bijection_is_that_given_the_embedded_condition(flow):
    condition, x = conditions(), jnp.array([0.3, -1.0])
    vector = LAYOUT.pack(condition)

    @eqx.filter_jit
    def computed(flow, x, vector):
        y, log_det = flow.transform_and_log_det(x, vector)
        embedded = flow.embedding(flow.layout.unpack(vector))
        return y, log_det, flow.inverse(y, vector), flow.bijection.transform_and_log_det(x, embedded)

    y, log_det, back, expected = computed(flow, x, vector)
    np.testing.assert_allclose(y, expected[0], rtol=1e-5)
    np.testing.assert_allclose(log_det, expected[1], rtol=1e-5)
    np.testing.assert_allclose(back, x, rtol=1e-4)
    assert abs(log_det) > 1e-3
    plain = Chain([StandardizedCondition(flow, np.zeros(16), np.ones(16))])
    assert layout_of(plain) == LAYOUT
    assert layout_of(flow.bijection) is None


def test_an_embedding_is_computed_once_for_many_events(flow):
    """It has the only maxima, over the members of sets."""
    many = jax.vmap(flow.transform, in_axes=(0, None))
    jaxpr = jax.make_jaxpr(many)(jnp.ones((77, 2)), jnp.ones(16))
    maxima = [line for line in str(jaxpr).splitlines() if "reduce_max" in line]
    assert maxima
    assert not any("77" in line for line in maxima)


@pytest.mark.parametrize("kind", [SetEmbedding, SeriesEmbedding])
def test_masked_places_change_nothing(kind, x64):
    embedding = eqx.filter_jit(kind(KEYS[3], 2, out_dim=4, width=8))
    values = RNG.normal(size=(6, 2))
    mask = np.array([True, False, True, True, False, False])
    whole = embedding(jnp.asarray(values[mask]))
    spoilt = np.where(mask[:, None], values, np.nan)
    np.testing.assert_allclose(embedding({"values": jnp.asarray(spoilt), "mask": jnp.asarray(mask)}), whole, rtol=1e-12)
    order = embedding(jnp.asarray(values[mask][::-1]))
    assert np.allclose(order, whole, rtol=1e-12) == (kind is SetEmbedding)
    empty = {"values": jnp.asarray(spoilt), "mask": jnp.zeros(6, bool)}
    assert np.isfinite(embedding(empty)).all()
    slopes = jax.jit(jax.grad(lambda v: embedding({"values": v, "mask": jnp.asarray(mask)}).sum()))(jnp.asarray(spoilt))
    assert ((slopes != 0) == mask[:, None]).all()


def test_images_of_any_shape():
    for shape in [(1, 1, 1), (2, 5, 9)]:
        embedding = ImageEmbedding(KEYS[4], shape, out_dim=3, width=4)
        slopes = jax.jit(jax.jacobian(embedding))(jnp.asarray(RNG.normal(size=shape)))
        assert slopes.shape == (3, *shape)
        assert (jnp.abs(slopes) > 0).all()


@pytest.mark.parametrize(
    ("embedding", "condition", "message"),
    [
        (SetEmbedding(KEYS[0], 2), np.ones((4, 3)), r"SetEmbedding raised .*expected values of shape \(num, 2\), got"),
        (SetEmbedding(KEYS[0], 2), {"values": np.ones((4, 2))}, "a dict of 'values' and 'mask'"),
        (SeriesEmbedding(KEYS[0], 2), {"values": np.ones((4, 2)), "mask": np.ones(3)}, r"a mask of shape \(4,\)"),
        (ImageEmbedding(KEYS[0], (1, 8, 8)), np.ones((8, 8)), r"expected an image of shape \(1, 8, 8\)"),
        (JointEmbedding({"a": lambda a: a}), {"b": np.ones(2)}, r"a dict with the keys \['a'\]"),
        (lambda c: c, np.ones((2, 2)), "expected to return an array of one axis, got one of shape"),
        (lambda c: (c, c), np.ones(2), "expected to return an array of one axis, got a tuple"),
        (lambda c: c > 0, np.ones(2), "expected to return floating-point numbers"),
        (lambda c: c, np.ones(3), r"conditions of shape \(3,\), as the embedding returns, got \(2,\)"),
    ],
)
def test_an_embedding_that_does_not_fit(embedding, condition, message):
    inner = Coupling(KEYS[1], 2, AffineUnivariate(), cond_dim=2, hidden=(8,))
    with pytest.raises(ValueError, match=message):
        EmbeddedCondition(inner, embedding, ConditionLayout.of(condition))


def test_embeddings_refuse():
    with pytest.raises(ValueError, match=r"shape expected \(channels, height, width\), got \(8, 8\)"):
        ImageEmbedding(KEYS[0], (8, 8))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="parts expected a dict of embeddings, got a list"):
        JointEmbedding([])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"parts\['a'\] expected a function"):
        JointEmbedding({"a": 3})  # pyright: ignore[reportArgumentType]


def test_a_file_with_a_layout_that_is_none(flow, tmp_path):
    leaf = LAYOUT.leaves[0]
    for leaves in [(), (leaf, leaf), (leaf._replace(shape=(-1,)),), (leaf, leaf._replace(path=("count", "a")))]:
        broken = jax.tree.map(lambda x: x, flow)
        object.__setattr__(broken, "layout", ConditionLayout(leaves))
        save_tree(tmp_path / "flow", "test", broken)
        with pytest.raises(ValueError, match="cannot have these fields"):
            load_tree(tmp_path / "flow", "test", EmbeddedCondition)
