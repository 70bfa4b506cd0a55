"""Newton's method from many starts at once, on the host. It needs one compiled function: the density's gradient."""

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


_FEWEST_AXES = 5  # with fewer axes, a curvature costs less than the steps that it would save
_NEAR = 0.1  # squared length of a last step, in standard deviations: the curvature hardly changes over it


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
    """The results of climbs.

    factor: for each climb a matrix `C` such that `C C^T` is the inverse of the absolute curvature along the columns of
        `C`, at the end or at the point before the last step.
    converged: which climbs ended at a local optimum.
    """

    x: Float[np.ndarray, "climbs dim"]
    log_density: Float[np.ndarray, " climbs"]
    factor: Float[np.ndarray, "climbs dim directions"]
    converged: Bool[np.ndarray, " climbs"]


@np.errstate(over="ignore", invalid="ignore")  # code that needs finite values checks for them
def climb(
    density: Density,
    starts: Float[np.ndarray, "climbs dim"],
    factor: Float[np.ndarray, "dim dim"] | Float[np.ndarray, "climbs dim directions"],
    settings: FlowVISettings,
    *,
    curvature_at_ends: bool = True,
) -> Climb:
    """Climb from every start, in coordinates where the inverse of the first curvature is `factor factor^T`.

    The climbs stay in the plane around their starts that the columns of `factor` span (one for all climbs, or one
    each).

    The steps use the absolute values of the curvature's eigenvalues, which leads away from saddle points (Dauphin et
    al. 2014, arXiv 1406.2572), and the best of several lengths. The curvature comes from differences of gradients along
    axes that the earlier curvature makes standard. So a model needs no second derivatives, which models with an ODE
    solver do not have, and scales that differ by orders of magnitude do no harm. If the density is expensive
    (`FlowVISettings.keep_curvature`), several steps share one curvature and correct it by BFGS (Nocedal and Wright
    2006, section 6.1).

    Without `curvature_at_ends` the factors of the ends are meaningless.
    """
    climbs = _Climbs(density, starts, factor, settings)
    for _ in range(settings.newton_steps * (1 + climbs.patience)):
        if not climbs.active.any():
            break
        climbs.renew_curvature()
        climbs.step(curvature_at_ends)
    return Climb(climbs.x, climbs.height, climbs.factors, climbs.converged)


