"""Marginals beyond the draws: exact where all other coordinates are Gaussian given one, as in a neck."""

import numpy as np
import pytest
import scipy.stats
from scipy.special import logsumexp

from numpyro_flows.inference.coordinates import Coordinates
from numpyro_flows.inference.gaussian import fit_gaussian
from numpyro_flows.inference.profile import End, ends
from numpyro_flows.inference.settings import FlowVISettings
from tests.densities import gaussian_fit, groups, normals

SETTINGS = FlowVISettings()
Y = np.random.default_rng(3).normal(0.0, 1.0, 8)
LOC = np.array([1.0, -2.0, 0.5])
FACTOR = np.array([[1.0, 0.0, 0.0], [0.9, 0.5, 0.0], [-0.7, 0.3, 0.2]])


def constrained(dim, *index):
    return Coordinates.plain(dim)._replace(reach=np.where(np.isin(np.arange(dim), index), 600.0, np.inf))


def correlated(x):
    precision = np.linalg.inv(FACTOR @ FACTOR.T)
    pull = (x - LOC) @ precision
    constant = -1.5 * np.log(2 * np.pi) - np.log(np.diag(FACTOR)).sum()
    return constant - 0.5 * (pull * (x - LOC)).sum(1), -pull


def exact_marginal(log_tau, log_prior, y=Y, mean_sd=5.0):
    """Of `log tau` and the data: `y` has one common part of variance `mean_sd^2` and its own of `1 + tau^2`."""
    values = []
    for value in np.atleast_1d(log_tau):
        variance = 1.0 + np.exp(2 * value)
        precision = y.size / variance + mean_sd**-2
        squares = y @ y / variance - (y.sum() / variance) ** 2 / precision
        log_det = y.size * np.log(2 * np.pi * variance) + np.log(precision)
        log_det -= np.log(2 * np.pi) if np.isinf(mean_sd) else -2 * np.log(mean_sd)
        values.append(-0.5 * (log_det + squares))
    return np.array(values) + log_prior(log_tau)


PRIORS = {
    "half-normal": (lambda t: 0.5 * np.log(2 / np.pi) - 0.5 * np.exp(2 * t) + t, lambda t: 1 - np.exp(2 * t)),
    "half-Cauchy": (
        lambda t: np.log(2 / np.pi) + t - np.logaddexp(0.0, 2 * t),
        lambda t: 1 - 2 / (1 + np.exp(-2 * t)),
    ),
    "Gamma(0.1, 0.1)": (
        lambda t: 0.1 * t - 0.1 * np.exp(t) + scipy.stats.gamma.logpdf(1.0, 0.1, scale=10.0) + 0.1,
        lambda t: 0.1 - 0.1 * np.exp(t),
    ),
}


def both_ends(prior, y=Y, mean_sd=5.0):
    log_prior, slope = prior
    density = groups(log_prior, slope, y, mean_sd)
    dim = y.size + 2
    fit = fit_gaussian(density, np.random.default_rng(0), np.random.default_rng(1).uniform(-2, 2, (8, dim)), SETTINGS)
    return ends(density, fit, constrained(dim, 1), SETTINGS)[0]


def test_marginals_of_a_correlated_gaussian_are_exact():
    """Of a fit that is off, too."""
    fit = gaussian_fit([0.0, 0.0, 0.0], FACTOR @ np.diag([1.0, 2.0, 0.5]))
    found, num_left_out = ends(correlated, fit, constrained(3, 0, 2), SETTINGS)
    assert num_left_out == 0
    assert [end.coordinate for end in found] == [0, 0, 2, 2]
    sds = np.linalg.norm(FACTOR, axis=1)
    for end, sign in zip(found, (-1, 1, -1, 1)):
        i = end.coordinate
        assert np.all(sign * np.diff(end.at) > 0)
        assert not end.scale
        assert abs(end.at[-1] - end.at[0]) > 100 * sds[i]
        exact = scipy.stats.norm.logpdf(end.at, LOC[i], sds[i])
        np.testing.assert_allclose(end.log_marginal, exact, rtol=1e-6, atol=1e-5)
        assert not end.improper


