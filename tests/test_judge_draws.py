"""The verdict on Markov chains, on densities of which everything is known."""

from typing import Any

import numpy as np
import pytest

from numpyro_flows.inference.coordinates import Coordinates
from numpyro_flows.inference.gaussian import moment_matched
from numpyro_flows.inference.groups import grouped
from numpyro_flows.inference.judge_draws import judge_draws
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import Survey, look_around
from tests.densities import draws_of_normals, no_prior, normals, standard_fit

SETTINGS = FlowVISettings()
TWO_MODES = [0.3, 0.7], [np.zeros(5), np.full(5, 8.0 / 5**0.5)], [1.0, 1.0]
NORMAL = [1.0], [np.zeros(5)], [1.0]


def judged(mixture: Any, chains, log_evidence=np.nan, searched=True):
    """The verdict on draws that claim to follow a mixture of normals."""
    density, rng = normals(*mixture), np.random.default_rng(0)
    dim = chains.shape[2]
    gaussian, coordinates = moment_matched(chains.reshape(-1, dim), SETTINGS), Coordinates.plain(dim)
    log_prob = grouped(chains[:, ::2].reshape(-1, dim), gaussian, rng, SETTINGS).log_prob
    survey = Survey(coordinates=coordinates)
    if searched:
        survey = look_around(density, rng, gaussian, no_prior(dim), coordinates, SETTINGS)
    return judge_draws(density, chains, log_prob, log_evidence, survey, rng, SETTINGS)


def independent(mixture: Any, chains=4, num=1_000, seed=0) -> np.ndarray:
    draws = draws_of_normals(*mixture, num=chains * num, rng=np.random.default_rng(seed))
    return draws.reshape(chains, num, -1)


@pytest.mark.parametrize("chains", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_independent_draws_are_certified(chains):
    certificate = judged(TWO_MODES, independent(TWO_MODES, chains, 4_000 // chains))
    assert (certificate.certified, certificate.why, certificate.by) == (True, "", "mcmc")
    assert certificate.num_draws == 4_000
    assert certificate.rhat < 1.01
    assert min(certificate.ess_bulk, certificate.ess_tail) > 3_000
    assert np.isnan([certificate.khat, certificate.ess, certificate.log_evidence]).all()
    assert certificate.checks[0].name == "agreement of chains"
    assert certificate.checks[0].found.endswith(f"of {chains} chains of {4_000 // chains:,} draws")


@pytest.mark.parametrize("known", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_mode_that_no_chain_visited_is_found_and_weighed(known):
    """With the evidence of the visited one, and without."""
    certificate = judged(TWO_MODES, independent(NORMAL), np.log(0.3) if known else np.nan)
    assert certificate.rhat < 1.01
    assert not certificate.certified
    assert certificate.why.startswith("a search found elsewhere about 70% of the posterior, which the draws lack")


@pytest.mark.slow
def test_chains_in_different_modes_do_not_agree():
    chains = np.stack([independent(NORMAL)[0] + mode for mode in TWO_MODES[1]])
    certificate = judged(TWO_MODES, chains)
    assert not certificate.certified
    assert certificate.rhat > 1.5
    assert certificate.why.startswith(f"r-hat {certificate.rhat:.2f} of x[")
    assert certificate.why.endswith("tail ESS > 400): the chains do not agree")


@pytest.mark.slow
def test_few_draws_are_too_few():
    certificate = judged(NORMAL, independent(NORMAL, num=80, seed=3))
    assert not certificate.certified
    assert "ESS > 400)" in certificate.why


@pytest.mark.slow
def test_a_coordinate_that_never_changes_has_no_rhat():
    chains = independent(NORMAL)
    chains[:, :, 2] = 0.0
    certificate = judged(NORMAL, chains, searched=False)
    assert not certificate.certified
    assert "r-hat nan of x[2]" in certificate.why


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 0.7), pytest.param(3.0, 1.0, marks=pytest.mark.slow)])
def test_draws_of_another_distribution_are_refused(shift, scale):
    certificate = judged(NORMAL, shift + scale * independent(NORMAL))
    assert certificate.rhat < 1.01
    assert not certificate.certified
    assert "which the draws lack" in certificate.why


def test_draws_at_which_the_density_is_zero_are_refused():
    density = normals(*NORMAL)
    chains = independent(NORMAL)

    def half(x):
        log_p, gradient = density(x)
        return np.where(x[:, 0] > 0.0, log_p, -np.inf), gradient

    rng = np.random.default_rng(0)
    survey = Survey(coordinates=Coordinates.plain(5))
    certificate = judge_draws(half, chains, lambda x: density(x)[0], 0.0, survey, rng, SETTINGS)
    assert not certificate.certified
    assert certificate.why.startswith("the model's density is zero or NaN at 5")


def test_a_density_that_does_not_fit_the_draws_is_refused():
    """Compared with a Gaussian half as wide, many of the draws lie outside: the search sees nothing."""
    density, rng = normals(*NORMAL), np.random.default_rng(0)
    narrow = normals([1.0], [np.zeros(5)], [0.5])
    survey = look_around(density, rng, standard_fit(5), no_prior(5), Coordinates.plain(5), SETTINGS)
    certificate = judge_draws(density, independent(NORMAL), lambda x: narrow(x)[0], 0.0, survey, rng, SETTINGS)
    assert not certificate.certified
    assert "the search elsewhere is blind" in certificate.why
    unsearched = judge_draws(density, independent(NORMAL), lambda x: narrow(x)[0], 0.0, Survey(), rng, SETTINGS)
    assert unsearched.certified
    assert not unsearched.checks[1].run


@pytest.mark.slow
def test_the_mixture_is_near_the_density_of_the_draws():
    chains = independent(TWO_MODES)
    rng = np.random.default_rng(1)
    mixture = grouped(chains.reshape(-1, 5), moment_matched(chains.reshape(-1, 5), SETTINGS), rng, SETTINGS)
    assert len(mixture.components) == 2
    np.testing.assert_allclose(np.sort(mixture.shares), [0.3, 0.7], atol=4 * np.sqrt(0.21 / 4_000))
    fresh = draws_of_normals(*TWO_MODES, 2_000, rng)
    apart = normals(*TWO_MODES)(fresh)[0] - mixture.log_prob(fresh)
    assert 0.0 < apart.mean() < 0.03  # about parameters over twice the number of draws: 41 / 8,000
