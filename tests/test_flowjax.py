"""A FlowJAX bijection stands wherever one of ours does, and one of ours in FlowJAX's distributions."""

from typing import Any

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import paramax
import pytest
from flowjax.distributions import Normal, StandardNormal, Transformed
from flowjax.flows import coupling_flow
from flowjax.train import fit_to_data
from numpyro.infer import SVI, Trace_ELBO

from numpyro_flows import AutoFlow, FlowDistribution, FlowTransform, FlowVI, PathELBO, flows
from numpyro_flows.bijections import (
    ActNorm,
    Chain,
    Coupling,
    Frozen,
    Invert,
    Multiscale,
    RationalQuadraticSpline,
    Scan,
    initialize_from_data,
    transform_with_score,
)
from tests.bijections.cases import perturbed

pytestmark = pytest.mark.unchecked  # types name our own class of bijections

DIM, COND_DIM = 3, 2
X, CONDITION = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.3, -0.7])


def coupling_of_flowjax(key, dim=DIM, cond_dim=None) -> Any:  # it has the methods of our bijections, not the class
    flow = coupling_flow(key, base_dist=Normal(jnp.zeros(dim)), cond_dim=cond_dim, flow_layers=2, nn_width=16)
    return flow.bijection


@pytest.fixture(scope="module")
def theirs():
    return coupling_of_flowjax(jax.random.key(0), cond_dim=COND_DIM)


QUICK, OTHERS = ("theirs", "chained", "stacked"), ("inverted", "frozen", "multiscale", "with tails")


