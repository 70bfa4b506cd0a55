"""The marginal density of one coordinate beyond a fit's draws: necks that the fit cuts off, and improper ends."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator

from numpyro_flows.inference.coordinates import Coordinates
from numpyro_flows.inference.gaussian import GaussianFit, triangular
from numpyro_flows.inference.newton import Counted, Density, climb, values
from numpyro_flows.inference.scale_like import are_scales, scale_like
from numpyro_flows.inference.settings import FlowVISettings

_FEW = (2.5, 6.0, 30.0, 120.0)  # standard deviations: a first profile
_NEAR = 3.0
_NOTHING = 12.0  # nats below the centre at which a marginal has no mass left
_MOST, _MOST_WORK = 32, 320  # coordinates, and these times dimensions
_LONGER = 20  # further points if a marginal does not fall, each 1.5 times as far: to 4e5 standard deviations


class End(NamedTuple):
    """The marginal of a coordinate towards one of its ends.

    coordinate: index of the coordinate.
    name: name of its site.
    at: values, from the fit's centre outwards.
    log_marginal: log of `p(x_i, data)` at these values, with the other coordinates integrated out.
    cost: number of evaluations of the density.
    scale: whether the curvature shows that it is a scale of others.
    reached: distance that was reached, in standard deviations of the fit.
    others: points at which the density of the other coordinates is highest.
    factors: lower-triangular factors of their covariances.
    lost: whether it ends because no optimum of the others was found.
    """

    coordinate: int
    at: Float[np.ndarray, " values"]
    log_marginal: Float[np.ndarray, " values"]
    name: str = ""
    cost: int = 0
    scale: bool = False
    reached: float = np.inf
    others: Float[np.ndarray, "values others"] = np.zeros((0, 0))
    factors: Float[np.ndarray, "values others others"] = np.zeros((0, 0, 0))
    lost: bool = False

    @property
    def side(self) -> str:
        return "lower" if self.at[-1] < self.at[0] else "upper"

    @property
    def relation(self) -> str:
        return "below" if self.side == "lower" else "above"

    def beyond(self, value: float, log_evidence: float) -> float:
        """The share of the posterior that lies beyond a value, in units of the evidence."""
        outward = np.sign(self.at[-1] - self.at[0])
        away = outward * (self.at - value)
        beyond_all = self._beyond_all(max(-away[-1], 0.0), log_evidence)
        if away[-1] <= 0.0:
            return beyond_all
        finer = np.linspace(max(away[0], 0.0), away[-1], 2_000)
        smooth = PchipInterpolator(away, self.log_marginal)
        density = np.exp(np.minimum(smooth(finer) - log_evidence, 50.0))
        return float(np.trapezoid(density, finer)) + beyond_all

    def _beyond_all(self, distance: float, log_evidence: float) -> float:
        """The share of the posterior beyond a distance from the farthest value, if the marginal falls on as there.

        A profile may end where the marginal is still high, because single precision ends. Where the search for the
        others got lost, or near the centre, the last values show nothing.
        """
        slope = (self.log_marginal[-2] - self.log_marginal[-1]) / abs(self.at[-1] - self.at[-2])
        if self.lost or self.reached < _NEAR or not slope > 0.0:
            return 0.0
        return float(np.exp(min(self.log_marginal[-1] - slope * distance - log_evidence, 50.0)) / slope)

    @property
    def improper(self) -> bool:
        """Whether the marginal does not fall between the two farthest values.

        False if it rises high from the centre on, or ends near it: then the fit is far from the posterior, and the
            marginal shows nothing. False also if the search for the others got lost deep below the centre, as with an
            ODE's parameters.
        """
        first, last = self.log_marginal[[0, -1]]
        if self.reached < _NEAR or (self.lost and last < first - _NOTHING):
            return False
        far = last > first + 3.0 and self.log_marginal.min() > first - 0.5
        return bool(not far and np.isfinite(self.log_marginal[-2:]).all() and not _falls(self.at, self.log_marginal))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def ends(
    density: Density, fit: GaussianFit, coordinates: Coordinates, settings: FlowVISettings
) -> tuple[list[End], int]:
    """Both ends of single coordinates' marginals, by Laplace's approximation to the integral over all others.

    The coordinates are those that are scales of others, such as an unconstrained `log tau`, constrained ones, and those
    with a flat prior. If there are many, some are left out; their number is returned too. In a neck the others'
    conditional distribution is nearly Gaussian, so the approximation is close there. An end stops if no optimum of the
    others is found, or if their scales have become too uneven for the arithmetic.
    """
    chosen = np.flatnonzero(coordinates.constrained | (coordinates.flat & ~coordinates.periodic))
    if fit.scale.ndim == 1:
        return [], len(chosen)
    counted = Counted(density)
    dependence = scale_like(counted, fit)
    scales = np.flatnonzero(are_scales(dependence))
    every = sorted(np.union1d(chosen, scales), key=lambda i: -dependence[i])
    num = max(settings.profiled, min(_MOST, _MOST_WORK // fit.loc.size))
    reach = coordinates.reach
    profiles = [_Profile(fit, int(i), sign, reach[i]) for i in sorted(every[:num]) for sign in (-1.0, 1.0)]
    _to(counted, profiles, _FEW, settings)
    closer = [k for k, profile in enumerate(profiles) if profile.i in scales or not profile.plain]
    for k in closer:
        profiles[k] = profiles[k].begun_anew()
    _fully(counted, [profiles[k] for k in closer], settings)
    found = [profile for profile in profiles if len(profile.optima) > 1]
    cost = counted.num // max(len(found), 1)
    made = [profile.end(str(coordinates.names[profile.i]), cost, profile.i in scales) for profile in found]
    return made, max(len(every) - num, 0)


def _to(
    density: Density, profiles: list["_Profile"], distances: Sequence[float], settings: FlowVISettings
) -> list["_Profile"]:
    """Profiles out to these distances from the fit's centre; those that got there."""
    for distance in (0.0, *distances):
        profiles = _further(density, profiles, distance, settings)
    return profiles


