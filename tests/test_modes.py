"""Gaussians around the modes that a fit lacks, and draws of them, against closed forms."""

import numpy as np
import pytest

from numpyro_flows.inference.exploration import share_outside
from numpyro_flows.inference.modes import Mode, draws_around, modes_at
from numpyro_flows.inference.settings import FlowVISettings
from tests.densities import draws_of_normals, gaussian_fit, normals, standard_fit

SETTINGS = FlowVISettings()
THREE = [0.5, 0.3, 0.2], [[9.0, 0.0], [-9.0, 0.0], [0.0, 20.0]], [[1.0, 0.3], [0.5, 2.0], [0.1, 0.1]]


def laplace(location, widths):
    """Independent Laplace densities: a kink at the mode, where no climb converges."""
    location, widths = np.asarray(location, float), np.asarray(widths, float)

    def density(x):
        away = (x - location) / widths
        return -abs(away).sum(1) - np.log(2 * widths).sum(), -np.sign(away) / widths

    return density


def draws_of_laplace(location, widths, num, rng):
    return np.asarray(location) + np.asarray(widths) * rng.laplace(size=(num, len(location)))


def missing(density, modes):
    """The mass around modes of a fit that is nowhere."""
    probe = draws_around(density, modes, np.random.default_rng(2), SETTINGS)
    return share_outside(probe, np.ones(len(probe.x), bool), 0.0)


@pytest.mark.parametrize("fit", [standard_fit(2), gaussian_fit([0.0, 0.0], [1.0, 3.0])], ids=["full", "diagonal"])
def test_smooth_modes_with_their_curvature(fit):
    rng = np.random.default_rng(0)
    points = draws_of_normals(*THREE, 100, rng)
    modes = modes_at(normals(*THREE), fit, points, rng, SETTINGS)
    for mean, sds in zip(np.array(THREE[1]), np.array(THREE[2])):
        (mode,) = [mode for mode in modes if np.linalg.norm((mode.loc - mean) / sds) < 0.1]
        np.testing.assert_allclose(mode.factor @ mode.factor.T, np.diag(sds**2), atol=1e-3)
        assert np.all(np.diag(mode.factor) > 0)
    share = missing(normals(*THREE), modes)
    assert abs(share.value - 1.0) < 4 * share.se
    assert share.se < 0.05


def test_points_of_one_mode_give_one():
    rng = np.random.default_rng(0)
    one = [1.0], [[5.0, 5.0, 5.0]], [[1.0, 0.1, 3.0]]
    (mode,) = modes_at(normals(*one), standard_fit(3), draws_of_normals(*one, 30, rng), rng, SETTINGS)
    np.testing.assert_allclose(mode.loc, 5.0, atol=0.05)


def test_no_points_give_none():
    rng = np.random.default_rng(0)
    assert modes_at(normals(*THREE), standard_fit(2), np.zeros((0, 2)), rng, SETTINGS) == []


def test_a_kink_by_the_mixture():
    """Its Gaussian has about the moments of the points, and measures the mass."""
    rng, location, widths = np.random.default_rng(0), [8.0, 4.0], [0.2, 0.05]
    density = laplace(location, widths)
    fit = gaussian_fit([0.0, 0.0], [[1.0, 0.0], [0.5, 2.0]])
    modes = modes_at(density, fit, draws_of_laplace(location, widths, 200, rng), rng, SETTINGS)
    assert 1 <= len(modes) <= SETTINGS.max_groups
    locations = np.stack([mode.loc for mode in modes])
    assert np.all(abs(locations - location) < 4 * np.array(widths))
    share = missing(density, modes)
    assert abs(share.value - 1.0) < 4 * share.se
    assert share.se < 0.1


