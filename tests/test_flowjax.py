"""A FlowJAX bijection stands wherever one of ours does, and one of ours in FlowJAX's compositions and distributions."""

from collections.abc import Callable
from functools import partial
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
from flowjax.root_finding import bisection_search, root_finder_to_inverter
from flowjax.train import fit_to_data
from numpyro.infer import SVI, Trace_ELBO

from numpyro_flows import AutoFlow, FlowDistribution, FlowTransform, FlowVI, PathELBO, flows
from numpyro_flows.bijections import (
    ActNorm,
    Affine,
    AffineUnivariate,
    Chain,
    Coupling,
    Frozen,
    Invert,
    Multiscale,
    Reshape,
    Scan,
    StandardizedCondition,
    initialize_from_data,
    transform_with_score,
)
from numpyro_flows.bijections.partial import Partial
from tests.bijections.cases import perturbed

pytestmark = pytest.mark.unchecked  # types name our own class of bijections

DIM, COND_DIM = 3, 2
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 2)
X, CONDITION = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.3, -0.7])


def theirs(key=KEY) -> Any:  # it has the methods of our bijections, not the class
    return fb.Coupling(
        key, transformer=fb.Affine(), untransformed_dim=1, dim=DIM, cond_dim=COND_DIM, nn_width=4, nn_depth=1
    )


def ours(key=KEY, *, cond_dim: int | None = COND_DIM) -> Any:
    return perturbed(Coupling(key, DIM, AffineUnivariate(), cond_dim=cond_dim, hidden=(4,)), scale=0.3)


def affine(loc=1.0, dim: int | tuple[int, ...] = DIM) -> Any:
    return Affine(jnp.full(dim, loc), 2.0)


def affine_of_flowjax(loc=1.0, dim: int | tuple[int, ...] = DIM) -> Any:
    return fb.Affine(jnp.full(dim, loc), jnp.full(dim, 0.5))


def flow_of_flowjax(key, dim=DIM, cond_dim=None) -> Any:
    flow = coupling_flow(key, base_dist=Normal(jnp.zeros(dim)), cond_dim=cond_dim, flow_layers=2, nn_width=4)
    return flow.bijection


RECIPES: dict[str, Callable[..., Any]] = {
    "layer": lambda **options: Coupling(KEY, DIM, AffineUnivariate(), hidden=(4,), **options),
    "coupling": lambda **options: flows.nsf_coupling(KEY, DIM, num_layers=2, hidden=(16,), **options),
    "maf": lambda **options: flows.maf(KEY, DIM, num_layers=2, hidden=(16,), **options),
    "glow": lambda **options: flows.glow(KEY, DIM, num_layers=2, hidden=(16,), **options),
    "residual": lambda **options: flows.residual(KEY, DIM, num_layers=2, hidden=(16,), **options),
}


def flow_of_ours(name: str, **options) -> Any:
    return perturbed(RECIPES[name](**options), scale=0.1)


# what theirs stand in, and what ours stand in
IN_OURS: dict[str, Callable[[], Any]] = {
    "theirs in Chain": lambda: Chain([ours(), theirs(), affine_of_flowjax()]),
    "theirs in Invert": lambda: Invert(theirs()),
    "theirs in Frozen": lambda: Frozen(theirs()),
    "theirs in Multiscale": lambda: Multiscale([affine_of_flowjax(dim=4), affine_of_flowjax(dim=2)]),
    "theirs in Reshape": lambda: Reshape(affine_of_flowjax(dim=4), (2, 2)),
    "theirs in Partial": lambda: Partial(affine_of_flowjax(dim=2), jnp.array([0, 2]), DIM),
    "theirs in StandardizedCondition": lambda: StandardizedCondition(theirs(), CONDITION, jnp.array([0.5, 3.0])),
}
IN_THEIRS: dict[str, Callable[[], Any]] = {
    "ours in Chain": lambda: fb.Chain([ours(), affine_of_flowjax(), fb.Flip((DIM,))]),
    "ours in Invert": lambda: fb.Invert(ours()),
    "ours in Concatenate": lambda: fb.Concatenate([affine(), fb.Tanh((DIM,))]),
    "ours in Stack": lambda: fb.Stack([affine(), fb.Tanh((DIM,))], axis=1),
    "ours in Vmap": lambda: fb.Vmap(eqx.filter_vmap(affine)(jnp.arange(4.0)), in_axes=eqx.if_array(0)),
    "ours in Vmap, one condition each": lambda: fb.Vmap(ours(), axis_size=4, in_axes_condition=1),
    "ours in EmbedCondition": lambda: fb.EmbedCondition(ours(), lambda raw: raw[:COND_DIM] * raw[-1], (3,)),
    "ours in Reshape": lambda: fb.Reshape(ours(), (DIM, 1), (1, COND_DIM)),
    "ours in Indexed": lambda: fb.Indexed(affine(dim=2), jnp.array([0, 2]), (DIM,)),
    "ours in Sandwich": lambda: fb.Sandwich(ours(), affine()),
    "ours as the transformer of a Coupling": lambda: fb.Coupling(
        KEY, transformer=affine(dim=()), untransformed_dim=1, dim=DIM, nn_width=4, nn_depth=1
    ),
    "ours in paramax's wrappers": lambda: fb.Chain([paramax.non_trainable(ours()), affine()]),
}
SLOW: dict[str, Callable[[], Any]] = {
    "theirs in Scan": lambda: Scan(eqx.filter_vmap(theirs)(KEYS)),
    "ours in Scan": lambda: fb.Scan(eqx.filter_vmap(ours)(KEYS)),
    "ours in NumericalInverse": lambda: fb.NumericalInverse(
        affine(dim=()), root_finder_to_inverter(partial(bisection_search, lower=-1.0, upper=2.0, atol=1e-6))
    ),
    "ours as the transformer of a MaskedAutoregressive": lambda: fb.MaskedAutoregressive(
        KEY, transformer=affine(dim=()), dim=DIM, nn_width=4, nn_depth=1
    ),
    "a flow of theirs": lambda: flow_of_flowjax(KEY, cond_dim=COND_DIM),
    "a flow of theirs in Scan": lambda: Scan(eqx.filter_vmap(partial(flow_of_flowjax, cond_dim=COND_DIM))(KEYS)),
    "a flow of theirs with tails": lambda: perturbed(flows.with_tails(flow_of_flowjax)(KEY, DIM), scale=0.1),
    "a spline flow of ours in Vmap": lambda: fb.Vmap(flow_of_ours("coupling"), axis_size=2),
    "a residual flow of ours in Concatenate": lambda: fb.Concatenate([flow_of_ours("residual"), affine()]),
}


