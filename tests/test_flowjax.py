"""A FlowJAX bijection stands wherever one of ours does, and one of ours in FlowJAX's distributions."""

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
from tests.bijections.common import made

DIM, COND_DIM = 3, 2
X, CONDITION = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.3, -0.7])


def coupling_of_flowjax(key, dim=DIM, cond_dim=None):
    flow = coupling_flow(key, base_dist=Normal(jnp.zeros(dim)), cond_dim=cond_dim, flow_layers=2, nn_width=16)
    return flow.bijection


slow = pytest.mark.slow


@pytest.fixture(scope="module")
def theirs():
    return eqx.filter_jit(lambda: coupling_of_flowjax(jax.random.key(0), cond_dim=COND_DIM))()


def layer(key, dim=DIM):
    return coupling_of_flowjax(key, dim, cond_dim=COND_DIM)


def ours_around_theirs(name, theirs):
    ours = perturbed(Coupling(jax.random.key(1), DIM, RationalQuadraticSpline()), scale=0.2)
    keys = jax.random.split(jax.random.key(2), 3)
    make = {
        "theirs": lambda: theirs,
        "inverted": lambda: Invert(theirs),
        "chained": lambda: Chain([ours, theirs, ours]),
        "frozen": lambda: Frozen(theirs),
        "stacked": lambda: Scan(eqx.filter_vmap(layer)(keys)),
        "multiscale": lambda: Multiscale([theirs]),
        "with tails": lambda: perturbed(flows.with_tails(layer)(keys[0], DIM), scale=0.1),
    }
    return make[name]()


@pytest.mark.parametrize(
    "name",
    [
        "theirs",
        "chained",
        "stacked",
        *(pytest.param(name, marks=slow) for name in ("inverted", "frozen", "multiscale", "with tails")),
    ],
)
def test_laws(name, theirs):
    """Round trip, log-determinant and score, of one compiled function."""

    @eqx.filter_jit
    def compute(theirs, x, condition):
        bijection = ours_around_theirs(name, theirs)
        assert bijection.shape == (DIM,)
        assert bijection.cond_shape == (COND_DIM,)

        def log_density(y):
            x, log_det = bijection.inverse_and_log_det(y, condition)
            return -0.5 * jnp.sum(x**2) + log_det, (x, log_det)

        y, log_det = bijection.transform_and_log_det(x, condition)
        jacobian = jax.jacfwd(lambda x: bijection.transform_and_log_det(x, condition)[0])(x)
        expected_score, back = jax.grad(log_density, has_aux=True)(y)
        return (y, log_det), back, jacobian, transform_with_score(bijection, x, -x, condition), expected_score

    (y, log_det), (x, log_det_back), jacobian, with_score, expected_score = compute(theirs, X, CONDITION)
    np.testing.assert_allclose(x, X, atol=1e-5)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-5)
    np.testing.assert_allclose(log_det + log_det_back, 0.0, atol=1e-5)
    assert abs(log_det) > 0.01
    for got, expected in zip(with_score, (y, log_det, expected_score)):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_levels_of_a_multiscale():
    x = jnp.array([0.5, -1.0, 2.0, 0.1])

    @eqx.filter_jit
    def by_levels_and_as_one(keys, x):
        levels = [coupling_of_flowjax(key, dim) for key, dim in zip(keys, (4, 2))]
        inner, inner_log_det = levels[1].transform_and_log_det(x[::2])
        expected, log_det = levels[0].transform_and_log_det(x.at[::2].set(inner))
        bijection = Multiscale(levels)
        as_one = bijection.transform_and_log_det(x)
        return (expected, log_det + inner_log_det), as_one, bijection.inverse_and_log_det(as_one[0])[0]

    by_levels, as_one, back = by_levels_and_as_one(jax.random.split(jax.random.key(4)), x)
    for got, expected in zip(as_one, by_levels):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(back, x, atol=1e-5)


