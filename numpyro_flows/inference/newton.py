"""Newton's method from many starts at once, on the host: it needs one compiled function, the density's gradient."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from numpyro_flows.inference.settings import FlowVISettings

Density = Callable[
    [Float[np.ndarray, "points dim"]], tuple[Float[np.ndarray, " points"], Float[np.ndarray, "points dim"]]
]
"""`density(x) -> (log p(x), its gradients)` for points `x`, in NumPy; values may be NaN or infinite.

It may have a method `values(x) -> log p(x)` that costs less.
"""


def values(density: Density, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
    """`log p(x)` alone."""
    return density.values(x) if hasattr(density, "values") else density(x)[0]  # pyright: ignore[reportFunctionMemberAccess]


_NEAR = 0.1  # squared length of a last step, in standard deviations, over which the curvature hardly changes


class Counted:
    """A density that counts the points at which it is evaluated."""

    def __init__(self, density: Density):
        self._density, self.num = density, 0

    def __call__(self, x: Float[np.ndarray, "points dim"]) -> tuple[np.ndarray, np.ndarray]:
        self.num += len(x)
        return self._density(x)

    def values(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        self.num += len(x)
        return values(self._density, x)


class Climb(NamedTuple):
    """Where climbs ended.

    `factor` holds for each a `C` with `C C^T` the inverse of the absolute curvature, along its columns, there or at the
    point before the last step; `converged` says which ones ended at a local optimum.
    """

    x: Float[np.ndarray, "climbs dim"]
    log_density: Float[np.ndarray, " climbs"]
    factor: Float[np.ndarray, "climbs dim directions"]
    converged: Bool[np.ndarray, " climbs"]


@np.errstate(over="ignore", invalid="ignore")  # what is not finite far out is dealt with where it matters
def climb(
    density: Density,
    starts: Float[np.ndarray, "climbs dim"],
    factor: Float[np.ndarray, "dim dim"] | Float[np.ndarray, "climbs dim directions"],
    settings: FlowVISettings,
) -> Climb:
    """Climb from every start, in coordinates where the inverse of the first curvature is `factor factor^T`.

    The climbs stay in the plane that the columns of `factor`, one for all or each its own, span around their starts.

    The steps use the absolute values of the curvature's eigenvalues, which climbs away from saddles (Dauphin et al.
    2014, arXiv 1406.2572), and the best of several lengths. The curvature comes from differences of gradients along
    axes that the curvature before makes standard: so a model needs no second derivatives, which those with an ODE
    solver do not have, and scales that differ by orders of magnitude do no harm.
    """
    x = np.array(starts)
    height, gradient = map(np.array, density(x))
    factors = np.array(np.broadcast_to(factor, (len(x), *factor.shape[-2:])))
    converged = np.zeros(len(x), bool)
    active = np.isfinite(height) & np.isfinite(gradient).all(1)
    lengths = np.asarray(settings.newton_lengths)[:, None]
    for _ in range(settings.newton_steps):
        (rows,) = np.nonzero(active)
        if rows.size == 0:
            break
        factors[rows], concave = _curvature_factors(density, x[rows], factors[rows])
        pull = _pull(factors[rows], gradient[rows])
        move = np.einsum("nij,nj->ni", factors[rows], pull)
        candidates = x[rows, None] + lengths * move[:, None]
        heights, gradients = _in_rows(density, candidates)
        best = np.argmax(heights, axis=1)
        better = np.max(heights, axis=1) > height[rows]
        moved, taken = rows[better], (better.nonzero()[0], best[better])
        x[moved], height[moved], gradient[moved] = candidates[taken], heights[taken], gradients[taken]
        squares, left = (pull**2).sum(1), (_pull(factors[rows], gradient[rows]) ** 2).sum(1)
        arrived = (squares < settings.newton_tolerance) | (
            (squares < _NEAR) & (left < 0.01 * settings.newton_tolerance)
        )
        converged[rows] = concave & arrived
        active[rows] = better & ~converged[rows]
    return Climb(x, height, factors, converged)


def _pull(factors: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The step to the optimum of a parabola, in coordinates in which its curvature is standard."""
    return np.einsum("nji,nj->ni", factors, gradient)


def _curvature_factors(density: Density, x: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """New factors at `x` from differences of gradients along the columns of the old ones, and where all curve down."""
    half = np.finfo(x.dtype).eps ** (1 / 3)
    ahead = x[:, None] + half * factors.swapaxes(1, 2)
    behind = x[:, None] - half * factors.swapaxes(1, 2)
    _, gradients = _in_rows(density, np.concatenate([ahead, behind], axis=1))
    num = factors.shape[2]
    curvature = (gradients[:, num:] - gradients[:, :num]) / (2 * half) @ factors
    usable = np.isfinite(curvature).all((1, 2), keepdims=True)
    curvature = np.where(usable, 0.5 * (curvature + curvature.swapaxes(1, 2)), np.eye(num))
    values, vectors = np.linalg.eigh(curvature)
    concave = usable[:, 0, 0] & (values > 0).all(1)
    values = np.abs(values)
    values = np.maximum(values, values.max(1, keepdims=True) * np.finfo(x.dtype).eps)
    values = np.where(values > 0, values, 1.0)  # no curvature at all: the scale stays as it is
    return factors @ (vectors / np.sqrt(values)[:, None]), concave


def _in_rows(density: Density, x: Float[np.ndarray, "climbs points dim"]) -> tuple[np.ndarray, np.ndarray]:
    heights, gradients = density(x.reshape(-1, x.shape[-1]))
    usable = np.isfinite(heights) & np.isfinite(gradients).all(1)
    heights = np.where(usable, heights, -np.inf)
    return heights.reshape(x.shape[:2]), gradients.reshape(x.shape)
