"""Rotations are orthogonal, and find what they are to find."""

import numpy as np
import pytest

from numpyro_flows.bijections import Cayley, Householder
from numpyro_flows.gaussianization import ica, most_informative, pca
from numpyro_flows.gaussianization.entropies import divergences_from_normal
from numpyro_flows.gaussianization.rotations import find_rotation, nearest_to_identity, random

RNG = np.random.default_rng(0)
KINDS = ("best", "pca", "ica", "random")


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_are_rotations(kind, dim):
    data = np.random.default_rng(0).exponential(size=(300, dim))
    matrix = find_rotation(kind, data, np.random.default_rng(0))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrix), 1.0, rtol=1e-12)


def test_pca_decorrelates():
    data = RNG.normal(size=(1_000, 3)) @ RNG.normal(size=(3, 3))
    covariance = np.cov(data @ pca(data).T, rowvar=False)
    np.testing.assert_allclose(covariance, np.diag(np.diagonal(covariance)), atol=1e-12)


@pytest.mark.parametrize("dim", [2, 4])
def test_ica_finds_independent_sources(dim):
    num = 4_000
    rotation = random(dim, RNG)
    sources = RNG.uniform(-np.sqrt(3), np.sqrt(3), size=(num, dim))
    found = nearest_to_identity(ica(sources @ rotation.T, RNG) @ rotation)
    # angles have a standard error of a few over the root of the number
    np.testing.assert_allclose(found, np.eye(dim), atol=5 / np.sqrt(num))


def test_most_informative_is_no_worse_than_pca_and_ica():
    data = RNG.uniform(size=(1_000, 3)) @ RNG.normal(size=(3, 3))
    data = (data - data.mean(0)) / data.std(0)

    def gain(matrix):
        return divergences_from_normal(data @ matrix.T).mean(0).sum()

    best = gain(most_informative(data, np.random.default_rng(0)))
    assert best >= gain(pca(data))
    assert best >= gain(ica(data, np.random.default_rng(0))) - 1e-3  # from another start


@pytest.mark.parametrize("cls", [Householder, Cayley])
@pytest.mark.parametrize(
    "dim", [pytest.param(1, marks=pytest.mark.slow), 2, 5, pytest.param(6, marks=pytest.mark.slow)]
)
def test_trainable_rotations_of_a_matrix(cls, dim, x64):
    matrix = nearest_to_identity(random(dim, RNG))
    np.testing.assert_allclose(cls.from_matrix(matrix).matrix(), matrix, atol=1e-12)
    np.testing.assert_allclose(cls.from_matrix(np.eye(dim)).matrix(), np.eye(dim), atol=1e-12)


@pytest.mark.parametrize(
    ("cls", "matrix", "message"),
    [
        (Householder, np.ones((2, 3)), r"Householder expected a square matrix, got shape \(2, 3\)"),
        (Householder, 2 * np.eye(2), "misses orthogonality by 3"),
        (Cayley, np.diag([1.0, -1.0]), "has determinant -1"),
        (Cayley, np.diag([-1.0, -1.0]), "without an eigenvalue of -1"),
    ],
)
def test_what_is_no_rotation_is_an_error(cls, matrix, message):
    with pytest.raises(ValueError, match=message):
        cls.from_matrix(matrix)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match=r"rotation expected one of \['best', 'pca', 'ica', 'random'\], got 'varimax'"):
        find_rotation("varimax", np.ones((3, 2)), RNG)  # pyright: ignore
