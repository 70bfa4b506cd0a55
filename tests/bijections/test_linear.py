"""What the laws do not see: which matrix a linear map is, and that its log-determinant is exact."""

from functools import cache
from operator import itemgetter

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from numpyro_flows.bijections import Chain, MatrixExponential, Scan
from numpyro_flows.bijections.linear import DCT, Cayley, Householder, LULinear, QRLinear
from tests.bijections.common import drawn, made, single_is_slow

KEY = jax.random.PRNGKey(0)
TRAINED = [LULinear, Householder, QRLinear, Cayley, MatrixExponential]
ORTHOGONAL = {
    "householder": Householder,
    "many reflections": lambda key, dim: Householder(key, dim, 4 * dim),
    "cayley": Cayley,
    "dct": lambda key, dim: DCT(dim),
}


@cache
def starts(dtype: np.dtype):
    """A map of each kind, in five dimensions; `dtype` is that of the test."""
    return made(lambda: [linear(KEY, 5) for linear in TRAINED])


def trained(linear, dim: int, *options):
    """A linear map that is not the one it starts as."""
    return drawn(lambda: linear(KEY, dim, *options), scale=0.5)


@eqx.filter_jit
def _columns(bijection, inverse: bool):
    method = bijection.inverse_and_log_det if inverse else bijection.transform_and_log_det
    return jax.vmap(method)(np.eye(*bijection.shape))


def matrix(bijection, *, inverse: bool = False):
    """The matrix of a linear map, and the log-determinant that it states."""
    columns, log_det = _columns(bijection, inverse)
    assert np.ptp(log_det) == 0
    return np.asarray(columns, dtype="float64").T, float(log_det[0])


def rounding(dtype: np.dtype, matrix: np.ndarray) -> float:
    """Of a product of a few matrices of this condition, with a sum of `dim` terms in each element."""
    return 8 * len(matrix) * np.finfo(dtype).eps * np.linalg.cond(matrix)


@single_is_slow
@pytest.mark.parametrize("i", range(len(TRAINED)), ids=[linear.__name__ for linear in TRAINED])
def test_starts_as_the_identity(i, dtype):
    got, log_det = matrix(starts(dtype)[i])
    np.testing.assert_allclose(got, np.eye(5), rtol=0, atol=rounding(dtype, np.eye(5)))
    assert log_det == 0


@single_is_slow
@pytest.mark.parametrize("linear", TRAINED)
def test_inverse_and_log_det(linear, dtype):
    bijection = trained(linear, 5)
    got, log_det = matrix(bijection)
    back, log_det_back = matrix(bijection, inverse=True)
    tolerance = rounding(dtype, got)
    sign, expected = np.linalg.slogdet(got)
    assert sign == 1
    assert abs(log_det - expected) <= tolerance
    assert log_det_back == -log_det
    assert np.linalg.norm(back @ got - np.eye(5), 2) <= tolerance
    assert np.linalg.norm(got - np.eye(5)) > 0.5  # not what it started as


@single_is_slow
@pytest.mark.parametrize("dim", [1, 5])
@pytest.mark.parametrize("name", ORTHOGONAL)
def test_orthogonal(name, dim, dtype):
    got, log_det = matrix(trained(ORTHOGONAL[name], dim))
    assert np.abs(got.T @ got - np.eye(dim)).max() <= rounding(dtype, np.eye(dim))
    assert log_det == 0


def test_lu_is_a_product_of_triangles(x64):
    bijection = trained(LULinear, 5)
    got, _ = matrix(bijection)
    minors = [np.linalg.det(got[:k, :k]) for k in range(1, 6)]
    np.testing.assert_allclose(np.log(minors), np.cumsum(np.asarray(bijection.log_diagonal)), rtol=1e-12)


