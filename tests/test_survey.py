"""What is looked for beside the weights: missing mass, heavy tails, improper posteriors, necks."""

import re

import numpy as np
import pytest
from scipy.special import logsumexp

from numpyro_flows.inference.certificate import Draws, log_mean
from numpyro_flows.inference.coordinates import Coordinates
from numpyro_flows.inference.exploration import Probe, Share, explore, share_outside
from numpyro_flows.inference.gaussian import draw_gaussian, fit_gaussian
from numpyro_flows.inference.heavy_tails import Tails
from numpyro_flows.inference.judge import judge
from numpyro_flows.inference.profile import End
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import Survey, lacking, search, survey_around, weigh
from tests.densities import draws_of_normals, gaussian_fit, log_prob_of, no_prior, normals, standard_fit

SETTINGS = FlowVISettings()


def two_modes(dim, share=0.3, distance=8.0):
    """Weights, means and standard deviations: a share at 0, the rest `distance` away along the diagonal."""
    return [share, 1 - share], [np.zeros(dim), np.full(dim, distance / dim**0.5)], [1.0, 1.0]


def surveyed(density, dim=2, coordinates=None):
    """From one start at 0."""
    rng = np.random.default_rng(0)
    fit = fit_gaussian(density, rng, np.zeros((1, dim)), SETTINGS)
    return survey_around(density, rng, fit, no_prior(dim), coordinates or Coordinates.plain(dim), SETTINGS)


def searched(density, dim):
    """What a search finds around `N(0, I)`, and how much of the posterior that lacks."""
    rng, fit = np.random.default_rng(1), standard_fit(dim)
    draws = weigh(draw_gaussian(density, fit, rng, SETTINGS), SETTINGS)
    survey = Survey(probes=tuple(explore(density, fit, no_prior(dim), rng, SETTINGS)))
    found = search(density, fit, survey, log_prob_of(fit), log_mean(draws.log_weight), rng, SETTINGS)
    return found, lacking(found, draws, SETTINGS)


@pytest.mark.parametrize("dim", [1, 3, 10])
def test_a_missed_mode_is_found_and_weighed(dim):
    found, missed = searched(normals(*two_modes(dim)), dim)
    np.testing.assert_allclose(found.modes[0].loc, 8.0 / dim**0.5, atol=0.1)
    around = found.shares[-1]
    # what of the mode lies where the fit has draws as well, does not count
    assert around.value == pytest.approx(0.7 / 0.3, abs=4 * around.se + 1e-3)
    assert around.se < 0.1 * around.value
    assert missed == pytest.approx(0.7, abs=0.03)


def test_a_light_mode_is_let_pass():
    found, missed = searched(normals(*two_modes(2, share=0.999)), 2)
    assert found.modes
    assert missed < SETTINGS.max_missed


def test_many_light_modes_are_not():
    """Each of 40 has 0.5%, all of them 20%."""
    angles = 2 * np.pi * np.arange(40) / 40
    means = [np.zeros(2), *(60.0 * np.stack([np.cos(angles), np.sin(angles)], 1))]
    found, missed = searched(normals([0.8, *[0.005] * 40], means, np.ones(41)), 2)
    assert missed > 0.05  # a search need not find all of them
    assert all(share.value < 0.2 / 0.8 + 4 * share.se + 1e-6 for share in found.shares)


def test_a_missing_half_of_thousands_of_modes_is_weighed():
    """Of 12 independent coordinates at -4 or 4 the fit has all modes but those with the last one at -4, 30%."""

    def log_prob(x, last=(0.3, 0.7)):
        away = -0.5 * (x[:, :, None] - np.array([-4.0, 4.0])) ** 2
        with np.errstate(divide="ignore"):
            shares = np.log([*[(0.5, 0.5)] * 11, last])
        return np.asarray(logsumexp(away + shares, axis=2)).sum(1) - 6.0 * np.log(2 * np.pi)

    def density(x):
        up = np.tanh(4.0 * x + 0.5 * np.log([*[1.0] * 11, 0.7 / 0.3]))  # how much more likely 4 is than -4
        return log_prob(x), 4.0 * up - x

    rng, around = np.random.default_rng(0), gaussian_fit(np.zeros(12), 4.0 * np.eye(12))
    survey = Survey(probes=tuple(explore(density, around, no_prior(12), rng, SETTINGS)))
    found = search(density, around, survey, lambda x: log_prob(x, (0.0, 1.0)), np.log(0.7), rng, SETTINGS)
    assert len(found.modes) >= SETTINGS.most_modes / 2
    assert found.product is not None
    most = max(found.shares, key=lambda share: share.value)
    assert most.value == pytest.approx(0.3 / 0.7, abs=4 * most.se)
    assert most.se < 0.05


def test_a_proposal_that_is_broken_somewhere_counts_as_too_low():
    proposal = np.array([0.0, np.nan, 0.0, 0.0])
    share = share_outside(Probe("", np.zeros((4, 1)), np.zeros(4), proposal), np.array([True, True, True, False]), 0.0)
    assert share.value == 0.5


def test_draws_of_both_modes_lack_none():
    mixture, rng = two_modes(2), np.random.default_rng(1)
    density = normals(*mixture)
    x = draws_of_normals(*mixture, 10_000, rng)
    draws = weigh([Draws(x, density(x)[0], np.zeros(10_000))], SETTINGS)
    survey = Survey(probes=tuple(explore(density, standard_fit(2), no_prior(2), rng, SETTINGS)))
    found = search(density, standard_fit(2), survey, lambda x: density(x)[0], 0.0, rng, SETTINGS)
    assert found.shares == found.modes == ()
    assert lacking(found, draws, SETTINGS) == 0.0