def _fully(density: Density, profiles: list["_Profile"], settings: FlowVISettings) -> None:
    """Profiles at all distances, and beyond if they do not fall."""
    farthest = settings.profile_distances[-1]
    going = _to(density, profiles, settings.profile_distances, settings)
    for profile in profiles:
        profile.look_back(density, settings)
    for i in range(_LONGER):  # as it may only rise to another mode
        going = [profile for profile in going if not profile.falls]
        going = _further(density, going, farthest * 1.5 ** (i + 1), settings)


def _falls(at: Sequence[float] | np.ndarray, log_marginal: Sequence[float] | np.ndarray) -> bool:
    """Whether a marginal falls between the two farthest values."""
    return bool(log_marginal[-1] <= log_marginal[-2] - 3e-4 * abs(at[-1] - at[-2]))


class _Optimum(NamedTuple):
    """The point where the density of the others is highest at a value of coordinate `i`, and its curvature there.

    factor: `(dim, dim - 1)`, zero in row `i`.
    """

    x: Float[np.ndarray, " dim"]
    height: float
    factor: Float[np.ndarray, "dim others"]
    converged: bool

    @property
    def log_marginal(self) -> float:
        """By Laplace's approximation."""
        num = self.factor.shape[1]
        log_det = np.log(np.linalg.svd(self.factor, compute_uv=False)).sum()
        return float(self.height + log_det + 0.5 * num * np.log(2 * np.pi))


def _further(
    density: Density, profiles: list["_Profile"], distance: float, settings: FlowVISettings
) -> list["_Profile"]:
    """Extend profiles by one value, at a distance from the fit's centre, in the same calls; the extended ones."""
    if not profiles:
        return []
    candidates = np.stack([profile.starts(distance) for profile in profiles])
    heights = values(density, candidates.reshape(-1, candidates.shape[2])).reshape(candidates.shape[:2])
    better = np.argmax(np.where(np.isnan(heights), -np.inf, heights), axis=1)
    starts = candidates[np.arange(len(profiles)), better]
    factors = np.stack([profile.factor for profile in profiles])
    optima = _highest(density, starts, factors, settings)
    return [profile for profile, optimum in zip(profiles, optima) if profile.goes_on(optimum)]


def _highest(
    density: Density,
    starts: Float[np.ndarray, "starts dim"],
    factors: Float[np.ndarray, "starts dim others"],
    settings: FlowVISettings,
) -> list[_Optimum]:
    if starts.shape[1] == 1:  # no other coordinate to climb in
        return [_Optimum(x, height, factors[0], True) for x, height in zip(starts, values(density, starts))]
    return [_Optimum(*climbed) for climbed in zip(*climb(density, starts, factors, settings))]


