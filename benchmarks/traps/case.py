"""A trap: a density on which importance weights alone give a wrong verdict, with its exact answer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float

Values = dict[str, np.ndarray]


class Truth(NamedTuple):
    """The exact answers. A site without mean or standard deviation has only quantiles."""

    log_evidence: float | None  # None: not known, not compared
    moments: dict[str, tuple[np.ndarray, np.ndarray]]  # mean and standard deviation of each scalar of a site
    quantiles: Mapping[str, np.ndarray] = {}  # q25, q50, q75, in front of the site's shape


class Case(NamedTuple):
    """A model with its exact answer.

    `derived` maps draws to named functions of draws, such as the direction of an angle; `truth` may be about them.
    """

    model: Callable
    truth: Callable[[], Truth] | None  # in double precision; None: no evidence exists, never to be certified
    kind: str
    args: tuple = ()
    settings: Mapping[str, Any] = {}
    derived: Callable[[Values], Values] = lambda draws: {}

    @property
    def proper(self) -> bool:
        return self.truth is not None


class Mixture(NamedTuple):
    """Normals with diagonal covariances; `weights` are normalised where they are used."""

    weights: Float[np.ndarray, " components"]
    means: Float[np.ndarray, "components dim"]
    sds: Float[np.ndarray, "components dim"]

    @property
    def probs(self) -> Float[np.ndarray, " components"]:
        return self.weights / self.weights.sum()

    def distribution(self) -> dist.MixtureSameFamily:
        return dist.MixtureSameFamily(dist.Categorical(self.probs), dist.Normal(self.means, self.sds).to_event(1))

    def moments(self) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " dim"]]:
        """Mean and standard deviation of each coordinate."""
        mean = self.probs @ self.means
        return mean, np.sqrt(self.probs @ (self.sds**2 + self.means**2) - mean**2)

    def truth(self, site: str = "x") -> Truth:
        return Truth(0.0, {site: self.moments()})


def normals(weights: list[float], means: list[Any], sds: list[Any], dim: int) -> Mixture:
    """A mixture whose means and standard deviations are broadcast to `dim` coordinates."""
    rows = [np.stack([np.broadcast_to(np.asarray(row, float), (dim,)) for row in part]) for part in (means, sds)]
    return Mixture(np.array(weights, float), rows[0], rows[1])