class _Climbs:
    """The state of all climbs; one row each.

    factors: matrices that make an earlier curvature standard.
    metric: the inverse curvature in those coordinates.
    fresh: whether it comes from differences at `x`.
    due: whether it must be renewed before the next step.
    """

    def __init__(self, density: Density, starts: np.ndarray, factor: np.ndarray, settings: FlowVISettings):
        self._density, self._settings = density, settings
        self.x = np.array(starts)
        self.height, self._gradient = map(np.array, density(self.x))
        num, (dim, axes) = len(self.x), factor.shape[-2:]
        self.factors = np.array(np.broadcast_to(factor, (num, dim, axes)))
        self.converged = np.zeros(num, bool)
        self.active = np.isfinite(self.height) & np.isfinite(self._gradient).all(1)
        keeps = settings.keep_curvature and axes >= _FEWEST_AXES
        self.patience = max(4, axes // 4) if keeps else 0
        self._metric = np.broadcast_to(np.eye(axes, dtype=self.factors.dtype), (num, axes, axes)).copy()
        self._due, self._fresh = np.ones(num, bool), np.zeros(num, bool)
        self._concave, self._renewed = np.zeros(num, bool), np.zeros(num, int)
        self._since, self._mark = np.zeros(num, int), np.full(num, np.inf)

    def renew_curvature(self) -> None:
        """Renew the curvature by differences if it is due; a climb that has renewed it too often ends."""
        self.active &= ~(self._due & (self._renewed == self._settings.newton_steps))
        rows = np.flatnonzero(self.active & self._due)
        if rows.size == 0:
            return
        self.factors[rows], self._concave[rows] = _curvature_factors(self._density, self.x[rows], self.factors[rows])
        self._metric[rows] = np.eye(self._metric.shape[1])
        self._renewed[rows] += 1
        self._fresh[rows], self._due[rows], self._since[rows], self._mark[rows] = True, self.patience == 0, 0, np.inf

    def step(self, curvature_at_ends: bool) -> None:
        """Take the best of several steps in every climb; only a full step if it is higher and the curvature is not new.

        A climb ends if its step is short, or no step is higher with a new curvature.
        """
        rows = np.flatnonzero(self.active)
        if rows.size == 0:
            return
        tolerance, fresh = self._settings.newton_tolerance, self._fresh[rows]
        pull = _pull(self.factors[rows], self._gradient[rows])
        move = np.einsum("nij,nj->ni", self._metric[rows], pull)
        squares = (pull * move).sum(1)
        better, lengths = self._moved(rows, np.einsum("nij,nj->ni", self.factors[rows], move))
        after = _pull(self.factors[rows], self._gradient[rows])
        left = (after * np.einsum("nij,nj->ni", self._metric[rows], after)).sum(1)
        arrived = (squares < tolerance) | ((squares < _NEAR) & (left < 0.01 * tolerance))
        bent = self._correct(rows, lengths[:, None] * move, pull - after)
        ends = fresh if curvature_at_ends else np.ones_like(fresh)
        self.converged[rows] = arrived & ends & (self._concave[rows] | ~fresh)
        self.active[rows] = (better | ~fresh) & ~self.converged[rows]
        self._since[rows] += 1
        slow = (self._since[rows] == self.patience) & ~(left < 0.1 * self._mark[rows])
        checked = fresh | (self._since[rows] == self.patience)
        self._mark[rows] = np.where(checked, left, self._mark[rows])
        self._since[rows] = np.where(checked, 0, self._since[rows])
        self._due[rows] |= arrived | ~better | ~bent | (slow & ~fresh)
        self._fresh[rows] = False

    def _moved(self, rows: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move the climbs along their steps; which ones are higher now, and by which length of the step."""
        lengths = np.asarray(self._settings.newton_lengths)
        better, taken = np.zeros(len(rows), bool), np.zeros(len(rows), steps.dtype)
        for fresh, tried in ((False, lengths[:1]), (False, lengths[1:]), (True, lengths)):
            (which,) = np.nonzero((self._fresh[rows] == fresh) & ~better)
            if which.size == 0 or tried.size == 0:
                continue
            at = rows[which]
            candidates = self.x[at, None] + tried[:, None] * steps[which, None]
            heights, gradients = _in_rows(self._density, candidates)
            best = np.argmax(heights, axis=1)
            higher = np.max(heights, axis=1) > self.height[at]
            chosen = higher.nonzero()[0], best[higher]
            self.x[at[higher]], self.height[at[higher]] = candidates[chosen], heights[chosen]
            self._gradient[at[higher]] = gradients[chosen]
            better[which[higher]], taken[which[higher]] = True, tried[best[higher]]
        return better, taken

    def _correct(self, rows: np.ndarray, moved: np.ndarray, fallen: np.ndarray) -> np.ndarray:
        """Correct the metric by the decrease of the gradient along a step; whether it decreased, as below a mode."""
        if self.patience == 0:
            return np.ones(len(rows), bool)
        product = (moved * fallen).sum(1)
        bent = np.isfinite(product) & (product > 0)
        rows, moved, fallen, product = rows[bent], moved[bent], fallen[bent], product[bent]
        along = np.einsum("ni,nj->nij", moved, fallen) / product[:, None, None]
        keep = np.eye(moved.shape[1]) - along
        self._metric[rows] = np.einsum("nij,njk,nlk->nil", keep, self._metric[rows], keep, optimize=True)
        self._metric[rows] += np.einsum("ni,nj->nij", moved, moved) / product[:, None, None]
        return bent


def _pull(factors: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The step to the optimum of a parabola, in coordinates in which its curvature is standard."""
    return np.einsum("nji,nj->ni", factors, gradient)


def _curvature_factors(density: Density, x: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """New factors at `x` from differences of gradients along the old factors, and whether all directions curve down."""
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
