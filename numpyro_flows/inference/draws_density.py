"""A density fitted to draws, to compare other points with: a mixture of Gaussians."""

import contextlib
import warnings

import numpy as np
from jaxtyping import Float

from numpyro_flows.inference.gaussian import GaussianFit, outward
from numpyro_flows.inference.mixture import Bell, Mixture
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.tempering import Whitened

_MOST_DRAWS = 5_000  # that a mixture is fitted to: each costs the square of the dimension


def mixture_of(
    draws: Float[np.ndarray, "draws dim"], around: GaussianFit, rng: np.random.Generator, settings: FlowVISettings
) -> Mixture:
    """The mixture of Gaussians with the best BIC, fitted to draws in the coordinates of a Gaussian around them.

    More components are tried as long as the BIC gets better, and none has fewer than five draws for each dimension.
    """
    from sklearn.mixture import GaussianMixture  # here: its import takes a second

    whitened = Whitened.points(around, rng.permutation(draws)[:_MOST_DRAWS])
    num, dim = whitened.shape
    full = around.scale.ndim == 2
    best, least = None, np.inf
    with warnings.catch_warnings(), contextlib.suppress(ValueError):  # a covariance that is singular but for rounding
        warnings.simplefilter("ignore")  # of draws that coincide, or steps that were not enough: the BIC decides
        for k in range(1, max(1, min(settings.max_groups, num // (5 * dim))) + 1):
            kind, seed = "full" if full else "diag", int(rng.integers(2**31))
            mixture = GaussianMixture(k, covariance_type=kind, reg_covar=1e-9, random_state=seed).fit(whitened)
            if (bic := mixture.bic(whitened)) >= least:
                break
            best, least = mixture, bic
    if best is None:
        return Mixture.even([Bell(around.loc, around.scale)])
    bells = []
    for mean, covariance in zip(np.asarray(best.means_), np.asarray(best.covariances_)):
        own = np.linalg.cholesky(covariance) if full else np.sqrt(covariance)
        factor = around.scale @ own if full else around.scale * own  # of a vector it scales each coordinate
        bells.append(Bell(around.loc + outward(around.scale, mean[None])[0], factor))
    return Mixture(tuple(bells), np.asarray(best.weights_, np.float64))
