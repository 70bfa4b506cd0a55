"""Information measures against closed forms and quadrature, on data that are Gaussian and that are not.

What is allowed is three standard errors, which the estimates state themselves, and a bias: neighbours see a density
that varies within their distance too smooth.
"""

import jax
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import digamma, gammaln
from scipy.stats import norm

from benchmarks.flows.zoo import two_moons
from numpyro_flows.gaussianization import (
    Estimate,
    entropy,
    kl_divergence,
    mutual_information,
    negentropy,
    total_correlation,
)

KEY = jax.random.key(0)
NUM = 2_000
BIAS = 0.02  # nats
SEEDS = pytest.mark.parametrize("seed", [0, 1])
# the quick suite has those measures of a uniform square whose fits share what they compile


def is_right(estimate: Estimate, exact: float, bias: float = BIAS) -> bool:
    assert 0 < estimate.se < 0.1
    return abs(estimate.value - exact) < 3 * estimate.se + bias


CORRELATED = np.array([[1.0, 0.7, 0.2], [0.7, 1.0, 0.0], [0.2, 0.0, 1.0]])


@pytest.mark.slow
def test_gaussian(x64):
    rng = np.random.default_rng(0)
    scale = np.array([2.0, 0.5, 1.0])
    data = rng.multivariate_normal(np.ones(3), CORRELATED, NUM) * scale
    half_log_det = 0.5 * np.linalg.slogdet(CORRELATED)[1]
    assert is_right(entropy(KEY, data), 1.5 * (1 + np.log(2 * np.pi)) + half_log_det + np.log(scale).sum())
    assert is_right(total_correlation(KEY, data), -half_log_det)
    assert is_right(negentropy(KEY, data), 0.0)
    exact = -half_log_det + 0.5 * np.log(1 - 0.2**2)  # of the second coordinate with the two others
    assert is_right(mutual_information(KEY, data[:, 1:2], data[:, ::2]), exact)


def square(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.0, 3.0, size=(NUM, 2))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_uniform(seed, x64):
    data = square(seed)
    assert is_right(entropy(KEY, data), 2 * np.log(4.0))
    assert is_right(total_correlation(KEY, data), 0.0)
    assert is_right(negentropy(KEY, data), np.log(2 * np.pi * np.e / 12))


@pytest.mark.slow
@SEEDS
def test_coordinates_of_a_square_are_independent(seed, x64):
    data = square(seed)
    assert is_right(mutual_information(KEY, data[:, :1], data[:, 1:]), 0.0)


@pytest.mark.slow
@SEEDS
def test_rotated_uniform(seed, x64):
    """On a square that stands on its corner; the marginals are triangles, of entropy `1/2 + log(half of the base)`."""
    data = (
        np.random.default_rng(seed).uniform(-1.0, 1.0, size=(NUM, 2)) @ np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2)
    )
    assert is_right(total_correlation(KEY, data), 2 * (0.5 + np.log(np.sqrt(2))) - 2 * np.log(2), bias=0.03)


def student_entropy(dim: int, df: float) -> float:
    """Of a multivariate Student's t with the identity for its scale matrix."""
    half, whole = df / 2, (df + dim) / 2
    log_norm = gammaln(whole) - gammaln(half) - 0.5 * dim * np.log(df * np.pi)
    return -log_norm + whole * (digamma(whole) - digamma(half))


@pytest.mark.slow
@SEEDS
def test_student(seed, x64):
    """No coordinate is correlated with another, and yet they are not independent."""
    rng, df = np.random.default_rng(seed), 5.0
    data = rng.normal(size=(NUM, 2)) / np.sqrt(rng.chisquare(df, size=(NUM, 1)) / df)
    exact = student_entropy(2, df)
    assert is_right(entropy(KEY, data), exact)
    assert is_right(total_correlation(KEY, data), 2 * student_entropy(1, df) - exact)
    gaussian = 1 + np.log(2 * np.pi) + np.log(df / (df - 2))
    assert is_right(negentropy(KEY, data), gaussian - exact, bias=0.03)


