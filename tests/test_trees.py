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
from numpyro_flows.density import DensityFit, Score
from numpyro_flows.sites import Sites, SitesTransform

LOSSES = np.array([2.0, np.nan])
FIT = DensityFit(LOSSES, LOSSES, np.arange(2), Score(1.0, 0.1), None, {"training": 0.5}, 1, "all 2 steps taken", None)
CONDITION = jnp.array([0.3, -0.2])


def rectified(x):
    return jnp.maximum(x, 0.0)


class Shift(AbstractBijection):
    """A conditional bijection, quick to compile, with arrays, a number and a function."""

    weight: Array
    function: Callable = eqx.field(default_factory=lambda: rectified)
    factor: float = 2.0
    shape = (3,)
    cond_shape = (2,)

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


@pytest.fixture(params=FLOWS)
def tree(request, conditional):
    return FLOWS[request.param](conditional)


def values(tree) -> np.ndarray:
    """What the object computes, in numbers."""
    if isinstance(tree, FlowTransform):
        return np.asarray(tree(jnp.array([0.1, -0.4, 0.7])))
    draw = tree.sample_with_intermediates(jax.random.PRNGKey(0), (3,))[0]
    return np.append(draw, tree.log_prob(draw))


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

    structure = jax.tree.structure(tree)
    inexact, rest = eqx.partition(tree, eqx.is_inexact_array)
    np.testing.assert_array_equal(values(eqx.combine(inexact, rest)), values(tree))
    gradient = eqx.filter_grad(total)(tree)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert jax.tree.structure(jax.eval_shape(lambda tree: tree, tree)) == structure
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tree)
    of_two = jax.vmap(total, in_axes=(jax.tree.map(lambda _: 0, tree),))(twice)
    np.testing.assert_allclose(of_two, jnp.stack([total(tree)] * 2), rtol=1e-5)
    assert jax.tree.structure(jax.jit(lambda tree: tree)(tree)) == structure


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


@pytest.mark.parametrize("plate", [False, True])
@pytest.mark.parametrize("kind", ["plain", "bounded", "based"])
def test_a_site_of_a_scan(conditional, plate, kind):
    based = dist.Normal(jnp.arange(3.0), 2.0).to_event(1) if kind == "based" else None
    constrain = biject_to(constraints.interval(-1.0, jnp.array(2.0))) if kind == "bounded" else None

    def flow(condition):
        return FlowDistribution(conditional, based, condition, constrain=constrain)

    model = model_of_a_scan(flow, plate)
    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
    x = trace["x"]["value"]
    assert x.shape == ((4, 5, 3) if plate else (4, 3))
    assert trace["x"]["fn"].batch_shape == ((4, 5) if plate else (4,))
    expected = of_a_loop(flow, plate, x)
    with_intermediates = trace["x"]["fn"].log_prob(x, trace["x"]["intermediates"]).sum()
    np.testing.assert_allclose(with_intermediates, expected, rtol=1e-4)
    scored, _ = log_density(numpyro.handlers.seed(model, 0), (), {}, {"x": x})
    np.testing.assert_allclose(scored, expected, rtol=1e-4)
    if not plate:  # NumPyro's expanded distributions are not for drawing once they left a scan
        assert trace["x"]["fn"].sample(jax.random.key(1), (2,)).shape == (2, *x.shape)


def test_a_site_of_a_branch(conditional):
    flow = FlowDistribution(conditional, condition=CONDITION)

    def model(first):
        return cond(first, lambda _: numpyro.sample("x", flow), lambda _: numpyro.sample("x", flow), None)

    x = jnp.array([0.1, 0.2, 0.3])
    scored, _ = log_density(numpyro.handlers.seed(model, 0), (True,), {}, {"x": x})
    np.testing.assert_allclose(scored, flow.log_prob(x), rtol=1e-5)


def test_many_at_once(conditional):
    """What `vmap` made is scored and sampled one by one, with a batch of conditions too."""
    conditions = jnp.linspace(-1, 1, 12).reshape(2, 3, 2)
    many = jax.vmap(lambda condition: FlowDistribution(conditional, condition=condition))(conditions)
    x = jax.random.normal(jax.random.key(0), (4, 2, 3, 3))
    at_once = FlowDistribution(conditional, condition=conditions)
    np.testing.assert_allclose(many.log_prob(x), at_once.log_prob(x), rtol=1e-4)
    draws = many.sample(jax.random.key(0), (5,))
    assert draws.shape == (5, 2, 3, 3)


def test_shards():
    """Draws, conditions or parameters that differ by device, of a flow whose layers are scanned."""
    mesh = jax.make_mesh((1,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    here, everywhere = PartitionSpec("device"), PartitionSpec()
    layers = eqx.filter_vmap(lambda loc: Chain([Shift(jnp.ones((3, 2))), Affine(loc)]))(jnp.ones((4, 3)))  # pyright: ignore[reportCallIssue]
    arrays, static = eqx.partition(Scan(layers), eqx.is_array)

    def log_prob(arrays, condition, x):
        return FlowDistribution(eqx.combine(arrays, static), condition=condition).log_prob(x)

    args = arrays, CONDITION, jnp.ones((4, 3))
    for specs in ((everywhere, everywhere, here), (everywhere, here, everywhere), (here, everywhere, everywhere)):
        sharded = jax.shard_map(log_prob, mesh=mesh, in_specs=specs, out_specs=here)
        np.testing.assert_allclose(jax.jit(sharded)(*args), log_prob(*args), rtol=1e-5)