class _Profile:
    """The optima of the others for values of coordinate `i` on one side of a fit, from its centre outwards."""

    def __init__(self, fit: GaussianFit, i: int, sign: float, reach: float):
        self.i, self._fit, self._sign, self._reach = i, fit, sign, reach
        self._others = np.delete(np.arange(fit.loc.size), i)
        joint = triangular(fit.scale[[i, *self._others]])  # first its own row, then the others' given it
        self._sd = joint[0, 0]
        self._slope = fit.scale @ fit.scale[i] / self._sd**2  # of the others' conditional mean
        self._first = np.insert(joint[1:, 1:], i, 0.0, axis=0)
        self.optima: list[_Optimum] = []
        self._lost = False

    @property
    def factor(self) -> Float[np.ndarray, "dim others"]:
        """The last factor, or the fit's."""
        return self.optima[-1].factor if self.optima else self._first

    def starts(self, distance: float) -> Float[np.ndarray, "2 dim"]:
        """Two points with coordinate `i` at a distance from the fit's centre, in standard deviations.

        The others are at the last optimum, or continue the step to it from the optimum before.
        """
        at = self._fit.loc[self.i] + self._sign * distance * self._sd
        last = self.optima[-1].x if self.optima else self._fit.loc
        there = np.stack([last, last])
        if len(self.optima) > 1:
            before = self.optima[-2].x
            there[1] += (last - before) * (at - last[self.i]) / (last[self.i] - before[self.i])
        elif self.optima:
            there[1] += self._slope * (at - last[self.i])
        there[:, self.i] = at
        return there

    def goes_on(self, optimum: _Optimum) -> bool:
        """Keep an optimum if Laplace's approximation holds there; returns whether it does."""
        self._lost = not (optimum.converged and np.isfinite(optimum.height))
        if self._lost or not abs(optimum.x[self.i]) < self._reach:
            return False
        most_uneven = np.finfo(optimum.x.dtype).eps ** -0.4  # beyond this, differences of gradients are rounding errors
        if len(self._others):
            first, own = self._first[self._others], optimum.factor[self._others]
            if np.linalg.cond(np.linalg.solve(first, own)) > most_uneven:
                return False
        self.optima.append(optimum)
        return True

    @property
    def falls(self) -> bool:
        last = self.optima[-2:]
        return _falls([optimum.x[self.i] for optimum in last], [optimum.log_marginal for optimum in last])

    @property
    def plain(self) -> bool:
        """Whether a first profile reached its end and falls like a Gaussian's: then a closer one would show nothing."""
        if len(self.optima) <= len(_FEW):
            return False
        depth = [optimum.log_marginal - self.optima[0].log_marginal for optimum in self.optima]
        away = [abs(optimum.x[self.i] - self._fit.loc[self.i]) / self._sd for optimum in self.optima]
        first = next((k for k, value in enumerate(depth) if value < -_NOTHING), len(depth))
        # farther out it falls again and again, by as much
        return first < len(depth) and away[first] < 7.0 and bool(np.all(np.diff(depth[first - 1 :]) < -0.5 * _NOTHING))

    def begun_anew(self) -> "_Profile":
        return _Profile(self._fit, self.i, self._sign, self._reach)

    def look_back(self, density: Density, settings: FlowVISettings) -> None:
        """If the marginal rises at its end, climb from there to the values before.

        The others may have several optima, and the climbs outwards may have found a lower one.
        """
        if len(self.optima) < 2 or self.falls:
            return
        for k in range(len(self.optima) - 2, -1, -1):
            start = self.optima[k + 1].x.copy()
            start[self.i] = self.optima[k].x[self.i]
            (optimum,) = _highest(density, start[None], self.optima[k + 1].factor[None], settings)
            if not (optimum.converged and optimum.log_marginal > self.optima[k].log_marginal + 0.01):
                return
            self.optima[k] = optimum

    def end(self, name: str, cost: int, scale: bool) -> End:
        at = np.array([optimum.x[self.i] for optimum in self.optima])
        log_marginal = np.array([optimum.log_marginal for optimum in self.optima])
        others = np.stack([optimum.x[self._others] for optimum in self.optima])
        factors = np.stack([triangular(optimum.factor[self._others]) for optimum in self.optima])
        reached = float(abs(at[-1] - at[0]) / self._sd)
        return End(self.i, at, log_marginal, name, cost, scale, reached, others, factors, self._lost)
