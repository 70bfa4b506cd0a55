"""What users get wrong is a ValueError that says expected and got; what they get right in other words works."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows import flows
from numpyro_flows.bijections import (
    AbstractBijection,
    Affine,
    AffineUnivariate,
    Chain,
    Coupling,
    Frozen,
    Permutation,
    RationalQuadraticSpline,
    TriangularAffine,
    transform_with_score,
)
from numpyro_flows.bijections.compose import trained_and_fixed
from tests.bijections.cases import CASES, COND_DIM, FLOWS
from tests.bijections.common import drawn, made

KEY = jax.random.key(0)
# neither errors nor types depend on the dimension: a recipe is tried once without a condition and once with one
FREE, CONDITIONAL = ([n for n in CASES if n not in FLOWS or n.endswith(end)] for end in (" 2d", " 5d conditional"))
# made of layers that others have, and take long to trace
DEAR = ("gaussianization", "coupling_gaussianization", "tarflow of blocks", "mixture coupling", "multiscale layers")


def traced_coupling(cond_dim):
    return eqx.filter_eval_shape(lambda: Coupling(KEY, 2, AffineUnivariate(), cond_dim=cond_dim))


def score(bijection, x, condition=None):
    return transform_with_score(bijection, x, x, condition)


METHODS = (AbstractBijection.transform_and_log_det, AbstractBijection.inverse_and_log_det, score)


def shape_and_type(dims, dtype="float32"):
    return None if dims is None else jax.ShapeDtypeStruct(dims, dtype)


@cache
def traced(name, double=False):
    """A case of arrays that have a shape and a type, and no values: nothing of it is computed."""
    with jax.enable_x64(double):
        return eqx.filter_eval_shape(CASES[name])


@pytest.mark.parametrize(
    "name",
    [*CONDITIONAL, *(pytest.param(n, marks=pytest.mark.slow) for n in FREE if n not in CONDITIONAL)],
)
def test_wrong_shapes_and_missing_conditions_are_errors(name):
    bijection = traced(name)
    x, condition = shape_and_type(bijection.shape), shape_and_type(bijection.cond_shape)
    for method in METHODS:
        with pytest.raises(ValueError, match=r"expected an event of shape \(.*\), got \(4,.*\); batch with jax.vmap"):
            eqx.filter_eval_shape(method, bijection, shape_and_type((4, *bijection.shape)), condition)
        if condition is not None:
            expected = rf"expected a condition of shape \({condition.size},\), got "
            with pytest.raises(ValueError, match=expected + "None"):
                eqx.filter_eval_shape(method, bijection, x)
            with pytest.raises(ValueError, match=expected + r"\(7,\)"):
                eqx.filter_eval_shape(method, bijection, x, shape_and_type((7,)))


@pytest.mark.parametrize(
    "name", ["affine", "coupling affine", pytest.param("scan", marks=pytest.mark.slow), "realnvp 2d"]
)
def test_a_condition_that_nobody_needs_is_ignored(name):
    bijection = made(CASES[name], scale=0.05) if name == "scan" else drawn(CASES[name], scale=0.3)
    x = np.ones(bijection.shape)

    @eqx.filter_jit
    def with_and_without(bijection, condition):
        return [(method(bijection, x, condition), method(bijection, x)) for method in METHODS]

    for pair in with_and_without(bijection, np.ones(7)):
        for with_condition, without in zip(*pair):
            np.testing.assert_array_equal(with_condition, without)


def test_a_chain_gives_the_condition_to_those_that_need_it():
    free, conditional = (drawn(CASES[name], scale=0.3) for name in ("coupling affine", "coupling affine conditional"))

    @eqx.filter_jit
    def of_each_and_of_the_chain(free, conditional, x, condition):
        x1, log_det1, score1 = transform_with_score(free, x, -x)
        y, log_det2, score = transform_with_score(conditional, x1, score1, condition)
        chain = Chain([free, conditional])
        with_score = transform_with_score(chain, x, -x, condition)
        return (y, log_det1 + log_det2, score), chain.transform_and_log_det(x, condition), with_score

    expected, *of_chain = of_each_and_of_the_chain(free, conditional, np.ones(3), np.ones(COND_DIM))
    for outputs in of_chain:
        for a, b in zip(outputs, expected):
            np.testing.assert_allclose(a, b, rtol=8 * np.finfo("float32").eps)


@pytest.mark.parametrize("name", [n for n in CASES if n not in FLOWS])
def test_integers_are_numbers(name):
    bijection = traced(name)
    x, condition = (shape_and_type(shape, "int32") for shape in (bijection.shape, bijection.cond_shape))
    for method in METHODS[:2]:
        outputs = eqx.filter_eval_shape(method, bijection, x, condition)
        assert {a.dtype for a in outputs} == {np.dtype("float32")}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * n.startswith(DEAR))
        for n in CONDITIONAL
        if n not in ("identity", "permutation", "dct")
    ],
)
def test_double_parameters_take_single_events(name, x64):
    bijection = traced(name, double=True)
    x, condition = shape_and_type(bijection.shape), shape_and_type(bijection.cond_shape)
    # scores of flows are those of their layers
    for method in METHODS[:2] if name in FLOWS else METHODS:
        outputs = eqx.filter_eval_shape(method, bijection, x, condition)
        assert {a.dtype for a in outputs} == {np.dtype("float64")}


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: TriangularAffine(jnp.zeros(3), jnp.ones((3, 2))), r"tril \(dim, dim\), got \(3,\) and \(3, 2\)"),
        (lambda: TriangularAffine(0.0, 1.0), r"loc \(dim,\) and tril \(dim, dim\), got \(\) and \(\)"),
        (lambda: Permutation([0, 0, 1]), r"each of 0 \.\.\. dim - 1 once, got \[0 0 1\]"),
        (lambda: Permutation(np.array([1, 2])), r"each of 0 \.\.\. dim - 1 once, got \[1 2\]"),
        (lambda: Permutation(jnp.array([[0, 1], [1, 0]])), r"each of 0 \.\.\. dim - 1 once, got"),
        (lambda: Chain([]), r"bijections of one shape, got \[\]"),
        (lambda: Chain([Affine(0.0), Affine(jnp.zeros(2))]), r"bijections of one shape, got \[\(\), \(2,\)\]"),
        (
            lambda: Chain([traced_coupling(cond_dim) for cond_dim in (1, 2)]),
            r"one shape of condition, got \[\(1,\), \(2,\)\]",
        ),
        (lambda: Coupling(KEY, 0, AffineUnivariate()), "dim expected at least 1, got 0"),
        (lambda: AffineUnivariate(0.0), r"max_log_scale expected a number in \(0, inf\), got 0"),
        (lambda: RationalQuadraticSpline(0), "num_bins expected from 1 to 999, got 0"),
        (lambda: RationalQuadraticSpline(1000), "num_bins expected from 1 to 999, got 1000"),
        (lambda: RationalQuadraticSpline(bound=0.0), r"bound expected a number in \(0, inf\), got 0"),
        (lambda: flows.realnvp(KEY, -1), "dim expected at least 1, got -1"),
        (lambda: flows.nsf_coupling(KEY, 2, num_layers=0), "num_layers expected at least 1, got 0"),
    ],
)
def test_impossible_arguments_are_errors(construct, message):
    with pytest.raises(ValueError, match=message):
        construct()


def test_frozen_is_the_same_map_without_gradients():
    inner = TriangularAffine(np.array([1.0, -2.0]), np.array([[2.0, 0.0], [0.5, 3.0]]))
    x = np.array([0.3, -0.7])

    @eqx.filter_jit
    def outputs_and_gradient(bijection):
        gradient = eqx.filter_grad(lambda b: b.transform_and_log_det(x)[0].sum() + b.inverse_and_log_det(x)[1])
        return [method(bijection, x) for method in METHODS], gradient(bijection)

    (got, gradient), (expected, moving) = outputs_and_gradient(Frozen(inner)), outputs_and_gradient(inner)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_array_equal(a, b)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(moving))


def test_what_is_frozen_and_what_is_no_number_is_not_trained():
    bijection = Chain([Permutation([1, 0]), Affine(jnp.zeros(2)), Frozen(Chain([Affine(jnp.ones(2))]))])
    trained, fixed = trained_and_fixed(bijection)
    assert len(jax.tree.leaves(trained)) == len(jax.tree.leaves(eqx.filter(bijection.bijections[1], eqx.is_array)))
    whole = jax.tree.leaves(eqx.combine(trained, fixed))
    assert all(a is b for a, b in zip(whole, jax.tree.leaves(bijection), strict=True))