@pytest.mark.parametrize("width", [0.0, 1e12])
def test_degenerate_points_do_no_harm(width):
    """All alike, or on a line of which the mixture's covariance is singular but for rounding."""
    rng = np.random.default_rng(0)
    nowhere = lambda x: (np.full(len(x), -np.inf), np.zeros_like(x))  # noqa: E731
    points = 1.0 + width * rng.normal(size=(40, 1)) * np.array([1.0, 2.0, 3.0])
    for mode in modes_at(nowhere, standard_fit(3), points, rng, SETTINGS):
        assert np.isfinite(mode.loc).all()
        assert np.isfinite(mode.factor).all()


@pytest.mark.slow
def test_two_kinks_and_a_smooth_mode():
    rng = np.random.default_rng(0)
    parts = [laplace([8.0, 4.0], [0.2, 0.05]), laplace([-8.0, 4.0], [0.2, 0.2]), normals([1.0], [[0.0, -9.0]], [1.0])]

    def density(x):
        logs, gradients = zip(*(part(x) for part in parts))
        log_p = np.logaddexp.reduce(logs)
        shares = np.exp(np.array(logs) - log_p)
        return log_p - np.log(3), (shares[..., None] * np.array(gradients)).sum(0)

    points = np.concatenate([
        draws_of_laplace([8.0, 4.0], [0.2, 0.05], 60, rng),
        draws_of_laplace([-8.0, 4.0], [0.2, 0.2], 60, rng),
        draws_of_normals([1.0], [[0.0, -9.0]], [1.0], 60, rng),
    ])  # fmt: skip
    modes = modes_at(density, standard_fit(2), points, rng, SETTINGS)
    share = missing(density, modes)
    assert abs(share.value - 1.0) < 4 * share.se
    assert share.se < 0.1


def test_many_dimensions_have_diagonal_modes():
    """Above 256 no climb is made."""
    rng, dim = np.random.default_rng(0), 300
    far = [1.0], [np.full(dim, 5.0)], [0.5]
    (mode,) = modes_at(normals(*far), standard_fit(dim), draws_of_normals(*far, 100, rng), rng, SETTINGS)
    assert mode.factor.shape == (dim,)
    np.testing.assert_allclose(mode.loc, 5.0, atol=5 * 0.5 / 10)
    np.testing.assert_allclose(mode.factor, 0.5, rtol=5 / np.sqrt(200))


@pytest.mark.parametrize(
    "modes",
    [
        [Mode(np.zeros(2), np.eye(2))],
        [Mode(np.zeros(2), np.eye(2)), Mode(np.ones(2), np.array([[0.5, 0.0], [-1.0, 2.0]]))],
        [Mode(np.zeros(2), np.ones(2)), Mode(np.ones(2), np.array([0.5, 2.0])), Mode(np.ones(2), np.ones(2))],
    ],
    ids=["one", "two", "diagonal"],
)
def test_draws_have_the_density_that_they_say(modes):
    """`E_r[1(box) / r]` is the box's volume."""
    probe = draws_around(normals(*THREE), modes, np.random.default_rng(0), SETTINGS)
    assert probe.log_proposal is not None
    assert len(probe.x) == SETTINGS.mode_draws // len(modes) * len(modes)
    inside = (abs(probe.x - 0.5) < 1.0).all(1)
    volumes = np.where(inside, np.exp(-probe.log_proposal), 0.0)
    assert abs(volumes.mean() - 4.0) < 4 * volumes.std() / np.sqrt(len(volumes))
    np.testing.assert_allclose(probe.log_density, normals(*THREE)(probe.x)[0])


def test_draws_where_the_density_is_broken_have_no_mass():
    broken = lambda x: (np.where(x[:, 0] > 0, np.nan, -0.5 * (x**2).sum(1) - np.log(2 * np.pi)), -x)  # noqa: E731
    share = missing(broken, [Mode(np.zeros(2), np.eye(2))])
    assert abs(share.value - 0.5) < 4 * share.se


def test_many_modes_have_some_draws_each():
    modes = [Mode(np.full(2, 10.0 * k), np.eye(2)) for k in range(100)]
    probe = draws_around(normals(*THREE), modes, np.random.default_rng(0), SETTINGS)
    assert len(probe.x) == 100 * SETTINGS.least_mode_draws