@pytest.fixture(params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def bijection(request, theirs):
    ours = perturbed(Coupling(jax.random.key(1), DIM, RationalQuadraticSpline()), scale=0.2)
    keys = jax.random.split(jax.random.key(2), 3)

    def layer(key):
        return coupling_of_flowjax(key, cond_dim=COND_DIM)

    make = {
        "theirs": lambda: theirs,
        "inverted": lambda: Invert(theirs),
        "chained": lambda: Chain([ours, theirs, ours]),
        "frozen": lambda: Frozen(theirs),
        "stacked": lambda: Scan(eqx.filter_vmap(layer)(keys)),
        "multiscale": lambda: Multiscale([theirs]),
        "with tails": lambda: perturbed(flows.with_tails(lambda key, dim: layer(key))(keys[0], DIM), scale=0.1),
    }
    return make[request.param]()


def test_shapes(bijection):
    assert bijection.shape == (DIM,)
    assert bijection.cond_shape == (COND_DIM,)


def test_round_trip_and_log_det(bijection):
    y, log_det = eqx.filter_jit(bijection.transform_and_log_det)(X, CONDITION)
    x, log_det_back = eqx.filter_jit(bijection.inverse_and_log_det)(y, CONDITION)
    jacobian = jax.jit(jax.jacfwd(lambda x: bijection.transform_and_log_det(x, CONDITION)[0]))(X)
    np.testing.assert_allclose(x, X, atol=1e-5)
    np.testing.assert_allclose(log_det, jnp.linalg.slogdet(jacobian)[1], atol=1e-5)
    np.testing.assert_allclose(log_det + log_det_back, 0.0, atol=1e-5)
    assert abs(log_det) > 0.01


def test_score_is_the_gradient_of_the_log_density(bijection):
    def log_density(y):
        x, log_det = bijection.inverse_and_log_det(y, CONDITION)
        return -0.5 * jnp.sum(x**2) + log_det

    y, log_det, score = jax.jit(lambda x: transform_with_score(bijection, x, -x, CONDITION))(X)
    expected_y, expected_log_det = eqx.filter_jit(bijection.transform_and_log_det)(X, CONDITION)
    np.testing.assert_allclose(y, expected_y, atol=1e-6)
    np.testing.assert_allclose(log_det, expected_log_det, atol=1e-6)
    np.testing.assert_allclose(score, jax.jit(jax.grad(log_density))(y), rtol=1e-4, atol=1e-4)


def test_levels_of_a_multiscale():
    levels = [coupling_of_flowjax(jax.random.key(dim), dim) for dim in (4, 2)]
    bijection, x = Multiscale(levels), jnp.array([0.5, -1.0, 2.0, 0.1])
    inner, inner_log_det = levels[1].transform_and_log_det(x[::2])
    expected, log_det = levels[0].transform_and_log_det(x.at[::2].set(inner))
    y, total = bijection.transform_and_log_det(x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(total, log_det + inner_log_det)
    np.testing.assert_allclose(bijection.inverse_and_log_det(y)[0], x, atol=1e-5)


def test_a_stack_is_its_layers_one_after_the_other():
    keys = jax.random.split(jax.random.key(2), 3)
    stack = Scan(eqx.filter_vmap(coupling_of_flowjax)(keys))
    chain = Chain([coupling_of_flowjax(key) for key in keys])
    for got, expected in zip(stack.transform_and_log_det(X), chain.transform_and_log_det(X)):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_initialisation_from_data_passes_through():
    theirs = coupling_of_flowjax(jax.random.key(0))
    data = 5.0 + 2.0 * jax.random.normal(jax.random.key(1), (200, DIM))
    actnorm, same = initialize_from_data(Chain([ActNorm(DIM), theirs]), data).bijections
    assert eqx.tree_equal(same, theirs)
    batch = jax.vmap(Chain([actnorm, same]).inverse_and_log_det)(data)[0]
    np.testing.assert_allclose(batch.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(batch.std(0), 1.0, atol=1e-5)


def test_flow_transform(theirs):
    transform = FlowTransform(theirs, jnp.stack([CONDITION, -CONDITION]))
    x = jax.random.normal(jax.random.key(1), (4, 2, DIM))
    y = jax.jit(lambda x: transform(x))(x)
    log_det = transform.log_abs_det_jacobian(x, y)
    expected_y, expected_log_det = theirs.transform_and_log_det(x[3, 1], -CONDITION)
    np.testing.assert_allclose(y[3, 1], expected_y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_det[3, 1], expected_log_det, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(transform.inv(y), x, atol=1e-5)


def test_flow_distribution_has_their_density(theirs):
    condition = jnp.stack([CONDITION, -CONDITION])
    ours = FlowDistribution(theirs, condition=condition)
    draws = ours.sample(jax.random.key(1), (5,))
    assert draws.shape == (5, 2, DIM)
    expected = Transformed(StandardNormal((DIM,)), theirs).log_prob(draws, condition)
    np.testing.assert_allclose(ours.log_prob(draws), expected, rtol=1e-5, atol=1e-5)


def test_what_they_keep_in_a_closure_is_not_saved(theirs, tmp_path):
    """A file names functions of a table only; FlowJAX's couplings hold one that is made at run time."""
    with pytest.raises(TypeError, match="cannot save"):
        FlowDistribution(theirs, condition=CONDITION).save(tmp_path / "flow")


def correlated():
    """Its log evidence is 0."""
    covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])
    numpyro.sample("x", dist.MultivariateNormal(jnp.array([1.0, -2.0]), covariance))


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(Trace_ELBO(num_particles=16), id="trace", marks=pytest.mark.slow),
        pytest.param(PathELBO(num_particles=16), id="path"),
    ],
)
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(coupling_of_flowjax, id="plain"),
        pytest.param(flows.with_tails(coupling_of_flowjax), id="tails", marks=pytest.mark.slow),
    ],
)
def test_guide_by_svi(recipe, loss):
    guide = AutoFlow(correlated, recipe)
    svi = SVI(correlated, guide, numpyro.optim.ClippedAdam(5e-3), loss)
    posterior = guide.get_posterior(svi.run(jax.random.key(0), 1000, progress_bar=False).params)
    draws = posterior.sample(jax.random.key(1), (10_000,))
    log_density = -jax.vmap(guide._potential_fn)(guide._unpack_latent(draws))
    log_weights = np.float64(log_density - posterior.log_prob(draws))
    divergence, error = -log_weights.mean(), log_weights.std() / np.sqrt(log_weights.size)
    assert -4.5 * error < divergence < 0.2  # of independent coordinates: 0.51


def test_guide_trains_no_more_than_flowjax_does():
    """What they hold fixed stays, and Adam moves all else."""
    theirs: Any = fb.Chain([paramax.non_trainable(fb.Affine(jnp.zeros(2), jnp.full(2, 2.0))), fb.Affine(jnp.zeros(2))])
    guide = AutoFlow(correlated, lambda key, dim: theirs)
    svi = SVI(correlated, guide, numpyro.optim.Adam(1e-2), PathELBO(num_particles=16))
    params = svi.run(jax.random.key(0), 20, progress_bar=False).params
    trained_flow: Any = guide.get_posterior(params).bijection
    fixed, trained = trained_flow.bijections[0].bijections
    assert eqx.tree_equal(fixed, theirs.bijections[0])
    assert (paramax.unwrap(trained).loc != 0).all()


