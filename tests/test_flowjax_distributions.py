"""FlowJAX's bijections in our distributions and guides, ours in its distributions and training."""

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
from flowjax.distributions import StandardNormal, Transformed
from flowjax.train import fit_to_data
from numpyro.infer import SVI, Trace_ELBO

from numpyro_flows import AutoFlow, FlowDistribution, FlowTransform, FlowVI, PathELBO, flows
from numpyro_flows.bijections import (
    ActNorm,
    Chain,
    Frozen,
)
from tests.bijections.cases import perturbed
from tests.test_flowjax import (
    COND_DIM,
    CONDITION,
    DIM,
    KEY,
    KEYS,
    RECIPES,
    X,
    affine,
    affine_of_flowjax,
    flow_of_flowjax,
    flow_of_ours,
    ours,
    theirs,
)

pytestmark = pytest.mark.unchecked  # types name our own class of bijections


def test_theirs_in_our_distribution():
    """The transform and the density of a batch of conditions are theirs."""
    bijection, condition = theirs(), jnp.stack([CONDITION, -CONDITION])

    @jax.jit
    def computed(key):
        transform, flow = FlowTransform(bijection, condition), FlowDistribution(bijection, condition=condition)
        draws = flow.sample(key, (5,))
        x: Any = transform.inv(draws)
        expected = Transformed(StandardNormal((DIM,)), bijection).log_prob(draws, condition)
        return draws, transform(x), transform.log_abs_det_jacobian(x, draws), x, flow.log_prob(draws), expected

    draws, again, log_det, x, log_prob, expected = computed(jax.random.key(1))
    assert draws.shape == (5, 2, DIM)
    np.testing.assert_allclose(again, draws, atol=1e-5)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-5)
    one, log_det_of_one = bijection.transform_and_log_det(x[3, 1], -CONDITION)
    np.testing.assert_allclose(draws[3, 1], one, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_det[3, 1], log_det_of_one, rtol=1e-5, atol=1e-5)


def test_what_they_keep_in_a_closure_is_not_saved(tmp_path):
    """A file names functions of a table only; FlowJAX's couplings hold one that is made at run time."""
    with pytest.raises(TypeError, match="cannot save"):
        FlowDistribution(theirs(), condition=CONDITION).save(tmp_path / "flow")


