"""Which coordinates the levels of a `Multiscale` act on, and what it makes of them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.bijections import ActNorm, Affine, AffineUnivariate, Chain, Coupling, Scan, transform_with_score
from numpyro_flows.bijections.multiscale import Multiscale
from tests.bijections.cases import COND_DIM
from tests.bijections.common import drawn

DIM = 8
KEY = jax.random.PRNGKey(0)
X = np.random.default_rng(0).normal(size=DIM)
CONDITION = np.array([0.5, -1.0])


def multiscale() -> Multiscale:
    """Three levels that are not the identity, the one in the middle conditional."""

    def level(dim, cond_dim=None):
        return Chain([ActNorm(dim), Coupling(KEY, dim, AffineUnivariate(), hidden=(4,), cond_dim=cond_dim)])

    return drawn(lambda: Multiscale([level(DIM), level(DIM // 2, COND_DIM), ActNorm(DIM // 4)]), scale=0.5)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"], indirect=True)
def test_laws(dtype):
    def log_density(bijection, y):
        x, log_det = bijection.inverse_and_log_det(y, CONDITION)
        return -0.5 * jnp.sum(x**2) + log_det

    @eqx.filter_jit
    def laws(bijection, x):
        y, log_det, score = transform_with_score(bijection, x, -x, CONDITION)
        jacobian = jax.jacfwd(bijection.transform)(x, CONDITION)
        forward = bijection.transform_and_log_det(x, CONDITION)
        return (
            (y, log_det),
            forward,
            bijection.inverse_and_log_det(y, CONDITION),
            jacobian,
            score,
            jax.grad(log_density, 1)(bijection, y),
        )

    with_score, forward, (x_back, log_det_back), jacobian, score, expected_score = laws(multiscale(), X)
    y, log_det = forward
    tolerance = 100 * np.finfo(dtype).eps  # of a condition of about 10
    assert y.dtype == log_det.dtype == score.dtype == dtype
    for a, b in zip(with_score, forward):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    np.testing.assert_allclose(x_back, X, rtol=0, atol=tolerance)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(np.float64(jacobian))[1], rtol=0, atol=tolerance)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=0, atol=tolerance)
    np.testing.assert_allclose(score, expected_score, rtol=0, atol=tolerance)
    assert abs(log_det) > 0.1
    assert np.linalg.cond(jacobian) < 20


def test_the_last_levels_come_first_and_keep_places(x64):
    @eqx.filter_jit
    def by_levels_and_as_one(bijection, x):
        first, second, third = bijection.levels
        middle = x.at[::4].set(third.transform(x[::4]))
        middle = middle.at[::2].set(second.transform(middle[::2], CONDITION))
        return first.transform(middle), bijection.transform(x, CONDITION)

    by_levels, as_one = by_levels_and_as_one(multiscale(), jnp.asarray(X))
    np.testing.assert_allclose(as_one, by_levels, rtol=1e-13)


def test_the_second_level_leaves_half_of_the_coordinates():
    x, condition = (np.asarray(values, "float32") for values in (X, CONDITION))

    @eqx.filter_jit
    def outputs(first, second, x):
        alone = Multiscale([Affine(jnp.zeros(DIM)), second])
        below, both_below = first.inverse(x), Multiscale([first, second]).inverse(x, condition)
        return [alone.transform(x, condition), alone.inverse(x, condition)], below, both_below

    first, second, *_ = multiscale().levels
    of_second, below, got = outputs(first, second, x)
    for y in np.asarray(of_second):
        np.testing.assert_array_equal(y[1::2], x[1::2])
        assert (np.abs(y[::2] - x[::2]) > 1e-3).all()
    # and half of what the first level gives towards the base is what the base gets
    got, below = np.asarray(got), np.asarray(below)
    np.testing.assert_allclose(got[1::2], below[1::2], rtol=1e-6)
    assert (np.abs(got[::2] - below[::2]) > 1e-3).all()


def test_levels_of_the_identity_are_the_identity():
    bijection = Multiscale([Affine(jnp.zeros(dim)) for dim in (DIM, 4, 2, 1)])
    methods: list[Any] = [bijection.transform_and_log_det, bijection.inverse_and_log_det]
    for method in methods:
        y, log_det = eqx.filter_jit(method)(X)
        np.testing.assert_array_equal(y, np.float32(X))
        assert log_det == 0


def test_a_scanned_stack(x64):
    def layer(key):
        return Multiscale([Coupling(key, dim, AffineUnivariate(), hidden=(4,)) for dim in (DIM, DIM // 2)])

    scan = drawn(lambda: Scan(eqx.filter_vmap(layer)(jax.random.split(KEY, 2))), scale=0.5)

    @eqx.filter_jit
    def there_and_back(scan, x):
        y, log_det = scan.transform_and_log_det(x)
        return log_det, *scan.inverse_and_log_det(y)

    log_det, x, log_det_back = there_and_back(scan, X)
    np.testing.assert_allclose(x, X, rtol=1e-12)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-12)
    assert abs(log_det) > 0.1


@pytest.mark.parametrize("dims", [(), (5, 2), (6, 3, 1), (4, 4), (4, 3), (4, 2, 2), (1, 0)])
def test_sizes_that_do_not_halve_are_errors(dims):
    shapes = (
        str([(dim,) for dim in dims]).replace("(", r"\(").replace(")", r"\)").replace("[", r"\[").replace("]", r"\]")
    )
    with pytest.raises(
        ValueError, match=rf"levels of shapes \(dim,\), \(dim / 2,\), \(dim / 4,\), \.\.\., got {shapes}"
    ):
        Multiscale([Affine(np.zeros(dim)) for dim in dims])


def test_events_that_are_no_vectors_are_errors():
    with pytest.raises(ValueError, match=r"levels of shapes .*, got \[\(2, 2\)\]"):
        Multiscale([Affine(jnp.zeros((2, 2)))])


def test_conditions_of_two_shapes_are_an_error():
    def construct():
        return Multiscale(
            [Coupling(KEY, 4, AffineUnivariate(), cond_dim=1), Coupling(KEY, 2, AffineUnivariate(), cond_dim=2)]
        )

    with pytest.raises(ValueError, match=r"one shape of condition, got \[\(1,\), \(2,\)\]"):
        eqx.filter_eval_shape(construct)
