"""A density fitted to draws, to compare other points with: a mixture of Gaussians."""

import contextlib
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from numpyro_flows.inference.gaussian import GaussianFit, gaussian_log_prob, outward
from numpyro_flows.inference.modes import Mode
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.tempering import Whitened

_MOST_DRAWS = 5_000  # that a mixture is fitted to: each costs the square of the dimension


class Mixture(NamedTuple):
    """`sum_k share_k N(loc_k, factor_k factor_k^T)`."""

    shares: Float[np.ndarray, " components"]
    components: tuple[Mode, ...]

    def log_prob(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        parts = [gaussian_log_prob(mode.loc, mode.factor, x) for mode in self.components]
        return np.asarray(logsumexp(np.stack(parts, axis=1) + np.log(self.shares), axis=1))

    def draw(self, num: int, rng: np.random.Generator) -> Float[np.ndarray, "num dim"]:
        counts = rng.multinomial(num, self.shares)
        draws = [
            mode.loc + outward(mode.factor, rng.standard_normal((count, mode.loc.size)))
            for mode, count in zip(self.components, counts)
        ]
        return np.concatenate(draws)


def fit_mixture(
    draws: Float[np.ndarray, "draws dim"], around: GaussianFit, rng: np.random.Generator, settings: FlowVISettings
) -> Mixture:
    """The mixture with the best BIC, fitted to draws in the coordinates of a Gaussian around them."""
    from sklearn.mixture import GaussianMixture  # here: its import takes a second

    whitened = Whitened.points(around, rng.permutation(draws)[:_MOST_DRAWS])
    num, dim = whitened.shape
    full = around.scale.ndim == 2
    most = max(1, min(settings.max_groups, num // (5 * dim)))
    seed = int(rng.integers(2**31))
    best = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of draws that coincide, or steps that were not enough: the BIC decides
        for k in range(1, most + 1):
            mixture = GaussianMixture(k, covariance_type="full" if full else "diag", reg_covar=1e-9, random_state=seed)
            with contextlib.suppress(ValueError):  # a covariance that is singular but for rounding
                bic = mixture.fit(whitened).bic(whitened)
                if best is not None and bic >= best[0]:
                    break
                best = bic, mixture
    if best is None:
        return Mixture(np.ones(1), (Mode(around.loc, around.scale),))
    fitted = best[1]
    components = []
    for mean, covariance in zip(np.asarray(fitted.means_), np.asarray(fitted.covariances_)):
        own = np.linalg.cholesky(covariance) if full else np.sqrt(covariance)
        factor = around.scale @ own if full else around.scale * own  # of a vector it scales each coordinate
        components.append(Mode(around.loc + outward(around.scale, mean[None])[0], factor))
    return Mixture(np.asarray(fitted.weights_, np.float64), tuple(components))
