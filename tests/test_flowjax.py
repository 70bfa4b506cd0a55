"""A FlowJAX bijection stands wherever one of ours does, and one of ours in FlowJAX's compositions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
import paramax
import pytest
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from flowjax.root_finding import bisection_search, root_finder_to_inverter

from numpyro_flows import flows
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