@pytest.mark.slow
def test_guide_by_flow_vi():
    def banana():
        x = jnp.asarray(numpyro.sample("x", dist.Normal(0.0, 1.0)))
        numpyro.sample("y", dist.Normal(x**2, 0.5))

    made = coupling_of_flowjax(jax.random.key(0), 2)
    guide = AutoFlow(banana, lambda key, dim: made)
    posterior = FlowVI(banana, guide=guide, target_ess=0.9, progress_bar=False).run(jax.random.key(0))
    assert posterior.losses.size > 0  # the Gaussian was not enough
    assert posterior.certified
    assert abs(posterior.log_evidence) < 4.5 * posterior.log_evidence_se


OURS = {
    "coupling": lambda key, **options: flows.nsf_coupling(key, DIM, num_layers=2, hidden=(16,), **options),
    "maf": lambda key, **options: flows.maf(key, DIM, num_layers=2, hidden=(16,), **options),
    "glow": lambda key, **options: flows.glow(key, DIM, num_layers=2, hidden=(16,), **options),
    "residual": lambda key, **options: flows.residual(key, DIM, num_layers=2, hidden=(16,), **options),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("coupling", "glow"))) for n in OURS]
)
@pytest.mark.parametrize("cond_dim", [pytest.param(None, marks=pytest.mark.slow), COND_DIM])
def test_ours_in_their_distribution(name, cond_dim):
    ours: Any = perturbed(OURS[name](jax.random.key(0), cond_dim=cond_dim), scale=0.1)
    condition = None if cond_dim is None else jnp.stack([CONDITION, -CONDITION])
    theirs, expected = Transformed(StandardNormal((DIM,)), ours), FlowDistribution(ours, condition=condition)
    draws, log_prob = eqx.filter_jit(theirs.sample_and_log_prob)(jax.random.key(1), (5,), condition)
    assert draws.shape == (5, *expected.batch_shape, DIM)
    again = eqx.filter_jit(theirs.sample)(jax.random.key(1), (5,), condition)
    np.testing.assert_allclose(again, draws, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(eqx.filter_jit(theirs.log_prob)(draws, condition), log_prob, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(expected.log_prob(draws), log_prob, rtol=1e-4, atol=1e-4)


def test_ours_in_their_compositions(theirs):
    ours: Any = perturbed(OURS["coupling"](jax.random.key(0)), scale=0.1)
    affine: Any = fb.Affine(jnp.ones(DIM), jnp.full(DIM, 2.0))
    bijection = fb.Invert(fb.Chain([affine, ours, theirs]))
    expected = Invert(Chain([affine, ours, theirs]))
    for got, wanted in zip(bijection.transform_and_log_det(X, CONDITION), expected.transform_and_log_det(X, CONDITION)):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    merged = Transformed(Transformed(StandardNormal((DIM,)), ours), affine).merge_transforms()
    np.testing.assert_allclose(merged.log_prob(X), FlowDistribution(Chain([ours, affine])).log_prob(X), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "coupling")) for n in OURS])
def test_ours_by_their_training(name):
    """The loss falls, floating arrays move but for those in a `Frozen`, and all others stay what they are."""
    frozen = Frozen(perturbed(ActNorm(DIM)))
    before: Any = Chain([OURS[name](jax.random.key(0)), frozen])
    data = jax.random.gamma(jax.random.key(1), 2.0, (1000, DIM)) - 2.0
    flow = Transformed(StandardNormal((DIM,)), before)
    trained, losses = fit_to_data(
        jax.random.key(2), flow, data, learning_rate=1e-2, max_epochs=5, batch_size=200, show_progress=False
    )
    after = trained.bijection
    assert losses["train"][-1] < losses["train"][0] - 0.1
    assert eqx.tree_equal(after.bijections[1], frozen)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    moved, still = eqx.partition(after.bijections[0], eqx.is_inexact_array)
    moved_before, still_before = eqx.partition(before.bijections[0], eqx.is_inexact_array)
    assert eqx.tree_equal(still, still_before)
    for new, old in zip(jax.tree.leaves(moved), jax.tree.leaves(moved_before)):
        assert np.isfinite(new).all()
        assert (new != old).any()
