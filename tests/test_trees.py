"""Flows as trees: whatever is done to the leaves, the structure stays, and so does what the flow is."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.sharding import PartitionSpec
from jaxtyping import Array
from numpyro.contrib.control_flow import cond, scan
from numpyro.distributions import biject_to, constraints
from numpyro.infer.util import log_density

from numpyro_flows import FlowDistribution, FlowTransform
from numpyro_flows.bijections import AbstractBijection, Affine, Chain, Scan
from numpyro_flows.density.report import DensityFit, Score
from numpyro_flows.modeling.sites import Sites, SitesTransform

LOSSES = np.array([2.0, np.nan])
FIT = DensityFit(
    LOSSES,
    LOSSES,
    np.arange(2),
    Score(1.0, 0.1),
    None,
    {"training": 0.5},
    1,
    "all 2 steps taken",
    "all steps taken",
    None,
)
CONDITION = jnp.array([0.3, -0.2])


def rectified(x):
    return jnp.maximum(x, 0.0)


class Shift(AbstractBijection):
    """A conditional bijection, quick to compile, with arrays, a number and a function."""

    weight: Array
    function: Callable = eqx.field(default_factory=lambda: rectified)
    factor: float = 2.0

    @property
    def shape(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.weight.shape[:1]

    @property
    def cond_shape(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.weight.shape[1:]

    def _transform(self, x, condition: Any):
        return x + self.factor * self.function(self.weight @ condition), jnp.zeros_like(x, shape=())

    def _inverse(self, y, condition: Any):
        return y - self.factor * self.function(self.weight @ condition), jnp.zeros_like(y, shape=())


@pytest.fixture(scope="module")
def conditional():
    return Chain([Shift(jnp.arange(6.0).reshape(3, 2) / 10), Affine(jnp.ones(3), 2.0)])  # pyright: ignore[reportCallIssue]


def reported(flow: FlowDistribution) -> FlowDistribution:
    flow.fit = FIT
    return flow


FLOWS = {
    "plain": lambda flow: FlowDistribution(flow, condition=CONDITION),
    "of numbers": lambda flow: FlowDistribution(Affine(jnp.ones(())), dist.Normal(0.5, 2.0)),
    "bounded": lambda flow: FlowDistribution(
        flow, condition=CONDITION, constrain=biject_to(constraints.interval(-1.0, 2.0))
    ),
    "on a transformed base": lambda flow: FlowDistribution(
        flow, dist.LogNormal(jnp.zeros(3), 0.5).to_event(1), condition=CONDITION
    ),
    "sites": lambda flow: FlowDistribution(
        flow,
        condition=CONDITION,
        constrain=SitesTransform(Sites({"a": (), "b": (2,)}, {"b": constraints.positive})),
    ),
    "reported": lambda flow: reported(FlowDistribution(flow, condition=CONDITION)),
    "transform": lambda flow: FlowTransform(flow, CONDITION),
}


@pytest.fixture(scope="module", params=FLOWS)
def tree(request, conditional):
    return FLOWS[request.param](conditional)


@jax.jit
def values(tree) -> Array:
    """What the object computes, in numbers."""
    if isinstance(tree, FlowTransform):
        return tree(jnp.array([0.1, -0.4, 0.7]))
    draw = tree.sample_with_intermediates(jax.random.PRNGKey(0), (3,))[0]
    return jnp.append(draw, tree.log_prob(draw))


@pytest.mark.parametrize(
    "leaf",
    [None, True, 2, "text", jax.ShapeDtypeStruct((2,), jnp.float32), np.zeros(3)],
    ids=lambda leaf: type(leaf).__name__,
)
def test_leaves_of_any_kind(tree, leaf):
    structure = jax.tree.structure(tree)
    mapped = jax.tree.map(lambda _: leaf, tree)
    assert jax.tree.structure(mapped, is_leaf=lambda node: node is None) == structure
    arrays = jax.tree.leaves(tree)
    assert all(eqx.is_array(array) for array in arrays)
    again = jax.tree.unflatten(jax.tree.structure(mapped, is_leaf=lambda node: node is None), arrays)
    np.testing.assert_array_equal(values(again), values(tree))
    assert getattr(again, "fit", None) is getattr(tree, "fit", None)


def test_transformations_of_jax_and_equinox(tree):
    def total(tree):
        return tree(jnp.ones(3)).sum() if isinstance(tree, FlowTransform) else tree.log_prob(jnp.ones(tree.event_shape))

    @jax.jit
    def evaluate(tree, twice):
        of_two = jax.vmap(total, in_axes=(jax.tree.map(lambda _: 0, tree),))(twice)
        return of_two, total(tree), eqx.filter_grad(total)(tree), tree

    structure = jax.tree.structure(tree)
    inexact, rest = eqx.partition(tree, eqx.is_inexact_array)
    np.testing.assert_array_equal(values(eqx.combine(inexact, rest)), values(tree))
    assert jax.tree.structure(jax.eval_shape(lambda tree: tree, tree)) == structure
    of_two, of_one, gradient, again = evaluate(tree, jax.tree.map(lambda leaf: np.stack([leaf, leaf]), tree))
    np.testing.assert_allclose(of_two, [of_one, of_one], rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert jax.tree.structure(again) == structure


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda tree: pickle.loads(pickle.dumps(tree))])
def test_copies(tree, copied):
    before = values(tree)
    again = copied(tree)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    np.testing.assert_array_equal(values(again), before)
    assert getattr(again, "fit", None) == getattr(tree, "fit", None)


def test_copies_share_functions():
    """A copy of a function of JAX's would be another one, and make another structure."""
    flow = FlowDistribution(Shift(jnp.ones((3, 2)), jax.nn.relu), condition=CONDITION)  # pyright: ignore[reportCallIssue]
    again = copy.deepcopy(flow)
    assert jax.tree.structure(again) == jax.tree.structure(flow)
    assert again.condition is not flow.condition


