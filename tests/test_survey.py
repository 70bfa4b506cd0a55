"""What is looked for beside the weights: missed modes and heavy tails."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_flows.inference.certificate import Draws
from numpyro_flows.inference.gaussian import draw_gaussian, fit_gaussian
from numpyro_flows.inference.heavy_tails import degrees_of_freedom
from numpyro_flows.inference.modes import find_modes, missed_share, weigh
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import Survey, judge, survey_around
from tests.test_gaussian import on_host

SETTINGS = FlowVISettings()

pytestmark = pytest.mark.usefixtures("x64")


def surveyed(density):
    """From one start at 0."""
    rng = np.random.default_rng(0)
    return survey_around(density, rng, fit_gaussian(density, rng, np.zeros((1, 2)), SETTINGS), SETTINGS)


def two_modes(x, distance=8.0, share=0.3):
    """A share at 0, the rest `distance` away."""
    return jnp.logaddexp(
        jnp.log(share) - 0.5 * jnp.sum(x**2), jnp.log(1 - share) - 0.5 * jnp.sum((x - distance / x.size**0.5) ** 2)
    )


def gaussian_at_zero(density, dim):
    return fit_gaussian(density, np.random.default_rng(0), np.zeros((1, dim)), SETTINGS)


@pytest.mark.parametrize("dim", [1, 3, 10])
def test_a_missed_mode_is_found_and_weighed(dim):
    density = on_host(two_modes)
    rng = np.random.default_rng(1)
    fit = gaussian_at_zero(density, dim)
    np.testing.assert_allclose(fit.loc, 0.0, atol=0.1)
    modes = find_modes(density, fit, rng, SETTINGS)
    draws = weigh(draw_gaussian(density, fit, rng, SETTINGS), modes)
    assert len(modes) == 2
    assert missed_share(modes, draws) == pytest.approx(0.7, abs=0.02)


def test_a_light_mode_is_let_pass():
    density = on_host(lambda x: two_modes(x, share=0.999))
    rng = np.random.default_rng(1)
    fit = gaussian_at_zero(density, 2)
    modes = find_modes(density, fit, rng, SETTINGS)
    draws = weigh(draw_gaussian(density, fit, rng, SETTINGS), modes)
    assert len(modes) == 2
    assert missed_share(modes, draws) < SETTINGS.max_missed


def test_draws_of_both_modes_lack_none():
    density = on_host(two_modes)
    rng = np.random.default_rng(1)
    modes = find_modes(density, gaussian_at_zero(density, 2), rng, SETTINGS)
    x = rng.standard_normal((10_000, 2)) + np.where(rng.uniform(size=(10_000, 1)) < 0.3, 0.0, 8.0 / np.sqrt(2))
    log_weights = np.full(10_000, np.log(2 * np.pi))
    assert missed_share(modes, weigh([Draws(x, log_weights, log_weights)], modes)) == 0.0


def test_the_fit_starts_again_from_a_heavier_mode():
    density = on_host(two_modes)
    fit, draws, survey = surveyed(density)
    np.testing.assert_allclose(fit.loc, 8.0 / np.sqrt(2), atol=0.1)
    certificate = judge(draws, survey, SETTINGS)
    assert certificate.ess > 0.99
    assert not certificate.certified
    assert "dispersed starts disagree: a mode that the fit lacks holds about 30%" in certificate.why


TAILS = {
    "joint Student-t": (lambda x: dist.MultivariateStudentT(1.5, jnp.zeros(4), jnp.eye(4)).log_prob(x), 1.5),
    "independent Student-t": (lambda x: dist.StudentT(3.0).log_prob(x).sum(), 3.0),
    "one of them only": (lambda x: dist.Cauchy().log_prob(x[0]) - 0.5 * jnp.sum(x[1:] ** 2), 1.0),
}


@pytest.mark.parametrize("name", TAILS)
def test_degrees_of_freedom(name):
    log_density, expected = TAILS[name]
    density = on_host(log_density)
    fit = gaussian_at_zero(density, 4)
    assert degrees_of_freedom(density, fit, np.random.default_rng(0), SETTINGS) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    "log_density",
    [
        lambda x: -0.5 * jnp.sum(x**2),
        lambda x: -jnp.sum(jnp.sqrt(1 + x**2)),  # exponential on both sides
        lambda x: jnp.sum(x - 2 * jnp.log1p(jnp.exp(2 * x))),  # half-Cauchy on the log scale
        lambda x: jnp.sum(x - jnp.exp(x)),  # overflows far out
    ],
    ids=["Gaussian", "exponential", "half-Cauchy of a log-scale", "Gumbel"],
)
def test_ordinary_tails(log_density):
    density = on_host(log_density)
    fit = gaussian_at_zero(density, 4)
    assert degrees_of_freedom(density, fit, np.random.default_rng(0), SETTINGS) > 50


def test_the_verdict_names_heavy_tails():
    density = on_host(lambda x: -0.5 * jnp.sum(x**2))
    _, draws, survey = surveyed(density)
    assert judge(draws, survey, SETTINGS).certified
    certificate = judge(draws, Survey(survey.modes, 1.5), SETTINGS)
    assert not certificate.certified
    assert certificate.why.startswith("heavy tails: far out the posterior falls like a Student-t with 1.5 degrees")
