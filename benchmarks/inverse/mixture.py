"""The rival prior: a Gaussian mixture of scikit-learn, whose posterior under a noisy measurement is exact."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from numpyro_flows.training.one_thread import one_thread

_COUNTS, _RIDGES = (5, 10, 15, 20), (0.1, 0.3)
_COPIES = 5  # of each image, with fresh uniform noise
_VALIDATION = 0.1


def fitted(images: Int[np.ndarray, "num pixels"], rng: np.random.Generator) -> GaussianMixture:
    """The mixture of pixels spread by uniform noise, its size and ridge chosen by validation images."""
    images = rng.permutation(images)
    cut = round(_VALIDATION * len(images))
    held, kept = _spread(images[:cut], rng), _spread(images[cut:], rng)
    tried = [GaussianMixture(k, reg_covar=ridge, random_state=0) for k in _COUNTS for ridge in _RIDGES]
    with one_thread():
        best = max(tried, key=lambda mixture: mixture.fit(kept).score(held))
        return best.fit(_spread(images, rng))


def _spread(images: Int[np.ndarray, "num pixels"], rng: np.random.Generator) -> Float[np.ndarray, "copies pixels"]:
    return np.concatenate([images + rng.uniform(size=images.shape) for _ in range(_COPIES)])


@dataclass(frozen=True)
class Posterior:
    """Of the missing pixels given noisy observed ones: a mixture with shares of its own for each measurement."""

    mixture: GaussianMixture
    seen: Int[np.ndarray, " seen"]
    missing: Int[np.ndarray, " missing"]
    noise: float

    def parts(self, y: Float[np.ndarray, "num seen"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log shares `(num, k)`, means `(num, k, missing)` and covariances `(k, missing, missing)`."""
        log_shares, means, covariances = [], [], []
        fitted = self.mixture.weights_, self.mixture.means_, self.mixture.covariances_
        for share, mean, covariance in zip(*map(np.asarray, fitted)):
            of_y = covariance[np.ix_(self.seen, self.seen)] + self.noise**2 * np.eye(len(self.seen))
            across = covariance[np.ix_(self.missing, self.seen)]
            gain = np.linalg.solve(of_y, across.T).T
            log_shares.append(np.log(share) + multivariate_normal(mean[self.seen], of_y).logpdf(y))
            means.append(mean[self.missing] + (y - mean[self.seen]) @ gain.T)
            covariances.append(covariance[np.ix_(self.missing, self.missing)] - gain @ across.T)
        log_shares = np.stack(log_shares, 1)
        log_shares -= logsumexp(log_shares, axis=1, keepdims=True)
        return log_shares, np.stack(means, 1), np.stack(covariances)

    def log_prob(
        self, y: Float[np.ndarray, "num seen"], x: Float[np.ndarray, "num missing"]
    ) -> Float[np.ndarray, " num"]:
        log_shares, means, covariances = self.parts(y)
        each = [multivariate_normal(cov=c).logpdf(x - means[:, k]) for k, c in enumerate(covariances)]
        return np.asarray(logsumexp(log_shares + np.stack(each, 1), axis=1))

    def sample(
        self, y: Float[np.ndarray, "num seen"], num_samples: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "samples num missing"]:
        log_shares, means, covariances = self.parts(y)
        roots = np.linalg.cholesky(covariances)
        each = [rng.choice(len(roots), num_samples, p=np.exp(shares)) for shares in log_shares]
        chosen = np.stack(each, 1)  # (samples, num)
        normal = rng.standard_normal((*chosen.shape, means.shape[-1]))
        return means[np.arange(len(y)), chosen] + np.einsum("snij,snj->sni", roots[chosen], normal)