def test_of_many_constrained_coordinates_some_are_left_out_and_counted():
    for dim, most in ((12, 26), (40, 8)):
        fit = gaussian_fit(np.zeros(dim), np.eye(dim))
        density = normals([1.0], [np.zeros(dim)], [1.0])
        assert ends(density, fit, constrained(dim), SETTINGS) == ([], 0)
        found, num_left_out = ends(density, fit, constrained(dim, *range(1, dim)), SETTINGS)
        some = min(most, dim - 1)
        assert sorted({end.coordinate for end in found}) == list(range(1, 1 + some))
        assert num_left_out == dim - 1 - some
    diagonal = gaussian_fit(np.zeros(12), np.ones(12))
    assert ends(density, diagonal, constrained(12, 1), SETTINGS) == ([], 1)


def test_flat_priors_are_looked_at_but_for_angles():
    coordinates = Coordinates.plain(3)._replace(flat=np.array([False, True, True]), periodic=np.arange(3) == 2)
    found, _ = ends(normals([1.0], [np.zeros(3)], [1.0]), gaussian_fit(np.zeros(3), np.eye(3)), coordinates, SETTINGS)
    assert [end.coordinate for end in found] == [1, 1]


def test_a_plateau_far_out_is_improper():
    """`log p` falls as a Gaussian's for 6 standard deviations, and not below -40: no first look may miss it."""

    def density(x):
        height = np.logaddexp(-0.5 * x[:, 0] ** 2, -40.0) - 0.5 * x[:, 1] ** 2
        share = np.exp(-0.5 * x[:, 0] ** 2 - np.logaddexp(-0.5 * x[:, 0] ** 2, -40.0))
        return height, np.column_stack([-x[:, 0] * share, -x[:, 1]])

    found, _ = ends(density, gaussian_fit([0.0, 0.0], np.eye(2)), constrained(2, 0), SETTINGS)
    assert all(end.improper for end in found)


def test_an_unconstrained_scale_is_looked_at():
    """`v ~ N(0, 3^2)`, `x_i ~ N(0, e^v)`: given `v` all others are Gaussian, so its marginal is exact."""

    def funnel(x):
        v, rest = x[:, 0], x[:, 1:]
        height = -(v**2) / 18 - np.log(3) - 0.5 * ((rest**2).sum(1) * np.exp(-v) + 9 * v) - 5 * np.log(2 * np.pi)
        slope = -v / 9 + 0.5 * (rest**2).sum(1) * np.exp(-v) - 4.5
        return height, np.concatenate([slope[:, None], -rest * np.exp(-v)[:, None]], axis=1)

    fit = gaussian_fit(np.zeros(10), np.eye(10))
    (low, high), _ = ends(funnel, fit, constrained(10), SETTINGS)
    for end in (low, high):
        assert end.coordinate == 0
        assert end.scale
        np.testing.assert_allclose(end.log_marginal, scipy.stats.norm.logpdf(end.at, 0.0, 3.0), atol=1e-4)
        assert not end.improper
    assert low.at[-1] < -9.0


def test_one_coordinate_alone():
    (low, high), _ = ends(normals([1.0], [[3.0]], [2.0]), gaussian_fit([3.0], [[2.0]]), constrained(1, 0), SETTINGS)
    for end in (low, high):
        np.testing.assert_allclose(end.log_marginal, scipy.stats.norm.logpdf(end.at, 3.0, 2.0))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "half-Cauchy")) for name in PRIORS]
)
def test_the_neck_of_a_centred_model(name):
    """Given `tau` all others are Gaussian, so that Laplace's approximation is exact."""
    log_prior, _ = PRIORS[name]
    low, high = both_ends(PRIORS[name])
    assert low.at[-1] < -5.0
    for end in (low, high):
        errors = abs(end.log_marginal - exact_marginal(end.at, log_prior))
        assert np.all(errors < 1e-3 + 4 * np.spacing(abs(end.log_marginal)))
        assert not end.improper
    grid = np.linspace(-200.0, 12.0, 200_001)
    logs = exact_marginal(grid, log_prior)
    log_evidence = logsumexp(logs) + np.log(grid[1] - grid[0])
    for value in low.at[0] - np.array([0.1, 0.7, 2.0]):
        exact = np.exp(logsumexp(logs[grid < value]) + np.log(grid[1] - grid[0]) - log_evidence)
        assert low.beyond(value, log_evidence) == pytest.approx(exact, rel=0.01, abs=1e-5)


def test_a_prior_of_one_over_tau_is_improper_below():
    low, high = both_ends((lambda t: 0.0 * t, lambda t: 0.0 * t), y=3 * Y, mean_sd=np.inf)
    assert low.improper
    assert not high.improper


