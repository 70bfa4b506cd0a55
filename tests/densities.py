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
