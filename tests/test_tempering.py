"""Tempered particles and their moves, on densities whose moments are known."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.tempering import Particles, Whitened, move, temper
from tests.densities import draws_of_normals, gaussian_fit, normals, standard_fit

SETTINGS = FlowVISettings()
SKEW = gaussian_fit([1.0, -2.0], [[2.0, 0.0], [-1.0, 0.5]])
MIXTURE = [0.3, 0.7], [[-1.0, 0.0], [1.0, 1.0]], [0.5, 1.0]


def settled(density, start, rng, exponent=1.0, width=1.0, num=30):
    particles = density(start)
    for _ in range(num):
        particles = move(density, particles, rng, SETTINGS, exponent, width)
    return particles


def assert_moments(x, mean, sd):
    """Of independent draws of about normal tails, within 5 standard errors."""
    z = (x - mean) / sd
    np.testing.assert_array_less(abs(z.mean(0)), 5 / np.sqrt(len(x)))
    np.testing.assert_array_less(abs((z**2).mean(0) - 1), 5 * np.sqrt(((z**4).mean(0) - 1) / len(x)))


@pytest.mark.parametrize("scale", [SKEW.scale, np.array([2.0, 0.5])], ids=["full", "diagonal"])
def test_a_density_in_other_coordinates(scale):
    fit = SKEW._replace(scale=scale)
    density, whitened = normals(*MIXTURE), Whitened(normals(*MIXTURE), fit)
    u, step = np.random.default_rng(0).normal(size=(5, 2)), 1e-5
    np.testing.assert_allclose(Whitened.points(fit, whitened.x(u)), u, atol=1e-12)
    particles = whitened(u)
    np.testing.assert_allclose(particles.log_density, density(whitened.x(u))[0])
    for i, axis in enumerate(np.eye(2)):
        slope = (whitened(u + step * axis).log_density - whitened(u - step * axis).log_density) / (2 * step)
        np.testing.assert_allclose(particles.gradient[:, i], slope, atol=1e-6)


@pytest.mark.parametrize("exponent", [0.0, 0.2, 0.7, 1.0])
def test_a_move_leaves_a_normal_density_as_it_is(exponent):
    """Products of powers of normals are normal: particles that start from there are independent draws at all times."""
    mean, sd, width = np.array([1.0, -2.0, 0.0]), np.array([0.5, 2.0, 1.0]), 3.0
    precision = exponent / sd**2 + (1 - exponent) / width**2
    between, sds = exponent * mean / sd**2 / precision, precision**-0.5
    rng = np.random.default_rng(0)
    start = between + sds * rng.standard_normal((4_000, 3))
    whitened = Whitened(normals([1.0], [mean], [sd]), standard_fit(3))
    end = settled(whitened, start, rng, exponent, width)
    assert_moments(end.u, between, sds)
    assert np.mean((end.u == start).all(1)) < 0.01  # they do move
    apart = np.corrcoef((start[:, 0] - between[0]), end.u[:, 0])[0, 1]
    assert abs(apart) < 0.5


def test_a_move_leaves_two_modes_as_they_are():
    """With the coordinates of a Gaussian of another shape."""
    rng = np.random.default_rng(0)
    x = draws_of_normals(*MIXTURE, 4_000, rng)
    whitened = Whitened(normals(*MIXTURE), SKEW)
    end = whitened.x(settled(whitened, Whitened.points(SKEW, x), rng).u)
    weights, means, sds = (np.asarray(part) for part in MIXTURE)
    mean = weights @ means
    assert_moments(end, mean, np.sqrt(weights @ (sds[:, None] ** 2 + means**2) - mean**2))


def test_where_the_density_is_zero_or_broken_no_particle_goes():
    """It is NaN beyond 1 in one coordinate, -inf in the other, and where its gradient is NaN it counts as zero."""
    normal = normals([1.0], [[0.0, 0.0, 0.0]], [1.0])

    def broken(x):
        log_p, gradient = normal(x)
        log_p = np.where(x[:, 0] > 1, np.nan, np.where(x[:, 1] > 1, -np.inf, log_p))
        return log_p, np.where(x[:, 2:] > 1, np.nan, gradient)

    rng = np.random.default_rng(0)
    start = rng.standard_normal((20_000, 3))
    start = start[(start < 1).all(1)]
    end = settled(Whitened(broken, standard_fit(3)), start, rng, num=10)
    assert end.u.max() <= 1.0
    assert np.isfinite(end.log_density).all()
    assert np.isfinite(end.gradient).all()
    truncated = scipy.stats.truncnorm(-np.inf, 1.0)
    assert_moments(end.u, truncated.mean(), truncated.std())


def test_most_of_the_first_particles_may_have_density_zero():
    """As where a solver fails or numbers overflow far out: those that have one follow the posterior all the same."""
    normal = normals([1.0], [[0.0, 0.0, 0.0]], [1.0])

    def truncated(x):
        log_p, gradient = normal(x)
        return np.where((x < 1).all(1), log_p, -np.inf), gradient

    rng, whitened = np.random.default_rng(0), Whitened(truncated, standard_fit(3))
    runs = np.stack([temper(whitened, 3, rng, SETTINGS).u for _ in range(20)])
    assert runs.max() <= 1.0
    means, mean = runs.mean(1), scipy.stats.truncnorm(-np.inf, 1.0).mean()
    np.testing.assert_array_less(abs(means.mean(0) - mean), 4.5 * means.std(0, ddof=1) / np.sqrt(20) + 0.02)


def test_a_density_that_is_nowhere_finite_has_no_particles():
    whitened = Whitened(lambda x: (np.full(len(x), np.nan), x), standard_fit(2))
    tempered = temper(whitened, 2, np.random.default_rng(0), SETTINGS)
    assert not np.isfinite(tempered.log_density).any()


def test_particles_have_the_moments_of_a_normal_density():
    """Over 20 runs, whose own spread gives the standard error: particles of one run are not independent."""
    mean, sd, rng = np.array([1.0, -2.0]), np.array([0.5, 2.0]), np.random.default_rng(0)
    whitened = Whitened(normals([1.0], [mean], [sd]), standard_fit(2))
    runs = np.stack([temper(whitened, 2, rng, SETTINGS).u for _ in range(20)])
    assert runs.shape == (20, SETTINGS.particles, 2)
    z = (runs - mean) / sd
    for moment, expected in ((z.mean(1), 0.0), ((z**2).mean(1), 1.0)):
        error = moment.std(0, ddof=1) / np.sqrt(len(moment))
        # resampling has a bias of the order of 1 over the number of particles
        np.testing.assert_array_less(abs(moment.mean(0) - expected), 4.5 * error + 0.02)


@pytest.mark.parametrize(("dim", "least"), [(2, 0.1), (10, 0.0)])
def test_two_modes_both_get_particles(dim, least):
    """8 standard deviations apart, around one of them; in many dimensions one run may lose one."""
    means = np.array([np.zeros(dim), np.full(dim, 8.0 / dim**0.5)])
    whitened = Whitened(normals([0.5, 0.5], means, [1.0, 1.0]), standard_fit(dim))
    runs = [temper(whitened, dim, np.random.default_rng(seed), SETTINGS).u for seed in range(10)]
    shares = np.array([((u[:, None] - means) ** 2).sum(2).argmin(1).mean() for u in runs])
    assert np.sum((shares > least) & (shares < 1 - least)) >= 7
    assert abs(shares.mean() - 0.5) < 4 * shares.std(ddof=1) / np.sqrt(10)


def test_more_particles_take_the_proportions_of_two_modes():
    """To within a factor, as the last proportion is decided early."""
    means = np.array([[0.0, 0.0], [8.0, 0.0]])
    whitened = Whitened(normals([0.8, 0.2], means, [1.0, 0.5]), standard_fit(2))
    u = temper(whitened, 2, np.random.default_rng(0), replace(SETTINGS, particles=2_000)).u
    assert 0.1 < np.mean(u[:, 0] > 4) < 0.35


def test_particles_are_chosen_and_replaced_row_by_row():
    particles = Particles(np.arange(6.0).reshape(3, 2), np.arange(3.0), np.zeros((3, 2)))
    other = particles.chosen(np.array([2, 2, 0]))
    np.testing.assert_array_equal(other.log_density, [2.0, 2.0, 0.0])
    mixed = particles.where(np.array([True, False, True]), other)
    np.testing.assert_array_equal(mixed.u, [[4.0, 5.0], [2.0, 3.0], [0.0, 1.0]])