def test_qr_is_a_rotation_of_a_triangle(x64):
    bijection = trained(QRLinear, 5)
    got, _ = matrix(bijection)
    upper = matrix(bijection.rotation)[0].T @ got
    np.testing.assert_allclose(np.tril(upper, -1), 0.0, atol=1e-14)
    np.testing.assert_allclose(np.diagonal(upper), np.exp(bijection.log_diagonal), rtol=1e-12)
    np.testing.assert_allclose(got.T @ got, upper.T @ upper, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("num_reflections", [2, 20])
def test_householder_is_its_reflections_one_after_another(num_reflections, x64):
    bijection = trained(Householder, 5, num_reflections)
    expected = np.eye(5)
    for v in np.asarray(bijection.vectors):
        expected = expected @ (np.eye(5) - 2 * np.outer(v, v) / (v @ v))
    np.testing.assert_allclose(matrix(bijection)[0], expected, rtol=0, atol=1e-14)


def test_number_of_reflections():
    assert [len(eqx.filter_eval_shape(Householder, KEY, dim).vectors) for dim in (1, 2, 3, 4, 5)] == [2, 2, 2, 4, 4]


def test_cayley_of_a_plane_turns_by_twice_the_arctangent(x64):
    bijection = eqx.tree_at(lambda b: b.upper, trained(Cayley, 2), jnp.array([[0.0, 0.7], [0.0, 0.0]]))
    angle = 2 * np.arctan(0.7)
    expected = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    np.testing.assert_allclose(matrix(bijection)[0], expected, rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-3, 0.5, 5.0])
def test_matrix_exponential(scale, x64):
    bijection = drawn(lambda: MatrixExponential(KEY, 5), scale)
    np.testing.assert_allclose(matrix(bijection)[0], expm(np.asarray(bijection.weight)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dim", [1, 4, 5])
def test_dct_is_its_cosines(dim, x64):
    k, n = np.arange(dim)[:, None], np.arange(dim)[None, :]
    expected = np.sqrt(np.where(k == 0, 1, 2) / dim) * np.cos(np.pi * k * (2 * n + 1) / (2 * dim))
    np.testing.assert_allclose(matrix(DCT(dim))[0], expected, atol=1e-14)


def test_gradients_leave_the_start(x64):
    """The equal pairs of reflections separate, and no matrix is stuck at zero."""
    x = np.arange(1.0, 6.0)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(bijection):
        return jnp.sum(jnp.cos(x) * bijection.transform_and_log_det(x)[0])

    for leaf in jax.tree.leaves(gradient(Chain(starts(np.dtype("float64"))))):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0.1


@pytest.mark.slow
def test_a_scanned_stack_is_the_product_of_its_matrices(x64):
    def layer(key):
        return Chain([*(linear(key, 3) for linear in TRAINED), DCT(3)])

    layers = drawn(lambda: eqx.filter_vmap(layer)(jax.random.split(KEY, 3)), scale=0.3)
    arrays, static = eqx.partition(layers, eqx.is_array)
    each = [matrix(eqx.combine(jax.tree.map(itemgetter(i), arrays), static)) for i in range(3)]
    got, log_det = matrix(Scan(layers))
    expected = each[2][0] @ each[1][0] @ each[0][0]
    assert np.linalg.norm(got - expected, 2) <= rounding(np.dtype("float64"), expected) * np.linalg.norm(expected, 2)
    np.testing.assert_allclose(log_det, sum(log_det for _, log_det in each), rtol=1e-13)
    assert np.linalg.norm(each[1][0] - each[0][0]) > 0.5


@pytest.mark.parametrize("linear", [*TRAINED, lambda key, dim: DCT(dim)])
def test_no_dimension_is_an_error(linear):
    with pytest.raises(ValueError, match="dim expected at least 1, got 0"):
        linear(KEY, 0)


@pytest.mark.parametrize("num_reflections", [-2, 0, 3])
def test_reflections_that_are_no_rotation_are_an_error(num_reflections):
    with pytest.raises(ValueError, match=rf"expected an even num_reflections >= 2, got {num_reflections}"):
        Householder(KEY, 3, num_reflections)