def correlated():
    """Its log evidence is 0."""
    covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])
    numpyro.sample("x", dist.MultivariateNormal(jnp.array([1.0, -2.0]), covariance))


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [pytest.param(Trace_ELBO(num_particles=16), id="trace"), pytest.param(PathELBO(num_particles=16), id="path")],
)
@pytest.mark.parametrize(
    "recipe",
    [pytest.param(flow_of_flowjax, id="plain"), pytest.param(flows.with_tails(flow_of_flowjax), id="tails")],
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


def test_guide_trains_as_much_as_flowjax_does():
    """The loss falls, what they hold fixed stays, and Adam moves all else."""

    def two_normals():
        numpyro.sample("x", dist.Normal(jnp.array([1.0, -2.0]), 0.5).to_event(1))

    theirs: Any = fb.Chain([paramax.non_trainable(affine_of_flowjax(dim=2)), fb.Affine(jnp.zeros(2))])
    guide = AutoFlow(two_normals, lambda key, dim: theirs)
    svi = SVI(two_normals, guide, numpyro.optim.Adam(1e-2), PathELBO(num_particles=16))
    state = jax.jit(svi.init)(KEY)  # in one piece: operation by operation it compiles for seconds
    result = svi.run(KEY, 200, progress_bar=False, init_state=state)
    assert result.losses[-20:].mean() < result.losses[:20].mean() - 0.1
    trained_flow: Any = guide.get_posterior(result.params).bijection
    fixed, trained = trained_flow.bijections[0].bijections
    assert eqx.tree_equal(fixed, theirs.bijections[0])
    assert (paramax.unwrap(trained).loc != 0).all()


@pytest.mark.slow
def test_guide_by_flow_vi():
    def banana():
        x = jnp.asarray(numpyro.sample("x", dist.Normal(0.0, 1.0)))
        numpyro.sample("y", dist.Normal(x**2, 0.5))

    made = flow_of_flowjax(jax.random.key(0), 2)
    guide = AutoFlow(banana, lambda key, dim: made)
    posterior = FlowVI(banana, guide=guide, target_ess=0.9, progress_bar=False).run(jax.random.key(0))
    assert posterior.losses.size > 0  # the Gaussian was not enough
    assert posterior.certified
    assert abs(posterior.log_evidence) < 4.5 * posterior.log_evidence_se


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "layer")) for name in RECIPES])
@pytest.mark.parametrize("cond_dim", [pytest.param(None, marks=pytest.mark.slow), COND_DIM])
def test_ours_in_their_distribution(name, cond_dim):
    ours: Any = flow_of_ours(name, cond_dim=cond_dim)
    condition = None if cond_dim is None else jnp.stack([CONDITION, -CONDITION])
    theirs, expected = Transformed(StandardNormal((DIM,)), ours), FlowDistribution(ours, condition=condition)

    @eqx.filter_jit
    def computed(theirs, key):
        draws, log_prob = theirs.sample_and_log_prob(key, (5,), condition)
        log_probs = log_prob, theirs.log_prob(draws, condition), expected.log_prob(draws)
        return draws, theirs.sample(key, (5,), condition), log_probs

    draws, again, (log_prob, log_prob_again, log_prob_of_ours) = computed(theirs, jax.random.key(1))
    assert draws.shape == (5, *expected.batch_shape, DIM)
    np.testing.assert_allclose(again, draws, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_prob_again, log_prob, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_prob_of_ours, log_prob, rtol=1e-4, atol=1e-4)


def test_their_distribution_merges_transforms():
    merged = Transformed(Transformed(StandardNormal((DIM,)), affine()), affine_of_flowjax()).merge_transforms()
    expected = FlowDistribution(Chain([affine(), affine_of_flowjax()]))
    got, wanted = jax.jit(lambda x: (merged.log_prob(x), expected.log_prob(x)))(X)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_ours_as_trees(tmp_path):
    """As FlowJAX's: split and put together again, held by `tree_serialise_leaves`, an ensemble under `vmap`."""
    bijection = ours()
    assert eqx.tree_equal(eqx.combine(*eqx.partition(bijection, eqx.is_inexact_array)), bijection)
    eqx.tree_serialise_leaves(tmp_path / "leaves.eqx", bijection)
    assert eqx.tree_equal(eqx.tree_deserialise_leaves(tmp_path / "leaves.eqx", ours(KEYS[1])), bijection)

    @eqx.filter_jit
    def computed(many, one):
        return eqx.filter_vmap(lambda each: each.transform(X, CONDITION))(many), one.transform(X, CONDITION)

    many, one = computed(eqx.filter_vmap(ours)(KEYS), ours(KEYS[1]))
    np.testing.assert_allclose(many[1], one, rtol=1e-5)


def test_ours_in_numpyro_by_them():
    """Their adapter calls a private method of their own class, so ours go there in a composition of theirs."""
    from flowjax.experimental.numpyro import distribution_to_numpyro

    adapted: Any = distribution_to_numpyro(Transformed(StandardNormal((DIM,)), fb.Chain([affine()])))

    @jax.jit
    def computed(key):
        x = adapted.sample(key, (2,))
        return adapted.log_prob(x), FlowDistribution(affine()).log_prob(x)

    got, expected = computed(KEY)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_ours_by_their_training(name):
    """The loss falls, floating arrays move but for those in a `Frozen`, and all others stay what they are."""
    frozen = Frozen(perturbed(ActNorm(DIM)))
    before: Any = Chain([RECIPES[name](), frozen])
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
