import numpy as np
import pytest
from arviz_stats.base.array import array_stats

from numpyro_flows.inference.certificate import certify, relative_ess, resample
from numpyro_flows.inference.psis import smooth


def gaussian_log_weights(sd, n=10_000, seed=0):
    """Target N(0, 1) of evidence e^3, proposal N(0, sd^2)."""
    x = sd * np.random.default_rng(seed).normal(size=n)
    return 3.0 - 0.5 * x**2 + 0.5 * (x / sd) ** 2 + np.log(sd)


def test_figures_against_closed_forms():
    sd = 1.3
    log_weights = gaussian_log_weights(sd)
    got = certify(log_weights)
    ess = np.sqrt(2 * sd**2 - 1) / sd**2  # 1 / E_q[(p/q)^2]
    assert got.certified
    assert got.why == ""
    assert abs(got.ess - ess) < 0.02
    assert abs(got.log_evidence - 3.0) < 4.5 * got.log_evidence_se
    np.testing.assert_allclose(got.log_evidence_se, np.sqrt((1 / ess - 1) / 10_000), rtol=0.1)
    elbo = 3.0 + np.log(sd) + 0.5 - 0.5 * sd**2
    assert abs(got.elbo - elbo) < 4.5 * got.elbo_se
    np.testing.assert_allclose(got.khat, array_stats.psislw(-log_weights)[1])
    assert str(got).startswith(f"CERTIFIED\nk-hat {got.khat:.2f}, ESS {got.ess:.1%} of 10000 draws")


@pytest.mark.parametrize("n", [1000, 10_000])
@pytest.mark.parametrize("sd", [0.5, 0.8, 1.0001, 1.3, 3.0])
def test_smoothing_agrees_with_arviz(sd, n):
    log_weights = gaussian_log_weights(sd, n)
    expected, khat = array_stats.psislw(-log_weights)
    got, got_khat = smooth(log_weights)
    np.testing.assert_allclose(got_khat, khat, rtol=1e-9)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_a_tail_without_spread_is_left_alone():
    log_weights = np.zeros(1000)
    log_weights[:500] = -np.inf
    smoothed, khat = smooth(log_weights)
    assert np.isnan(khat)
    np.testing.assert_allclose(np.exp(smoothed), np.r_[np.zeros(500), np.full(500, 1 / 500)])


def test_too_narrow_a_proposal_is_refused():
    got = certify(gaussian_log_weights(0.2))
    assert not got.certified
    assert got.khat > 0.7
    assert "k-hat" in got.why
    assert "float64" not in got.why
    assert "enable float64" in certify(gaussian_log_weights(0.2), resolution=0.5).why


def test_log_densities_without_digits_certify_nothing():
    """A log evidence of 1e141 had perfect weights."""
    perfect = np.zeros(2_000)
    assert certify(perfect, resolution=0.1).certified
    got = certify(perfect, resolution=2.0)
    assert not got.certified
    assert got.why == "log densities are resolved to 2 nat only: enable float64"


def test_nearly_constant_weights_are_certified_whatever_khat():
    log_weights = 1e-3 * np.random.default_rng(0).standard_t(1.0, size=10_000).clip(-500, 500)
    assert certify(log_weights).khat > 0.7
    assert certify(log_weights).certified
    assert certify(np.full(1000, 2.0)).certified


def test_broken_weights():
    log_weights = gaussian_log_weights(1.3)
    log_weights[:7] = np.nan  # so few count as none
    assert certify(log_weights) == certify(log_weights[7:])
    log_weights[:70] = np.nan
    got = certify(log_weights)
    assert not got.certified
    assert "70 of 10000 log weights are NaN" in got.why
    assert "zero at every draw" in certify(np.full(1000, -np.inf)).why
    assert relative_ess(np.array([0.0, np.inf])) == 0.0
    half = gaussian_log_weights(1.3)
    half[::2] = -np.inf  # draws outside the support: no error, half the sample size, half the evidence
    assert abs(certify(half).ess - certify(half[1::2]).ess / 2) < 1e-9
    assert abs(certify(half).log_evidence - certify(half[1::2]).log_evidence + np.log(2)) < 1e-9


def test_resampling_follows_the_weights():
    rng = np.random.default_rng(0)
    log_weights = gaussian_log_weights(1.3)
    smoothed, _ = smooth(log_weights)
    np.testing.assert_allclose(np.exp(smoothed).sum(), 1.0)
    index = resample(log_weights, 5000, rng)
    assert index.shape == (5000,)
    counts = np.bincount(index, minlength=10_000)
    expected = 5000 * np.exp(smoothed)
    assert np.all(np.abs(counts - expected) < 1)
    assert np.any(np.diff(index) < 0)


def test_resampling_with_broken_weights():
    rng = np.random.default_rng(0)
    log_weights = np.zeros(1000)
    log_weights[::2] = np.nan
    assert np.all(resample(log_weights, 100, rng) % 2 == 1)
    assert np.unique(resample(np.full(1000, np.nan), 500, rng)).size == 500


@pytest.mark.parametrize("seed", range(3))
def test_resampled_moments(seed):
    rng = np.random.default_rng(seed)
    x = 1.3 * rng.normal(size=20_000)
    index = resample(-0.5 * x**2 + 0.5 * (x / 1.3) ** 2, 5000, rng)
    assert abs(x[index].mean()) < 4.5 / np.sqrt(5000)
    assert abs(x[index].std() - 1) < 4.5 / np.sqrt(2 * 5000)


def test_hopeless_weights_are_smoothed_without_overflow():
    """A flow that has blown up: log weights that span tens of thousands."""
    log_weights = -np.abs(np.random.default_rng(0).normal(scale=3e4, size=20_000))
    smoothed, khat = smooth(log_weights)
    assert np.exp(smoothed).sum() == pytest.approx(1.0)
    assert khat > 0.7


@pytest.mark.filterwarnings("error")
def test_one_weight_beyond_all_others_has_an_infinite_khat():
    """The quartile of the tail is 1e-310 of the largest weight: its inverse overflows."""
    log_weights = np.linspace(-730.0, -700.0, 1_000)
    log_weights[-1] = 0.0
    smoothed, khat = smooth(log_weights)
    assert khat == np.inf
    assert np.exp(smoothed).max() == pytest.approx(1.0)
    assert not certify(log_weights).certified
