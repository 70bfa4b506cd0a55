"""Independent coordinates with several modes each, such as many spike-and-slab coefficients: `k^dim` modes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.training.logs import log_sum_exp

_NORMALS = 6  # for each coordinate
_STEPS = 2  # steps of expectation maximisation at a time: 5 or 20 led to worse optima
_LEAST_SD = 1e-4  # of a normal, in standard deviations of its coordinate
_LEAST = 1e-100  # of the sd of equal points: squares of smaller numbers are zero


class Normals(NamedTuple):
    """`sum_k shares_k N(x; locs_k, sds_k^2)`, of one coordinate."""

    shares: Float[np.ndarray, " normals"]
    locs: Float[np.ndarray, " normals"]
    sds: Float[np.ndarray, " normals"]

    @classmethod
    def of(cls, x: Float[np.ndarray, " points"]) -> "Normals":
        """Normals at quantiles of points, which may be equal."""
        locs = np.quantile(x, (np.arange(_NORMALS) + 0.5) / _NORMALS)
        sds = np.maximum(np.gradient(locs), _least_sd(locs, float(x.std())))
        return cls(np.full(_NORMALS, 1.0 / _NORMALS), locs, sds)

    def draw(self, rng: np.random.Generator, num: int) -> Float[np.ndarray, " num"]:
        which = rng.choice(len(self.shares), num, p=self.shares)
        return self.locs[which] + self.sds[which] * rng.standard_normal(num)

    def log_prob(self, x: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        return log_sum_exp(self._log_parts(x), 0)

    def _log_parts(self, x: Float[np.ndarray, " points"]) -> Float[np.ndarray, "normals points"]:
        z = (x - self.locs[:, None]) / self.sds[:, None]
        return np.log(self.shares / (self.sds * np.sqrt(2.0 * np.pi)))[:, None] - 0.5 * z**2

    def towards(self, x: Float[np.ndarray, " points"], weights: Float[np.ndarray, " points"], kept: float) -> "Normals":
        """Normals moved towards points whose weights sum to 1; these normals themselves count for the share `kept`."""
        mean = self.shares @ self.locs
        sd = float(np.sqrt(self.shares @ (self.sds**2 + (self.locs - mean) ** 2)))
        new = self
        for _ in range(_STEPS):
            parts = new._log_parts(x)
            part_of = np.exp(parts - log_sum_exp(parts, 0)) * ((1.0 - kept) * weights)
            own = kept * self.shares
            count = own + part_of.sum(1)
            locs = (own * self.locs + part_of @ x) / count
            squares = own * (self.sds**2 + (self.locs - locs) ** 2) + (part_of * (x - locs[:, None]) ** 2).sum(1)
            new = Normals(count / count.sum(), locs, np.maximum(np.sqrt(squares / count), _least_sd(locs, sd)))
        return new


def _least_sd(locs: Float[np.ndarray, " normals"], sd: float) -> float:
    rounding = np.finfo(float).eps * np.abs(locs).max()
    return float(max(_LEAST_SD * sd, 100.0 * rounding, _LEAST))


class Product(NamedTuple):
    """Independent coordinates, each with a mixture of normals."""

    coordinates: tuple[Normals, ...]

    @classmethod
    def of(cls, x: Float[np.ndarray, "points dim"], settings: FlowVISettings) -> "Product":
        """Fitted to points of the same weight."""
        x = x.astype(np.float64)  # squares in single precision overflow in the tails
        start = cls(tuple(Normals.of(column) for column in x.T))
        return start.towards(x, np.ones(len(x)), settings)

    def require_coherent(self, dim: int) -> None:
        """Raise a ValueError if the parts do not fit together, for example in a damaged file."""
        for normals in self.coordinates:
            shapes = {np.shape(leaf) for leaf in normals}
            usable = (normals.sds > 0).all() and (normals.shares >= 0).all() and np.isclose(normals.shares.sum(), 1.0)
            if len(shapes) > 1 or normals.shares.ndim != 1 or not usable:
                raise ValueError(f"expected a mixture of normals for each coordinate, got {normals}")
        if len(self.coordinates) != dim:
            raise ValueError(f"expected {dim} coordinates, got {len(self.coordinates)}")

    def draw(self, rng: np.random.Generator, num: int) -> Float[np.ndarray, "num dim"]:
        return np.stack([normals.draw(rng, num) for normals in self.coordinates], axis=1)

    def log_prob(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        return np.sum([normals.log_prob(column) for normals, column in zip(self.coordinates, x.T)], axis=0)

    def towards(
        self, x: Float[np.ndarray, "points dim"], weights: Float[np.ndarray, " points"], settings: FlowVISettings
    ) -> "Product":
        """Steps of expectation maximisation for weighted points, regularised if few of them have weight."""
        total = weights.sum()
        if not total > np.finfo(float).tiny:
            return self
        weights = weights / total
        effective = 1.0 / (weights**2).sum()
        kept = settings.shrinkage * _NORMALS / (effective + settings.shrinkage * _NORMALS)
        return Product(tuple(own.towards(column, weights, kept) for own, column in zip(self.coordinates, x.T)))