def inputs(bijection) -> tuple[Any, Any]:
    condition = None if bijection.cond_shape is None else jax.random.normal(KEY, bijection.cond_shape)
    return jax.random.normal(jax.random.key(1), bijection.shape), condition


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, id=name) for name, make in (IN_OURS | IN_THEIRS).items()),
        *(pytest.param(make, id=name, marks=pytest.mark.slow) for name, make in SLOW.items()),
    ],
)
def test_laws(make):
    bijection = make()
    x, condition = inputs(bijection)

    @eqx.filter_jit
    def computed(bijection, x, condition):
        y, log_det = bijection.transform_and_log_det(x, condition)
        there = y, log_det, bijection.transform(x, condition)
        back = *bijection.inverse_and_log_det(y, condition), bijection.inverse(y, condition)
        return there, back, jax.jacfwd(lambda x: bijection.transform(x, condition))(x)

    (y, log_det, again), (x_back, log_det_back, x_again), jacobian = computed(bijection, x, condition)
    assert y.shape == x_back.shape == bijection.shape
    assert log_det.shape == log_det_back.shape == ()
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(x_again, x_back)
    np.testing.assert_allclose(x_back, x, atol=1e-5)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian.reshape(x.size, x.size))[1], atol=1e-5)
    np.testing.assert_allclose(log_det_back, -log_det, atol=1e-5)
    assert abs(log_det) > 0.01
    for method in (bijection.transform_and_log_det, bijection.inverse_and_log_det):
        with pytest.raises(ValueError, match="xpected"):
            method(jnp.ones((*bijection.shape, 2)), condition)
        if bijection.cond_shape is not None:
            with pytest.raises(ValueError, match="xpected"):
                method(x, None)
            with pytest.raises(ValueError, match="xpected"):
                method(x, jnp.ones(5))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(theirs, id="layer"),
        pytest.param(SLOW["a flow of theirs in Scan"], id="flows", marks=pytest.mark.slow),
    ],
)
def test_score_is_the_gradient_of_the_log_density(make):
    """Theirs has no score of its own: ours is found by automatic differentiation."""
    bijection = Chain([make(), affine()])

    def log_density(y):
        x, log_det = bijection.inverse_and_log_det(y, CONDITION)
        return -0.5 * jnp.sum(x**2) + log_det

    @jax.jit
    def computed(x):
        y, log_det, score = transform_with_score(bijection, x, -x, CONDITION)
        return (y, log_det), bijection.transform_and_log_det(x, CONDITION), score, jax.grad(log_density)(y)

    got, expected, score, expected_score = computed(X)
    for one, other in zip(got, expected):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(score, expected_score, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [ours, theirs])
def test_a_stack_is_its_layers_one_after_the_other(layer):
    """Of either library, in either library's composition."""
    stack, layers = eqx.filter_vmap(layer)(KEYS), [layer(key) for key in KEYS]

    @jax.jit
    def computed(x):
        made = Chain(layers), Scan(stack), fb.Scan(stack)
        return [bijection.transform_and_log_det(x, CONDITION) for bijection in made]

    first, *others = computed(X)
    for other in others:
        for got, expected in zip(other, first):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_initialisation_from_data_passes_through():
    theirs = affine_of_flowjax()
    data = 5.0 + 2.0 * jax.random.normal(jax.random.key(1), (200, DIM))
    actnorm, same = initialize_from_data(Chain([ActNorm(DIM), theirs]), data).bijections
    assert eqx.tree_equal(same, theirs)
    batch = np.asarray(jax.jit(jax.vmap(Chain([actnorm, same]).inverse))(data))
    np.testing.assert_allclose(batch.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(batch.std(0), 1.0, atol=1e-5)


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
        return draws, theirs.sample(key, (5,), condition), log_prob, theirs.log_prob(draws, condition)

    draws, again, log_prob, log_prob_again = computed(theirs, jax.random.key(1))
    assert draws.shape == (5, *expected.batch_shape, DIM)
    np.testing.assert_allclose(again, draws, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_prob_again, log_prob, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(expected.log_prob(draws), log_prob, rtol=1e-4, atol=1e-4)


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
