"""What users get wrong is a ValueError that says expected and got; what they get right in other words works."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows import flows
from numpyro_flows.bijections import (
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
from tests.bijections.cases import CASES, COND_DIM, FLOWS, perturbed

KEY = jax.random.key(0)
TRACED = [n for n in CASES if n not in FLOWS or " 2d" in n]  # as types do not depend on the dimension


def methods(bijection):
    def score(x, condition=None):
        return transform_with_score(bijection, x, x, condition)

    return bijection.transform_and_log_det, bijection.inverse_and_log_det, score


@pytest.mark.parametrize("name", CASES)
def test_wrong_shapes_and_missing_conditions_are_errors(name):
    bijection = CASES[name]()
    x = jnp.ones(bijection.shape)
    condition = None if bijection.cond_shape is None else jnp.ones(bijection.cond_shape)
    for method in methods(bijection):
        with pytest.raises(ValueError, match=r"expected an event of shape \(.*\), got \(4,.*\); batch with jax.vmap"):
            method(jnp.ones((4, *bijection.shape)), condition)
        if condition is not None:
            expected = rf"expected a condition of shape \({condition.size},\), got "
            with pytest.raises(ValueError, match=expected + "None"):
                method(x)
            with pytest.raises(ValueError, match=expected + r"\(7,\)"):
                method(x, jnp.ones(7))


@pytest.mark.parametrize("name", ["affine", "coupling affine", "scan", "realnvp 5d"])
def test_a_condition_that_nobody_needs_is_ignored(name):
    bijection = perturbed(CASES[name]())
    x = jnp.ones(bijection.shape)
    for method in methods(bijection):
        for with_condition, without in zip(method(x, jnp.ones(7)), method(x)):
            np.testing.assert_array_equal(with_condition, without)


def test_a_chain_gives_the_condition_to_those_that_need_it():
    free, conditional = perturbed(CASES["coupling affine"]()), perturbed(CASES["coupling affine conditional"]())
    x, condition = jnp.ones(3), jnp.ones(COND_DIM)
    x1, log_det1, score1 = transform_with_score(free, x, -x)
    y, log_det2, score = transform_with_score(conditional, x1, score1, condition)
    chain = Chain([free, conditional])
    np.testing.assert_array_equal(chain.transform_and_log_det(x, condition)[0], y)
    for got, expected in zip(transform_with_score(chain, x, -x, condition), (y, log_det1 + log_det2, score)):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", TRACED)
def test_integers_are_numbers(name):
    bijection = CASES[name]()
    condition = None if bijection.cond_shape is None else np.ones(bijection.cond_shape, int)
    for method in methods(bijection)[:2]:
        outputs = eqx.filter_eval_shape(method, np.ones(bijection.shape, int), condition)
        assert {a.dtype for a in outputs} == {np.dtype("float32")}


@pytest.mark.parametrize("name", [n for n in TRACED if n not in ("permutation", "dct")])
def test_double_parameters_take_single_events(name, x64):
    bijection = CASES[name]()
    condition = None if bijection.cond_shape is None else np.ones(bijection.cond_shape, "float32")
    for method in methods(bijection):
        outputs = eqx.filter_eval_shape(method, np.ones(bijection.shape, "float32"), condition)
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
            lambda: Chain([Coupling(KEY, 2, AffineUnivariate(), cond_dim=n) for n in (1, 2)]),
            r"one shape of condition, got \[\(1,\), \(2,\)\]",
        ),
        (lambda: Coupling(KEY, 0, AffineUnivariate()), r"dim >= 1, got 0"),
        (lambda: AffineUnivariate(0.0), r"max_log_scale > 0, got 0"),
        (lambda: RationalQuadraticSpline(0), r"1 to 999 bins, got 0"),
        (lambda: RationalQuadraticSpline(1000), r"1 to 999 bins, got 1000"),
        (lambda: RationalQuadraticSpline(bound=0.0), r"bound > 0, got 0"),
        (lambda: flows.realnvp(KEY, 0), r"dim >= 1 and num_layers >= 1, got dim=0"),
        (lambda: flows.nsf_coupling(KEY, 2, num_layers=0), r"dim >= 1 and num_layers >= 1, got dim=2 and num_layers=0"),
    ],
)
def test_impossible_arguments_are_errors(construct, message):
    with pytest.raises(ValueError, match=message):
        construct()


def test_frozen_is_the_same_map_without_gradients():
    inner = TriangularAffine(jnp.array([1.0, -2.0]), jnp.array([[2.0, 0.0], [0.5, 3.0]]))
    x, score = jnp.array([0.3, -0.7]), jnp.array([1.0, 2.0])
    for call in ("transform_and_log_det", "inverse_and_log_det"):
        for got, want in zip(getattr(Frozen(inner), call)(x), getattr(inner, call)(x)):
            np.testing.assert_array_equal(got, want)
    for got, want in zip(transform_with_score(Frozen(inner), x, score), transform_with_score(inner, x, score)):
        np.testing.assert_array_equal(got, want)
    gradient = eqx.filter_grad(lambda b: b.transform_and_log_det(x)[0].sum() + b.inverse_and_log_det(x)[1])(
        Frozen(inner)
    )
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))
