"""Points around a fit that show what it lacks."""

import numpy as np

from numpyro_flows.inference.exploration import Prior, explore, suspects
from numpyro_flows.inference.gaussian import fit_gaussian, gaussian_log_prob
from numpyro_flows.inference.settings import FlowVISettings

SETTINGS = FlowVISettings()


def normal(x):
    """A standard normal's log density and gradient, on the host."""
    return -0.5 * (x**2).sum(axis=1), -x


def test_infinite_draws_of_the_prior_have_no_mass():
    # a gamma prior of a tiny shape draws 0, which is -inf on the log scale
    rng = np.random.default_rng(0)
    fit = fit_gaussian(normal, rng, np.zeros((1, 2)), SETTINGS)
    x = np.array([[0.5, 0.5], [0.0, -np.inf], [-np.inf, 0.0], [np.nan, 0.0]])
    prior = Prior(x, np.array([0.0, np.inf, -np.inf, np.nan]))
    probes = explore(normal, fit, prior, rng, SETTINGS)

    def log_prob(x):
        return gaussian_log_prob(fit.loc, fit.scale, x)

    points, shares = suspects(probes, log_prob, np.log(2 * np.pi), rng, SETTINGS)
    assert points.shape == (0, 2)
    assert shares == ()
