"""The marginal density of one coordinate, beyond where a fit has draws: necks that it cuts off, and improper ends."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator

from numpyro_flows.inference.gaussian import GaussianFit, triangular
from numpyro_flows.inference.newton import Counted, Density, climb
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.target import Coordinates


class End(NamedTuple):
    """The marginal of a coordinate towards one of its ends.

    coordinate: its number, and `name`, its site's.
    at: values, from the fit's centre outwards.
    log_marginal: log of `p(x_i, data)` there, with the other coordinates integrated out.
    cost: evaluations of the density.
    others: where the density of the other coordinates is highest there, and `factors`, lower-triangular ones of their
        covariances.
    """

    coordinate: int
    at: Float[np.ndarray, " values"]
    log_marginal: Float[np.ndarray, " values"]
    name: str = ""
    cost: int = 0
    others: Float[np.ndarray, "values others"] = np.zeros((0, 0))
    factors: Float[np.ndarray, "values others others"] = np.zeros((0, 0, 0))

    @property
    def side(self) -> str:
        return "lower" if self.at[-1] < self.at[0] else "upper"

    @property
    def relation(self) -> str:
        return "below" if self.side == "lower" else "above"

    def beyond(self, value: float, log_evidence: float) -> float:
        """The share of the posterior that lies beyond a value."""
        outward = np.sign(self.at[-1] - self.at[0])
        away = outward * (self.at - value)
        if away[-1] <= 0.0:
            return 0.0
        finer = np.linspace(max(away[0], 0.0), away[-1], 2_000)
        smooth = PchipInterpolator(away, self.log_marginal)
        density = np.exp(np.minimum(smooth(finer) - log_evidence, 50.0))
        return float(np.trapezoid(density, finer))

    @property
    def improper(self) -> bool:
        """Whether the marginal does not fall between the two farthest values."""
        last = self.log_marginal[-2:]
        return bool(np.isfinite(last).all() and last[1] > last[0] - 3e-4 * abs(self.at[-1] - self.at[-2]))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def ends(density: Density, fit: GaussianFit, coordinates: Coordinates, settings: FlowVISettings) -> list[End]:
    """Both ends of the first constrained coordinates, by Laplace's approximation to the integral over all others.

    In a neck the others' conditional distribution is nearly Gaussian, so the approximation is close there. An end stops
    where no optimum of the others is found, or their scales have become too uneven for the arithmetic.
    """
    found = []
    if fit.scale.ndim == 1:
        return found
    for i in np.flatnonzero(coordinates.constrained)[: settings.profiled]:
        for sign in (-1.0, 1.0):
            counted = Counted(density)
            end = _end(counted, fit, int(i), sign, settings)
            if len(end.at) > 1:
                found.append(end._replace(name=str(coordinates.names[i]), cost=counted.num))
    return found


def _end(density: Density, fit: GaussianFit, i: int, sign: float, settings: FlowVISettings) -> End:
    dim = fit.loc.size
    others = np.delete(np.arange(dim), i)
    joint = triangular(fit.scale[[i, *others]])  # its first row is the coordinate's, the rest the others' given it
    y, factor = fit.loc[others], joint[1:, 1:]
    most_uneven = np.finfo(fit.loc.dtype).eps ** -0.4  # beyond, differences of gradients are rounding errors
    at, log_marginal, optima, factors = [], [], [], []
    for distance in (0.0, *settings.profile_distances):
        value = fit.loc[i] + sign * distance * joint[0, 0]

        def pinned(points: np.ndarray, value: float = value) -> tuple[np.ndarray, np.ndarray]:
            heights, gradients = density(np.insert(points, i, value, axis=1))
            return heights, gradients[:, others]

        if dim == 1:
            height, log_det = pinned(np.zeros((1, 0)))[0][0], 0.0
        else:
            end = climb(pinned, y[None], factor, settings)
            if not end.converged[0] or np.linalg.cond(np.linalg.solve(joint[1:, 1:], end.factor[0])) > most_uneven:
                break
            y, factor, height = end.x[0], end.factor[0], end.log_density[0]
            log_det = np.linalg.slogdet(factor)[1]
        if not np.isfinite(height):
            break
        at.append(value)
        log_marginal.append(height + log_det + 0.5 * (dim - 1) * np.log(2 * np.pi))
        optima.append(y)
        factors.append(triangular(factor))
    num = len(at)
    return End(
        i,
        np.array(at),
        np.array(log_marginal),
        others=np.array(optima).reshape(num, dim - 1),
        factors=np.array(factors).reshape(num, dim - 1, dim - 1),
    )
