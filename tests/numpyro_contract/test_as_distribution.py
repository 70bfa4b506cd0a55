"""What NumPyro asks of its distributions, asked of a flow's: shapes, wrappers, plates, gradients, reparameterizers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ExpTransform
from numpyro.infer.reparam import TransformReparam
from numpyro.infer.util import log_density
from scipy.stats import norm

from numpyro_flows import FlowDistribution
from numpyro_flows.bijections import Affine, TriangularAffine

LOWER = jnp.array([[1.0, 0.0], [0.4, 2.0]])
FLOWS = {
    "vectors": FlowDistribution(TriangularAffine(jnp.ones(2), LOWER)),
    "scalars": FlowDistribution(Affine(1.0, 2.0)),
    "matrices": FlowDistribution(Affine(jnp.ones((3, 2)), 2.0)),
    "batch": FlowDistribution(
        TriangularAffine(jnp.ones(2), LOWER), dist.Normal(jnp.arange(8.0).reshape(4, 2), 2.0).to_event(1)
    ),
    "positive": FlowDistribution(Affine(jnp.ones(2), 0.5), constrain=biject_to(constraints.positive)),
    "simplex": FlowDistribution(Affine(jnp.ones(2), 0.5), constrain=biject_to(constraints.simplex)),
    "batch of simplices": FlowDistribution(
        Affine(jnp.ones(2), 0.5),
        dist.Normal(jnp.arange(8.0).reshape(4, 2) / 8, 2.0).to_event(1),
        constrain=biject_to(constraints.simplex),
    ),
}
KEYS = [jax.random.key(0), jax.random.PRNGKey(0)]


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.slow] * (n != "batch of simplices")) for n in FLOWS])
def flow(request):
    return FLOWS[request.param]


@pytest.mark.parametrize(
    "sample_shape", [pytest.param((), marks=pytest.mark.slow), pytest.param((2,), marks=pytest.mark.slow), (2, 1)]
)
def test_shapes(flow, sample_shape):
    assert flow.has_rsample
    assert not flow.is_discrete
    assert not flow.has_enumerate_support

    @jax.jit
    def computed(key, raw_key):
        draws = flow.sample(key, sample_shape)
        others = flow.rsample(key, sample_shape), flow(rng_key=key, sample_shape=sample_shape)
        return draws, (*others, flow.sample(raw_key, sample_shape)), flow.log_prob(draws), flow.support(draws)

    draws, others, log_prob, supported = computed(*KEYS)
    assert draws.shape == flow.shape(sample_shape) == (*sample_shape, *flow.batch_shape, *flow.event_shape)
    assert log_prob.shape == (*sample_shape, *flow.batch_shape)
    assert np.isfinite(log_prob).all()
    assert np.all(supported)
    for again in others:
        np.testing.assert_array_equal(again, draws)


def test_wrapped(flow):
    """Expanded, independent and masked: each draw its own, each density that of the flow."""
    batch = flow.batch_shape
    expanded, by = flow.expand((5, 3, *batch)), flow.expand_by((5, 3))
    events = flow.expand((5, *batch)).to_event(1 + len(batch))
    mask = jnp.arange(3) > 0
    masked = flow.expand((3, *batch)).mask(mask.reshape(3, *[1] * len(batch)))

    @jax.jit
    def scored(key):
        of_three = masked.sample(key)
        draws = [q.sample(key, (2,)) for q in (expanded, by)]
        events_draws = events.sample(key, (2,))
        return (
            [(x, q.log_prob(x), flow.log_prob(x)) for x, q in zip(draws, (expanded, by))],
            (events.log_prob(events_draws), flow.log_prob(events_draws)),
            (masked.log_prob(of_three), flow.log_prob(of_three), flow.mask(False).log_prob(of_three)),
        )

    of_expanded, of_events, of_masked = scored(KEYS[0])
    for draws, log_prob, expected in of_expanded:
        assert draws.shape == (2, 5, 3, *batch, *flow.event_shape)
        assert log_prob.shape == (2, 5, 3, *batch)
        np.testing.assert_allclose(log_prob, expected, rtol=1e-5)
        assert len(np.unique(expected)) == expected.size
    assert events.batch_shape == ()
    np.testing.assert_allclose(of_events[0], of_events[1].reshape(2, -1).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(of_masked[0][0], np.zeros(batch))
    np.testing.assert_allclose(of_masked[0][1:], of_masked[1][1:], rtol=1e-5)
    assert not of_masked[2].any()
    assert expanded.has_rsample
    assert flow.to_event(0) is flow
    assert flow.expand(batch) is flow
    with pytest.raises(ValueError, match="broadcast"):
        flow.expand((5,)).expand((3,))


def test_gradients(flow):
    """Of the density at a value, and of a draw, along every parameter: by differences."""
    draw = jax.jit(flow.sample)(KEYS[0])

    def total(flow):
        return flow.log_prob(draw).sum() + jnp.sin(flow.sample(KEYS[1])).sum()

    gradient, total = jax.jit(jax.grad(total))(flow), jax.jit(total)
    leaves, structure = jax.tree.flatten(flow)
    for i, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        assert slope.shape == leaf.shape
        step = 1e-2
        moved = [[*leaves[:i], leaf + by, *leaves[i + 1 :]] for by in (step, -step)]
        up, down = (total(jax.tree.unflatten(structure, changed)) for changed in moved)
        np.testing.assert_allclose((up - down) / (2 * step), slope.sum(), rtol=2e-2, atol=2e-2)


def test_masked_data_that_are_missing():
    """Rows of NaN that a mask leaves out: the density and its gradient are those of the others."""
    data = jnp.array([[0.4, jnp.nan], [0.5, 0.6]])

    def total(loc, rows, mask):
        return FlowDistribution(Affine(loc, 2.0)).mask(mask).log_prob(rows).sum()

    loc = jnp.ones(2)
    value, slope = jax.jit(jax.value_and_grad(total))(loc, data, jnp.isfinite(data).all(-1))
    expected = dist.Normal(1.0, 2.0).log_prob(data[1]).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, (data[1] - loc) / 4.0, rtol=1e-5)


def test_transformed_once_more():
    """NumPyro merges the transforms of a base that is itself transformed."""
    positive, y = FLOWS["positive"], jnp.array([2.0, 5.0])

    @jax.jit
    def scored(key):
        exp = dist.TransformedDistribution(positive, ExpTransform())
        draw, intermediates = exp.sample_with_intermediates(key)
        return exp.log_prob(y), positive.log_prob(jnp.log(y)), exp.log_prob(draw, intermediates), exp.log_prob(draw)

    log_prob, inner, by_intermediates, by_value = scored(KEYS[0])
    np.testing.assert_allclose(log_prob, inner - np.log(y).sum(), rtol=1e-5)
    np.testing.assert_allclose(by_intermediates, by_value, rtol=1e-4)


def test_components_of_a_mixture():
    flow, x = FLOWS["batch"], jnp.ones(2)
    weights = jnp.array([0.1, 0.2, 0.3, 0.4])
    mixture = dist.MixtureSameFamily(dist.Categorical(weights), flow)
    log_prob, parts, draws = jax.jit(lambda: (mixture.log_prob(x), flow.log_prob(x), mixture.sample(KEYS[0], (3,))))()
    np.testing.assert_allclose(log_prob, jax.nn.logsumexp(parts + jnp.log(weights)), rtol=1e-5)
    assert draws.shape == (3, 2)


def test_what_has_no_closed_form():
    """As for NumPyro's own transformed distributions."""
    flow = FLOWS["scalars"]
    for compute in (lambda: flow.mean, lambda: flow.variance, flow.entropy, lambda: flow.cdf(0.3)):
        with pytest.raises(NotImplementedError):
            compute()
    with pytest.raises(NotImplementedError, match="make the flow"):  # NumPyro's would be () and () for every flow
        FlowDistribution.infer_shapes((), (2,))


