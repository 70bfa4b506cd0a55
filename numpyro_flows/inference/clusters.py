"""Groups of points as Gaussians."""

import numpy as np
from jaxtyping import Float

from numpyro_flows.inference.settings import FlowVISettings


def clusters(
    points: Float[np.ndarray, "points dim"], rng: np.random.Generator, settings: FlowVISettings
) -> list[tuple[Float[np.ndarray, " dim"], Float[np.ndarray, "dim dim"] | Float[np.ndarray, " dim"]]]:
    """Location and factor of the components of a mixture of Gaussians, as many as the BIC asks for, the largest first.

    Covariances are full where the points are enough for it; above `FlowVISettings.max_full_dim` a factor is a vector.
    """
    from sklearn.mixture import GaussianMixture  # here: its import takes a second, and most fits need none

    num, dim = points.shape
    kind = "full" if num >= 5 * dim else "diag"
    most = max(1, min(settings.max_clusters, num // (dim + 1)))
    seed = int(rng.integers(2**31))
    mixtures = [
        GaussianMixture(k, covariance_type=kind, reg_covar=1e-9, random_state=seed).fit(points) for k in range(1, most + 1)
    ]
    best = min(mixtures, key=lambda mixture: mixture.bic(points))
    found = []
    for k in np.argsort(-best.weights_):
        covariance = best.covariances_[k]
        factor = np.linalg.cholesky(covariance) if kind == "full" else np.sqrt(covariance)
        found.append((best.means_[k], np.diag(factor) if factor.ndim == 1 and dim <= settings.max_full_dim else factor))
    return found
