"""Markov chains of the fallback, and the evidence from them, on densities whose answers are known."""

import numpy as np
import pytest
import scipy.special

from numpyro_flows.inference.bridge import bridged
from numpyro_flows.inference.chains import Sampler
from numpyro_flows.inference.draws import Chains
from numpyro_flows.inference.judge_draws import Agreement
from numpyro_flows.inference.mixture import Bell, Mixture, weighted_draws
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.training.one_thread import one_thread
from tests.densities import draws_of_normals, normals, standard_fit

SETTINGS = FlowVISettings()
MODES = [0.3, 0.7], [[-4.0, 0.0], [4.0, 1.0]], [[0.5], [1.0]]


def chains_of(mixture, density, dim, sweeps):
    with one_thread():
        return (
            Sampler(density, standard_fit(dim), mixture, np.random.default_rng(0), SETTINGS).sweeps(sweeps, 1).later()
        )


def test_chains_follow_a_density_that_the_mixture_is_not():
    """Two modes, of shares and scales that the proposal has wrong."""
    bells = Bell(np.array([-4.0, 0.0]), np.eye(2)), Bell(np.array([4.0, 1.0]), 0.8 * np.eye(2))
    mixture, density = Mixture.even(bells), normals(*MODES)
    chains = chains_of(mixture, density, 2, 160)
    agreement = Agreement.of(chains.x)
    assert agreement.rhat.max() < 1.01
    x, log_density = chains.flat
    np.testing.assert_allclose(log_density, density(x)[0])
    ess = agreement.ess_bulk.min()
    assert (x[:, 0] < 0).mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / ess))
    for side, mean, sd in ((x[:, 0] < 0, [-4.0, 0.0], 0.5), (x[:, 0] > 0, [4.0, 1.0], 1.0)):
        np.testing.assert_allclose(x[side].mean(0), mean, atol=4 * sd / np.sqrt(0.3 * ess))
        np.testing.assert_allclose(x[side].std(0), sd, rtol=4 / np.sqrt(0.6 * ess))
    draws = weighted_draws(mixture, density, np.random.default_rng(1), 10_000)
    log_evidence, se = bridged(chains, mixture, draws)
    assert 0.0 < se < 0.02
    assert log_evidence == pytest.approx(0.0, abs=4 * se)


def test_differences_jump_between_modes_of_single_coordinates():
    """Six coordinates with two modes each, 64 modes in all, and a proposal that has draws in none."""

    def density(x):  # each coordinate has the normals N(-2, 0.3^2) and N(2, 0.3^2)
        parts = [-0.5 * ((x - side) / 0.3) ** 2 for side in (-2.0, 2.0)]
        share = scipy.special.expit(parts[1] - parts[0])
        return np.logaddexp(*parts).sum(1), -(x - 2.0 * (2.0 * share - 1.0)) / 0.09

    chains = chains_of(Mixture.even([Bell(np.zeros(6), 1.5 * np.eye(6))]), density, 6, 400)
    agreement = Agreement.of(chains.x)
    assert agreement.rhat.max() < 1.05
    right = (chains.flat[0] > 0).mean(0)
    np.testing.assert_allclose(right, 0.5, atol=4 * 0.5 / np.sqrt(agreement.ess_bulk.min()))


def test_the_bridge_is_exact_for_a_proposal_that_is_the_density():
    rng = np.random.default_rng(0)
    x = draws_of_normals([1.0], [[1.0, 2.0]], [[1.0]], 4_000, rng)
    density = normals([1.0], [[1.0, 2.0]], [[1.0]])
    mixture = Mixture.even([Bell(np.array([1.0, 2.0]), np.eye(2))])
    chains = Chains.split(x, density(x)[0] + 7.5, 8)
    draws = weighted_draws(mixture, lambda x: (density(x)[0] + 7.5, density(x)[1]), rng, 4_000)
    log_evidence, se = bridged(chains, mixture, draws)
    assert log_evidence == pytest.approx(7.5, abs=1e-4)
    assert se < 1e-4


def test_chains_are_cut_and_joined():
    x, log_density = np.arange(20.0).reshape(10, 2), np.arange(10.0)
    chains = Chains.split(x, log_density, 3)
    assert chains.x.shape == (3, 3, 2)
    np.testing.assert_array_equal(chains.flat[1], np.arange(9.0))
    np.testing.assert_array_equal(chains.halved().log_density, [[1.0], [4.0], [7.0]])
    np.testing.assert_array_equal(chains.later().log_density, [[1.0, 2.0], [4.0, 5.0], [7.0, 8.0]])
    assert chains.followed_by(chains).x.shape == (3, 6, 2)
    free = np.array([False, True, False])
    whole = chains.with_normals(free, np.random.default_rng(0))
    np.testing.assert_array_equal(whole.x[:, :, ~free], chains.x)
    normal = -0.5 * (whole.x[:, :, 1] ** 2 + np.log(2 * np.pi))
    np.testing.assert_allclose(whole.log_density - chains.log_density, normal)