def test_a_stack_is_its_layers_one_after_the_other():
    @eqx.filter_jit
    def stack_and_chain(keys, x):
        stack = Scan(eqx.filter_vmap(coupling_of_flowjax)(keys))
        chain = Chain([coupling_of_flowjax(key) for key in keys])
        return stack.transform_and_log_det(x), chain.transform_and_log_det(x)

    for got, expected in zip(*stack_and_chain(jax.random.split(jax.random.key(2), 2), X)):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_initialisation_from_data_passes_through(theirs):
    data = 5.0 + 2.0 * np.random.default_rng(0).normal(size=(200, DIM)).astype("float32")
    condition = jnp.broadcast_to(CONDITION, (200, COND_DIM))
    actnorm, same = initialize_from_data(Chain([ActNorm(DIM), theirs]), data, condition).bijections
    assert eqx.tree_equal(same, theirs)
    to_base = eqx.filter_jit(lambda flow, *args: jax.vmap(flow.inverse_and_log_det)(*args)[0])
    batch = np.asarray(to_base(Chain([actnorm, same]), data, condition))
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
    ("recipe", "loss"),
    [
        pytest.param(coupling_of_flowjax, PathELBO(num_particles=16), id="plain-path"),
        pytest.param(coupling_of_flowjax, Trace_ELBO(num_particles=16), id="plain-trace", marks=slow),
        pytest.param(flows.with_tails(coupling_of_flowjax), PathELBO(num_particles=16), id="tails-path", marks=slow),
        pytest.param(flows.with_tails(coupling_of_flowjax), Trace_ELBO(num_particles=16), id="tails-trace", marks=slow),
    ],
)
def test_guide_by_svi(recipe, loss):
    guide = AutoFlow(correlated, recipe)
    svi = SVI(correlated, guide, numpyro.optim.ClippedAdam(5e-3), loss)
    posterior = guide.get_posterior(svi.run(jax.random.key(0), 1000, progress_bar=False).params)
    draws = posterior.sample(jax.random.key(1), (10_000,))
    log_density = jax.vmap(lambda sites: numpyro.infer.util.log_density(correlated, (), {}, sites)[0])(
        guide._unpack_latent(draws)
    )
    log_weights = np.float64(log_density - posterior.log_prob(draws))
    divergence, error = -log_weights.mean(), log_weights.std() / np.sqrt(log_weights.size)
    assert -4.5 * error < divergence < 0.2  # of independent coordinates: 0.51


def test_guide_trains_no_more_than_flowjax_does():
    """What they hold fixed stays, and Adam moves all else."""
    theirs = fb.Chain([paramax.non_trainable(fb.Affine(jnp.zeros(2), jnp.full(2, 2.0))), fb.Affine(jnp.zeros(2))])
    guide = AutoFlow(correlated, lambda key, dim: theirs)
    svi = SVI(correlated, guide, numpyro.optim.Adam(1e-2), PathELBO(num_particles=16))
    params = svi.run(jax.random.key(0), 20, progress_bar=False).params
    fixed, trained = guide.get_posterior(params).bijection.bijections[0].bijections
    assert eqx.tree_equal(fixed, theirs.bijections[0])
    assert (paramax.unwrap(trained).loc != 0).all()


@slow
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
    ("name", "cond_dim"),
    [("glow", None), ("coupling", COND_DIM)]
    + [
        pytest.param(name, cond_dim, marks=slow)
        for name in OURS
        for cond_dim in (None, COND_DIM)
        if (name, cond_dim) not in (("glow", None), ("coupling", COND_DIM))
    ],
)
def test_ours_in_their_distribution(name, cond_dim):
    ours = made(lambda: OURS[name](jax.random.key(0), cond_dim=cond_dim), scale=0.1)
    condition = None if cond_dim is None else jnp.stack([CONDITION, -CONDITION])
    theirs, expected = Transformed(StandardNormal((DIM,)), ours), FlowDistribution(ours, condition=condition)
    draws, log_prob = eqx.filter_jit(theirs.sample_and_log_prob)(jax.random.key(1), (5,), condition)
    assert draws.shape == (5, *expected.batch_shape, DIM)
    again = eqx.filter_jit(theirs.sample)(jax.random.key(1), (5,), condition)
    np.testing.assert_allclose(again, draws, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(eqx.filter_jit(theirs.log_prob)(draws, condition), log_prob, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(expected.log_prob(draws), log_prob, rtol=1e-4, atol=1e-4)


def test_ours_in_their_compositions(theirs):
    ours = made(lambda: OURS["coupling"](jax.random.key(0)), scale=0.1)

    @eqx.filter_jit
    def compute(ours, theirs, x, condition):
        affine = fb.Affine(jnp.ones(DIM), jnp.full(DIM, 2.0))
        bijections = fb.Invert(fb.Chain([affine, ours, theirs])), Invert(Chain([affine, ours, theirs]))
        merged = Transformed(Transformed(StandardNormal((DIM,)), ours), affine).merge_transforms()
        densities = merged.log_prob(x), FlowDistribution(Chain([ours, affine])).log_prob(x)
        return [b.transform_and_log_det(x, condition) for b in bijections], densities

    (theirs_around, ours_around), (got, expected) = compute(ours, theirs, X, CONDITION)
    for a, b in zip(theirs_around, ours_around):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[slow] * (name != "coupling")) for name in OURS])
def test_ours_by_their_training(name):
    """The loss falls, floating arrays move but for those in a `Frozen`, and all others stay what they are."""
    frozen = Frozen(perturbed(ActNorm(DIM)))
    before = Chain([OURS[name](jax.random.key(0)), frozen])
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