def test_the_fit_starts_again_from_a_heavier_mode():
    fit, draws, survey = surveyed(normals(*two_modes(2)))
    np.testing.assert_allclose(fit.loc, 8.0 / np.sqrt(2), atol=0.1)
    certificate = judge(draws, survey, SETTINGS)
    assert certificate.ess > 0.99
    assert not certificate.certified
    (percent,) = re.findall(
        r"^a search found elsewhere about (\d+)% of the posterior, which the fit lacks \(.*draws around other modes\)",
        certificate.why,
    )
    assert abs(int(percent) - 30) <= 2


def test_a_search_where_gradients_are_infinite_warns_of_nothing():
    """As at a kink far out; a fit of any shape."""
    normal = normals(*two_modes(2))

    def density(x):
        log_p, gradient = normal(x)
        return log_p, np.where(abs(x) > 6.5, np.inf * np.sign(x), gradient)

    fit, rng = gaussian_fit([0.0, 0.0], [[1.0, 0.0], [-0.3, 1.0]]), np.random.default_rng(0)
    x = rng.normal(8.0 / np.sqrt(2), 1.0, (300, 2))
    survey = Survey(probes=(Probe("there", x, normal(x)[0]),))
    found = search(density, fit, survey, log_prob_of(fit), 0.0, rng, SETTINGS)  # a warning is an error here
    assert found.modes


def test_copies_of_an_angle_are_one():
    """Modes at all multiples of `2 pi` are missing where the coordinate is on the line, and the same where it turns."""
    means = 2 * np.pi * np.arange(-5, 6)[:, None]
    density = normals(np.ones(11), means, np.full(11, 0.3))
    plain = Coordinates.plain(1)
    _, draws, survey = surveyed(density, 1)
    assert "a search found elsewhere" in judge(draws, survey, SETTINGS).why
    _, draws, survey = surveyed(density, 1, plain._replace(periodic=np.array([True])))
    assert judge(draws, survey, SETTINGS).certified


def test_what_a_share_must_exceed():
    """Three of its standard errors beyond what the fit's own draws find there, and 1%."""
    density, rng = normals([1.0], [[0.0, 0.0]], [1.0]), np.random.default_rng(0)
    draws = weigh(draw_gaussian(density, standard_fit(2), rng, SETTINGS), SETTINGS)

    def certified(*shares):
        return judge(draws, Survey(shares=shares), SETTINGS).certified

    assert certified()
    assert certified(Share("a", 0.5, 0.2))
    assert certified(Share("a", 0.009, 1e-4))
    assert not certified(Share("a", 0.012, 1e-4))
    assert not certified(Share("a", 0.5, 0.2), Share("b", 0.1, 0.02))
    heavy = draws._replace(log_weight=np.where(np.arange(draws.log_weight.size) % 1_000 == 0, np.log(20.0), 0.0))
    assert lacking(Survey(shares=(Share("a", 0.1, 1e-4),)), heavy, SETTINGS) < 0.1 - 0.015  # 2% seen by itself


def test_the_verdict_names_what_is_improper_and_cut():
    density = normals([1.0], [[0.0, 0.0]], [1.0])
    _, draws, survey = surveyed(density)
    assert judge(draws, survey, SETTINGS).certified
    assert judge(draws, survey._replace(tails=Tails(tail_index=0.5)), SETTINGS).certified  # heavy, but proper
    certificate = judge(draws, survey._replace(tails=Tails(0.0)), SETTINGS)
    assert not certificate.certified
    assert certificate.why.startswith("the posterior is improper: far out")
    at = np.linspace(0.0, 20.0, 41)
    for side, where in ((1.0, "upper"), (-1.0, "lower")):
        end = End(1, side * at, np.full(41, -1.0), "x[1]")
        why = judge(draws, survey._replace(ends=(end,)), SETTINGS).why
        assert why == f"the posterior is improper: the marginal density of x[1] does not fall towards its {where} end"
    extreme = draws.highest[1]
    # from the highest draw on it falls like exp(-away), and 6% of a fit's own mass lie there
    end = End(1, np.linspace(extreme - 1, extreme + 20, 85), np.log(0.06) - np.linspace(-1.0, 20.0, 85), "x[1]")
    why = judge(draws, survey._replace(ends=(end,)), SETTINGS).why
    assert why == "a neck: about 5.7% of the posterior of x[1] lies above every draw"


def test_without_a_search_there_is_no_verdict():
    _, draws, survey = surveyed(normals([1.0], [[0.0, 0.0]], [1.0]))
    certificate = judge(draws, survey._replace(left_out="nobody looked"), SETTINGS)
    assert (certificate.certified, certificate.why) == (False, "nobody looked")


def test_every_verdict_has_the_same_checks_and_types():
    """As a checkpoint compares both: with another mode, and without."""
    single = [1.0], [np.zeros(2)], [1.0]
    first, second = (
        judge(draws, survey, SETTINGS) for _, draws, survey in map(surveyed, (normals(*single), normals(*two_modes(2))))
    )
    assert [check.name for check in first.checks] == [check.name for check in second.checks]
    assert type(first.beyond) is type(second.beyond) is float