def test_a_carry_of_a_loop():
    """Its structure stays that of a new one, whatever was computed of it."""
    flow = FLOWS["positive"]
    assert flow.transforms  # which are kept
    new = FlowDistribution(Affine(jnp.ones(2), 0.5), constrain=biject_to(constraints.positive))
    last, _ = jax.lax.scan(lambda flow, _: (new, None), flow, jnp.arange(3))
    assert jax.tree.structure(last) == jax.tree.structure(flow)
    assert "batch shape (3,) and event shape (2,)" in repr(flow.expand([3]))


def test_reparameterized():
    """`TransformReparam` draws the base and makes the value a deterministic site."""
    positive = FLOWS["positive"]

    def model():
        with numpyro.plate("rows", 5):
            numpyro.sample("x", positive)

    by_base = numpyro.handlers.reparam(model, config={"x": TransformReparam()})
    trace = numpyro.handlers.trace(numpyro.handlers.seed(by_base, 0)).get_trace()
    assert trace["x"]["type"] == "deterministic"
    base = trace["x_base"]
    got = jax.jit(base["fn"].log_prob)(base["value"])
    np.testing.assert_allclose(got, norm.logpdf(base["value"]).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(trace["x"]["value"], np.exp(1.0 + 0.5 * base["value"]), rtol=1e-5)


def test_in_models():
    flow = FLOWS["positive"]

    def model(data=None):
        with numpyro.plate("rows", 6), numpyro.handlers.scale(scale=2.0):
            numpyro.sample("x", flow, obs=data)

    data = jnp.arange(1.0, 13.0).reshape(6, 2)
    seeded = numpyro.handlers.seed(model, 0)
    assert numpyro.handlers.trace(seeded).get_trace()["x"]["value"].shape == (6, 2)

    @jax.jit
    def scored(data):
        with numpyro.handlers.mask(mask=False):
            masked = log_density(model, (data,), {}, {})[0]
        return log_density(model, (data,), {}, {})[0], 2 * flow.log_prob(data).sum(), masked

    log_joint, expected, masked = scored(data)
    np.testing.assert_allclose(log_joint, expected, rtol=1e-5)
    assert masked == 0
    conditioned = numpyro.handlers.condition(model, {"x": data})
    np.testing.assert_array_equal(
        numpyro.handlers.trace(numpyro.handlers.seed(conditioned, 0)).get_trace()["x"]["value"], data
    )