def test_a_report_goes_along(conditional):
    flow = reported(FlowDistribution(conditional, condition=CONDITION))
    assert jax.tree.map(lambda leaf: leaf, flow).fit is FIT
    assert flow.given(-CONDITION).fit is FIT
    assert flow.vector.fit is FIT
    many: Any = flow.expand([4])
    wrappers: list[Any] = [many, many.to_event(1).base_dist, flow.mask(jnp.array(False))]
    for wrapped in wrappers:
        assert wrapped.base_dist.fit is FIT
    other = reported(FlowDistribution(conditional, condition=CONDITION))
    other.fit = FIT._replace(seconds={"training": 0.6})
    assert jax.tree.structure(other) != jax.tree.structure(flow)  # or a compiled function would give one for the other


def model_of_a_scan(flow, plate: bool, length: int = 4):
    def step(carry, _):
        condition = jnp.stack([carry, -carry])
        if plate:
            with numpyro.plate("n", 5):
                x = jnp.asarray(numpyro.sample("x", flow(condition)))
            return carry + 0.1 * x.mean(), None
        x = jnp.asarray(numpyro.sample("x", flow(condition)))
        return carry + 0.1 * x.mean(), None

    return lambda: scan(step, jnp.array(0.5), None, length=length)


def of_a_loop(flow, plate: bool, x):
    """The log density that a loop in Python has."""
    total, carry = 0.0, 0.5
    for value in x:
        total += flow(jnp.stack([carry, -carry])).log_prob(value).sum()
        carry = carry + 0.1 * value.mean()
    return total


