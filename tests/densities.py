"""Densities in NumPy, with their gradients, and Gaussian fits made by hand."""

import numpy as np
from scipy.special import logsumexp

from numpyro_flows.inference.exploration import Prior
from numpyro_flows.inference.gaussian import GaussianFit, gaussian_log_prob, no_climbs
from numpyro_flows.inference.newton import Density


def normals(weights, means, sds) -> Density:
    """The normalised mixture of normals with independent coordinates; `means` and `sds` are `(components, dim)`."""
    means = np.asarray(means, float)
    sds = np.broadcast_to(np.asarray(sds, float).reshape(len(means), -1), means.shape)
    constants = np.log(weights) - np.log(sds * np.sqrt(2 * np.pi)).sum(1)

    def density(x):
        parts, pulls = [], []
        for mean, sd, constant in zip(means, sds, constants):  # one by one: their differences would fill the memory
            z = (x - mean) / sd
            parts.append(constant - 0.5 * (z**2).sum(1))
            pulls.append(-z / sd)
        log_p = logsumexp(parts, axis=0)
        gradient = np.zeros_like(x, dtype=float)
        for part, pull in zip(parts, pulls):
            gradient += np.exp(part - log_p)[:, None] * pull
        return log_p, gradient

    return density


def draws_of_normals(weights, means, sds, num, rng):
    """Independent draws of the same."""
    means = np.asarray(means, float)
    sds = np.broadcast_to(np.asarray(sds, float).reshape(len(means), -1), means.shape)
    component = rng.choice(len(means), num, p=weights)
    return means[component] + sds[component] * rng.standard_normal((num, means.shape[1]))


def groups(log_prior, slope, y, mean_sd=5.0) -> Density:
    """The centred hierarchical model with unit noise: coordinates `mu`, `log tau` and a mean for each group.

    `log_prior` is that of `log tau`, `slope` its derivative; `mu` has a flat prior where `mean_sd` is infinite.
    """

    def density(x):
        mu, log_tau, theta = x[:, 0], x[:, 1], x[:, 2:]
        away = (theta - mu[:, None]) * np.exp(-log_tau)[:, None]
        log_p = -0.5 * (mu / mean_sd) ** 2 + log_prior(log_tau) - 0.5 * (away**2).sum(1) - y.size * log_tau
        log_p = log_p - 0.5 * ((y - theta) ** 2).sum(1) - y.size * np.log(2 * np.pi)
        log_p = log_p - (0.0 if np.isinf(mean_sd) else np.log(mean_sd * np.sqrt(2 * np.pi)))
        of_theta = -away * np.exp(-log_tau)[:, None]
        of_mu = -mu / mean_sd**2 - of_theta.sum(1)
        of_tau = slope(log_tau) + (away**2).sum(1) - y.size
        return log_p, np.column_stack([of_mu, of_tau, of_theta + (y - theta)])

    return density


def gaussian_fit(loc, scale) -> GaussianFit:
    loc = np.asarray(loc, float)
    return GaussianFit(loc, np.asarray(scale, float), 0.0, no_climbs(loc))


def standard_fit(dim) -> GaussianFit:
    """`N(0, I)`, diagonal where a fit's would be."""
    return gaussian_fit(np.zeros(dim), np.eye(dim) if dim <= 256 else np.ones(dim))


def log_prob_of(fit):
    return lambda x: gaussian_log_prob(fit.loc, fit.scale, x)


def no_prior(dim) -> Prior:
    return Prior(np.zeros((0, dim)), np.zeros(0))