def test_a_flat_scale_with_two_groups_is_improper_above():
    low, high = both_ends((lambda t: t, lambda t: 1.0 + 0.0 * t), y=np.array([1.2, -0.7]), mean_sd=np.inf)
    assert not low.improper
    assert high.improper


def test_a_flat_scale_with_many_groups_is_proper():
    low, high = both_ends((lambda t: t, lambda t: 1.0 + 0.0 * t), mean_sd=np.inf)
    assert not low.improper
    assert not high.improper


def test_beyond_against_closed_forms():
    at = np.array([0.0, 1.0, 2.0, 5.0, 20.0, 60.0])
    exponential = End(0, at, -at)  # linear, so that interpolation is exact
    for value in (0.0, 1.5, 7.0):
        assert exponential.beyond(value, 0.0) == pytest.approx(np.exp(-value), rel=2e-3)
        assert exponential.beyond(value, 1.0) == pytest.approx(np.exp(-value - 1.0), rel=2e-3)
        assert End(0, -at, -at).beyond(-value, 0.0) == pytest.approx(np.exp(-value), rel=2e-3)
    # a profile that ends early, beyond which the marginal falls on
    for value in (1.5, 10.0):
        assert End(0, at[:4], -at[:4]).beyond(value, 0.0) == pytest.approx(np.exp(-value), rel=2e-3)
        assert End(0, at[:4], -at[:4], lost=True).beyond(value, 0.0) < np.exp(-value)
    fine = np.linspace(0.0, 10.0, 101)
    normal = End(0, fine, scipy.stats.norm.logpdf(fine))
    assert normal.beyond(2.0, 0.0) == pytest.approx(scipy.stats.norm.sf(2.0), rel=5e-3)


def test_an_end_is_improper_where_the_marginal_does_not_fall():
    at = np.array([0.0, 1.0, 3.0])
    assert End(0, at, np.array([0.0, -1.0, -1.0])).improper
    assert End(0, -at, np.array([0.0, -1.0, 5.0])).improper
    deep = np.array([0.0, -20.0, -19.0])  # where nothing more is found, that may be another optimum of the others
    assert End(0, at, deep).improper
    assert not End(0, at, deep, lost=True).improper
    assert not End(0, -at, np.array([0.0, -1.0, -1.2])).improper
    assert not End(0, at, np.array([0.0, -1.0, -np.inf])).improper


def test_an_end_stops_where_no_optimum_of_the_others_is_found():
    """Beyond 3 the density of the others is flat."""

    def density(x):
        curved = x[:, 0] < 3.0
        log_p = np.where(curved, -0.5 * (x**2).sum(1), -0.5 * x[:, 0] ** 2)
        return log_p, np.column_stack([-x[:, 0], np.where(curved, -x[:, 1], 0.0)])

    (low, high), _ = ends(density, gaussian_fit([0.0, 0.0], np.eye(2)), constrained(2, 0), SETTINGS)
    assert low.at[-1] < -100.0
    assert high.at[-1] < 3.0


def test_a_profile_that_ends_near_the_centre_says_nothing_of_the_far_end():
    """In single precision one ended after two values, which were alike."""
    at = np.array([0.0, -0.1])
    assert End(0, at, np.zeros(2)).improper
    assert not End(0, at, np.zeros(2), reached=0.5).improper


@pytest.mark.parametrize(("reach", "improper"), [(np.inf, True), (50.0, False)])
def test_beyond_the_arithmetic_of_a_constraint_nothing_is_improper(reach, improper):
    """`log p = -|x|`, which is a plateau from 60 on, as `log(max(exp(x), tiny))` of single precision is from -87 on."""

    def density(x):
        out = np.abs(x[:, 0])
        height = -np.minimum(np.logaddexp(out, -out), 60.0) - 0.5 * x[:, 1] ** 2
        return height, np.column_stack([np.where(out < 60.0, -np.tanh(x[:, 0]), 0.0), -x[:, 1]])

    coordinates = Coordinates.plain(2)._replace(reach=np.array([reach, np.inf]), flat=np.array([True, False]))
    found, _ = ends(density, gaussian_fit([0.0, 0.0], np.eye(2)), coordinates, SETTINGS)
    assert [end.improper for end in found] == [improper] * 2