SD = 0.3


def along_the_diagonal(rng) -> np.ndarray:
    """Two narrow Gaussians: one coordinate tells the other's sign."""
    return rng.choice([-1.0, 1.0], size=(NUM, 1)) + SD * rng.normal(size=(NUM, 2))


def entropies_along_the_diagonal() -> tuple[float, float]:
    """Of one coordinate, and of both."""

    def quadrature(place):
        def integrand(u):
            density = 0.5 * (norm.pdf(u, -place, SD) + norm.pdf(u, place, SD))
            return -density * np.log(density)

        return quad(integrand, -5, 5, limit=200)[0]

    across = 0.5 * np.log(2 * np.pi * np.e * SD**2)
    return quadrature(1.0), quadrature(np.sqrt(2)) + across


@pytest.mark.slow
def test_mixture_of_gaussians(x64):
    data = along_the_diagonal(np.random.default_rng(0))
    marginal, joint = entropies_along_the_diagonal()
    assert is_right(total_correlation(KEY, data), 2 * marginal - joint)
    assert is_right(mutual_information(KEY, data[:, :1], data[:, 1:]), 2 * marginal - joint)


@pytest.mark.slow
def test_two_moons(x64):
    data = two_moons(np.random.default_rng(0), 3_000)
    assert abs(total_correlation(KEY, data).value - 0.87) < 0.05


def test_kl_divergence_of_gaussians(x64):
    rng = np.random.default_rng(0)
    x = 0.5 + 0.8 * rng.normal(size=(NUM, 2))
    y = rng.normal(size=(NUM, 2))
    exact = 2 * (0.5 * (0.8**2 + 0.5**2 - 1) - np.log(0.8))
    assert is_right(kl_divergence(KEY, x, y), exact, bias=0.03)


@pytest.mark.slow
def test_kl_divergence_of_two_samples_of_one_distribution_is_zero(x64):
    x, y = np.random.default_rng(0).normal(size=(2, NUM, 2))
    assert is_right(kl_divergence(KEY, x, y), 0.0, bias=0.03)


@pytest.mark.slow
def test_kl_divergence_of_a_mixture_from_its_gaussian(x64):
    """Is the negentropy of the mixture, if what it is compared with is the Gaussian of its moments."""
    rng = np.random.default_rng(0)
    covariance = np.ones((2, 2)) + SD**2 * np.eye(2)
    y = rng.multivariate_normal(np.zeros(2), covariance, NUM)
    exact = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1] - entropies_along_the_diagonal()[1]
    assert is_right(kl_divergence(KEY, along_the_diagonal(rng), y), exact, bias=0.05)


@pytest.mark.slow
def test_standard_errors_are_the_deviations_of_estimates(x64):
    """Over samples; the deviation of 16 estimates is known within a factor of 1.7, but once in a hundred."""
    estimates = []
    for seed in range(16):
        data = np.random.default_rng(seed).multivariate_normal(np.zeros(2), [[1.0, 0.6], [0.6, 1.0]], 500)
        estimates.append(total_correlation(KEY, data))
    values, errors = np.array(estimates).T
    assert 1 / 1.7 < values.std(ddof=1) / errors.mean() < 1.7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entropy(KEY, np.ones((4, 2))), r"data of at least dim \+ 8 = 10 rows, got 4"),
        (lambda: entropy(KEY, np.eye(15, 2)), r"half of the data of at least dim \+ 8 = 10 rows, got 7"),
        (lambda: mutual_information(KEY, np.eye(20, 2), np.eye(21, 2)), "as many rows of x as of y, got 20 and 21"),
        (lambda: mutual_information(KEY, np.eye(20, 2), np.full((20, 1), np.nan)), "finite y, got NaN"),
        (lambda: kl_divergence(KEY, np.eye(20, 2), np.eye(20, 3)), "x and y of one dimension, got 2 and 3"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
