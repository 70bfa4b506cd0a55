"""Mixtures fitted by importance sampling, and their components, on densities whose answers are known."""

import numpy as np
import pytest
import scipy.stats

from numpyro_flows.inference.certificate import certify
from numpyro_flows.inference.coordinates import Coordinates
from numpyro_flows.inference.mixture import Bell, Mixture, adapted, normalized, weighted_draws
from numpyro_flows.inference.profile import ends
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.sliced import Sliced
from tests.densities import gaussian_fit, groups, normals

SETTINGS = FlowVISettings()
SKEW = np.array([[2.0, 0.0], [-1.0, 0.5]])


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("df", [3.0, 1e6])
def test_a_bell_is_a_student_t(df):
    bell, loc = Bell(np.array([1.0, -2.0]), SKEW, df), np.array([1.0, -2.0])
    x = bell.draw(rng(), 1_000)
    exact = scipy.stats.multivariate_t.logpdf(x, loc, SKEW @ SKEW.T, df)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(bell.log_prob(x), exact, rtol=1e-6, atol=1e-4)
    squares = bell.squares(bell.draw(rng(), 20_000)) / 2.0
    assert scipy.stats.kstest(squares, scipy.stats.f(2, df).cdf).pvalue > 0.01


def test_a_diagonal_bell_is_the_full_one():
    x = rng().standard_normal((100, 2))
    diagonal = Bell(np.zeros(2), np.array([2.0, 0.5]), 5.0)
    np.testing.assert_allclose(diagonal.log_prob(x), Bell(np.zeros(2), np.diag([2.0, 0.5]), 5.0).log_prob(x))


def test_a_step_finds_the_moments_and_the_tails_of_many_points():
    x = Bell(np.array([3.0, 1.0]), SKEW, 4.0).draw(rng(), 20_000)
    bell = Bell(np.zeros(2), np.eye(2))
    for _ in range(30):
        bell = bell.towards(x, np.full(len(x), 1.0 / len(x)), SETTINGS)
    assert bell.df == 4.0
    np.testing.assert_allclose(bell.loc, [3.0, 1.0], atol=0.06)  # 4 standard errors of the wider coordinate
    np.testing.assert_allclose(bell.factor @ bell.factor.T, SKEW @ SKEW.T, atol=0.15)


def test_a_step_by_a_few_points_hardly_moves():
    bell = Bell(np.zeros(2), np.eye(2))
    moved = bell.towards(np.array([[5.0, 0.0]]), np.ones(1), SETTINGS)
    assert 0.0 < moved.loc[0] < 1.1
    assert bell.towards(np.zeros((3, 2)), np.zeros(3), SETTINGS) is bell


def test_a_mixture_is_found_where_its_modes_are_known():
    """Shares, scales, evidence, from components of the wrong widths."""
    density = normals([0.2, 0.8], [[-6.0, 0.0, 0.0], [6.0, 1.0, 0.0]], [[0.3], [1.0]])
    start = Mixture.even([Bell(np.array([-6.0, 0.0, 0.0]), np.eye(3)), Bell(np.array([6.0, 1.0, 0.0]), 2 * np.eye(3))])
    mixture = adapted(start, density, rng(), SETTINGS)
    draws = weighted_draws(mixture, density, rng(), 20_000)
    certificate = certify(draws.log_weight)
    assert certificate.ess > 0.97
    assert certificate.log_evidence == pytest.approx(0.0, abs=4 * certificate.log_evidence_se + 1e-6)
    np.testing.assert_allclose(mixture.shares, [0.2, 0.8], atol=0.02)
    assert (draws.x[:, 0] < 0).mean() == pytest.approx(mixture.shares[0], abs=4 * np.sqrt(0.16 / 20_000))


def test_a_component_that_nothing_needs_is_left_out():
    density = normals([1.0], [[0.0, 0.0]], [[1.0]])
    start = Mixture.even([Bell(np.zeros(2), np.eye(2)), Bell(np.full(2, 50.0), np.eye(2))])
    assert len(adapted(start, density, rng(), SETTINGS).components) == 1


def test_weights_that_are_not_finite_count_as_none():
    np.testing.assert_allclose(normalized(np.array([0.0, np.nan, -np.inf, np.inf, 0.0])), [0.5, 0.0, 0.0, 0.0, 0.5])
    assert not normalized(np.array([np.nan, -np.inf])).any()


@pytest.fixture(scope="module")
def neck():
    """A centred model with 6 groups whose scale may be small, and its distribution along `log tau`."""
    y = np.array([1.0, -0.5, 0.3, 0.8, -1.2, 0.1])
    density = groups(lambda t: t - 0.5 * np.exp(2 * t), lambda t: 1.0 - np.exp(2 * t), y)
    fit = gaussian_fit(np.concatenate([[0.0, -0.3], 0.4 * y]), 0.7 * np.eye(8))
    coordinates = Coordinates.plain(8)
    coordinates.reach[1] = 600.0
    return density, Sliced.of(*ends(density, fit, coordinates, SETTINGS)[0])


def test_a_sliced_distribution_is_normalized(neck):
    """Its draws and its density are of one distribution: `E_s[q / s]` is the share of `q` on its range."""
    _, sliced = neck
    x = sliced.draw(rng(), 4_000)
    assert np.isfinite(sliced.log_prob(x)).all()
    wider = Mixture.even([sliced, Bell(x.mean(0), 1.5 * np.linalg.cholesky(np.cov(x.T)), 5.0)])
    y = wider.draw(rng(), 40_000)
    ratio = np.exp(sliced.log_prob(y) - wider.log_prob(y))
    assert ratio.mean() == pytest.approx(1.0, abs=4 * ratio.std() / 200)


def test_a_sliced_distribution_follows_a_neck(neck):
    """The groups are Gaussian given the scale, so weights are those of its marginal alone, deep down as well."""
    density, sliced = neck
    x = sliced.draw(rng(), 20_000)
    log_root = np.log(np.interp(x[:, 1], 0.5 * (sliced.edges[1:] + sliced.edges[:-1]), sliced.probabilities))
    rest = density(x)[0] - sliced.log_prob(x) - log_root
    assert np.ptp(np.quantile(rest, [0.01, 0.99])) < 0.6
    deep = x[:, 1] < np.quantile(x[:, 1], 0.05)
    assert np.ptp(np.quantile(rest[deep], [0.05, 0.95])) < 0.1


def test_outside_of_its_range_a_sliced_distribution_is_zero(neck):
    _, sliced = neck
    x = sliced.draw(rng(), 2)
    x[:, 1] = sliced.edges[0] - 1.0, sliced.edges[-1] + 1.0
    assert (sliced.log_prob(x) == -np.inf).all()