@pytest.mark.parametrize(
    ("kind", "plate"),
    [
        ("plain", False),
        ("bounded", True),
        ("based", True),
        pytest.param("plain", True, marks=pytest.mark.slow),
        pytest.param("bounded", False, marks=pytest.mark.slow),
        pytest.param("based", False, marks=pytest.mark.slow),
    ],
)
def test_a_site_of_a_scan(conditional, plate, kind):
    based = dist.Normal(jnp.arange(3.0), 2.0).to_event(1) if kind == "based" else None
    constrain = biject_to(constraints.interval(-1.0, jnp.array(2.0))) if kind == "bounded" else None

    def flow(condition):
        return FlowDistribution(conditional, based, condition, constrain=constrain)

    @jax.jit
    def evaluate():
        model = numpyro.handlers.seed(model_of_a_scan(flow, plate), 0)
        site = numpyro.handlers.trace(model).get_trace()["x"]
        x = site["value"]
        assert x.shape == ((4, 5, 3) if plate else (4, 3))
        assert site["fn"].batch_shape == ((4, 5) if plate else (4,))
        if not plate:  # NumPyro's expanded distributions are not for drawing once they left a scan
            assert site["fn"].sample(jax.random.key(1), (2,)).shape == (2, *x.shape)
        with_intermediates = site["fn"].log_prob(x, site["intermediates"]).sum()
        return with_intermediates, log_density(model, (), {}, {"x": x})[0], of_a_loop(flow, plate, x)

    with_intermediates, scored, expected = evaluate()
    np.testing.assert_allclose(with_intermediates, expected, rtol=1e-4)
    np.testing.assert_allclose(scored, expected, rtol=1e-4)


def test_a_site_of_a_branch(conditional):
    flow = FlowDistribution(conditional, condition=CONDITION)

    def model(first):
        return cond(first, lambda _: numpyro.sample("x", flow), lambda _: numpyro.sample("x", flow), None)

    @jax.jit
    def evaluate(x):
        return log_density(numpyro.handlers.seed(model, 0), (True,), {}, {"x": x})[0], flow.log_prob(x)

    scored, expected = evaluate(np.array([0.1, 0.2, 0.3], np.float32))
    np.testing.assert_allclose(scored, expected, rtol=1e-5)


def test_many_at_once(conditional):
    """What `vmap` made is scored and sampled one by one, with a batch of conditions too."""

    @jax.jit
    def evaluate(conditions, x):
        many = jax.vmap(lambda condition: FlowDistribution(conditional, condition=condition))(conditions)
        at_once = FlowDistribution(conditional, condition=conditions)
        assert many.sample(jax.random.key(0), (5,)).shape == (5, 2, 3, 3)
        return many.log_prob(x), at_once.log_prob(x)

    conditions = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 3, 2)
    x = np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32)
    one_by_one, at_once = evaluate(conditions, x)
    np.testing.assert_allclose(one_by_one, at_once, rtol=1e-4)


def test_shards():
    """Draws, conditions or parameters that differ by device, of a flow whose layers are scanned."""
    mesh = jax.make_mesh((1,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    here, everywhere = PartitionSpec("device"), PartitionSpec()
    layers = eqx.filter_vmap(lambda loc: Chain([Shift(jnp.ones((3, 2))), Affine(loc)]))(jnp.ones((4, 3)))  # pyright: ignore[reportCallIssue]
    arrays, static = eqx.partition(Scan(layers), eqx.is_array)

    def log_prob(arrays, condition, x):
        return FlowDistribution(eqx.combine(arrays, static), condition=condition).log_prob(x)

    @jax.jit
    def evaluate(*args):
        specs = (everywhere, everywhere, here), (everywhere, here, everywhere), (here, everywhere, everywhere)
        sharded = [jax.shard_map(log_prob, mesh=mesh, in_specs=spec, out_specs=here)(*args) for spec in specs]
        return sharded, log_prob(*args)

    sharded, expected = evaluate(arrays, CONDITION, np.ones((4, 3), np.float32))
    for values in sharded:
        np.testing.assert_allclose(values, expected, rtol=1e-5)
