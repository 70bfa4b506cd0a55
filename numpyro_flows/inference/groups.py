"""A mixture of Gaussians fitted to points, with as many components as the points justify."""

import contextlib
import warnings
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy.cluster.vq import kmeans2

from numpyro_flows.inference.gaussian import GaussianFit, outward
from numpyro_flows.inference.mixture import Bell, Mixture, stepped
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.tempering import Whitened

_MOST_STEPS = 100
_LEAST_GAIN = 1e-3  # nats for each point
_LEAST_VARIANCE = 1e-9  # of a component, relative to about 1 for all points


def grouped(
    points: Float[np.ndarray, "points dim"], around: GaussianFit, rng: np.random.Generator, settings: FlowVISettings
) -> Mixture:
    """The mixture of Gaussians with the best BIC, fitted to points in the coordinates of a Gaussian around them.

    Covariances are diagonal if there are fewer than five points for each dimension.
    """
    whitened = np.asarray(Whitened.points(around, rng.permutation(points)[: settings.mixture_draws]), np.float64)
    num, dim = whitened.shape
    full = around.scale.ndim == 2 and num >= 5 * dim
    most = min(settings.max_groups, num // (dim + 1), len(np.unique(whitened, axis=0)))
    gaussians = replace(settings, degrees_of_freedom=(1e6,))
    mixtures = [_converged(_clusters(whitened, k, full, rng), whitened, gaussians) for k in range(1, max(1, most) + 1)]
    best = min(mixtures, key=lambda mixture: _bic(mixture, whitened, full))
    bells = []
    for bell in best.components:
        assert isinstance(bell, Bell)
        factor = around.scale @ bell.factor if bell.factor.ndim == 2 else around.scale * bell.factor
        if factor.ndim == 1:
            factor = np.maximum(factor, np.finfo(factor.dtype).tiny)  # of a coordinate in which all points are alike
        bells.append(Bell(around.loc + outward(around.scale, bell.loc), factor))
    return Mixture(tuple(bells), best.shares)


def _clusters(x: Float[np.ndarray, "points dim"], k: int, full: bool, rng: np.random.Generator) -> Mixture:
    """Gaussians at the centres of clusters, all with the average width of the clusters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for a cluster without points, which stays where it was
        centres, nearest = kmeans2(x, k, minit="++", rng=rng)
    away = x - centres[nearest]
    factor = np.sqrt((away**2).mean(0) + _LEAST_VARIANCE)
    if full:
        with contextlib.suppress(np.linalg.LinAlgError):  # of points on a line, up to rounding
            factor = np.linalg.cholesky(away.T @ away / len(x) + _LEAST_VARIANCE * np.eye(x.shape[1]))
    return Mixture.even([Bell(centre, factor) for centre in centres])


def _converged(mixture: Mixture, x: Float[np.ndarray, "points dim"], settings: FlowVISettings) -> Mixture:
    """The mixture after expectation maximisation, when the log likelihood gains next to nothing."""
    before = -np.inf
    for _ in range(_MOST_STEPS):
        log_likelihood = mixture.log_prob(x).mean()
        if not log_likelihood > before + _LEAST_GAIN:
            break
        before = log_likelihood
        mixture = stepped(mixture, x, np.ones(len(x)), settings)
    return mixture


def _bic(mixture: Mixture, x: Float[np.ndarray, "points dim"], full: bool) -> float:
    """The Bayesian information criterion; infinite if the mixture's density is not finite."""
    num, dim = x.shape
    parameters = len(mixture.components) * (1 + dim + (dim * (dim + 1) // 2 if full else dim)) - 1
    log_likelihood = mixture.log_prob(x).sum()
    return parameters * np.log(num) - 2.0 * log_likelihood if np.isfinite(log_likelihood) else np.inf
