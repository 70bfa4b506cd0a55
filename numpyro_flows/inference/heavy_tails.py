"""How a density falls far out, where no draw ever goes: tails so heavy that moments do not exist."""

import numpy as np

from numpyro_flows.inference.gaussian import GaussianFit, outward
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.settings import FlowVISettings


@np.errstate(over="ignore", invalid="ignore")
def degrees_of_freedom(density: Density, fit: GaussianFit, rng: np.random.Generator, settings: FlowVISettings) -> float:
    """The smallest degrees of freedom of a power-law tail on rays from the fit's centre; infinite where there is none.

    Between two distances `r` the log density falls by `a` per unit of `log r`. On a ray along a coordinate, a Student-t
    of that coordinate alone has `a = df + 1`, on a ray in any direction a joint one has `a = df + dim`. A
    Gaussian or exponential tail has an `a` in the thousands there.
    """
    dim = fit.loc.size
    sds = fit.scale if fit.scale.ndim == 1 else np.linalg.norm(fit.scale, axis=1)
    axes = np.diag(sds)
    others = rng.standard_normal((settings.tail_rays, dim))
    others = outward(fit.scale, others / np.linalg.norm(others, axis=1, keepdims=True))
    rays = np.concatenate([axes, -axes, others])
    near, far = settings.tail_distances
    falls = [density(fit.loc + distance * rays)[0] for distance in (near, far)]
    exponent = (falls[0] - falls[1]) / np.log(far / near)
    free = exponent - np.concatenate([np.ones(2 * dim), np.full(len(others), dim)])
    # not finite: the density overflows out there; not positive: it is improper, or made of pieces
    return float(np.min(free, initial=np.inf, where=np.isfinite(free) & (free > 0)))
