"""Distance of draws of log scales from their exact marginals, and the mass that they miss at both ends."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from benchmarks.necks.case import Marginal

SD_BOUND = 0.03  # relative
CUT_BOUND = 0.005  # share of the posterior beyond all draws

COLUMNS = ("mean_error", "sd_error", "sd_error_se", "below", "above", "as_asked")


class Score(NamedTuple):
    """The draws of one log scale against the exact marginal.

    mean_error: in exact standard deviations.
    sd_error: relative, and `sd_error_se`, its Monte Carlo error.
    below, above: exact shares of the posterior beyond the lowest and the highest draw.
    """

    mean_error: float
    sd_error: float
    sd_error_se: float
    below: float
    above: float

    @classmethod
    def of(cls, x: Float[np.ndarray, " draws"], num_effective: float, exact: Marginal) -> "Score":
        sd = x.std()
        z = (x - x.mean()) / sd
        return cls(
            mean_error=float((x.mean() - exact.mean) / exact.sd),
            sd_error=float(sd / exact.sd - 1.0),
            sd_error_se=float(np.sqrt(((z**4).mean() - 1.0) / 4.0 / num_effective)),
            below=exact.below(float(x.min())),
            above=exact.above(float(x.max())),
        )

    @property
    def asked(self) -> bool:
        """Whether all values are within the bounds; a NaN is not."""
        return abs(self.sd_error) <= SD_BOUND and max(self.below, self.above) <= CUT_BOUND

    def columns(self) -> dict[str, Any]:
        texts = (f"{self.mean_error:+.3f}", f"{self.sd_error:+.4f}", f"{self.sd_error_se:.4f}")
        shares = (f"{self.below:.5f}", f"{self.above:.5f}")
        return dict(zip(COLUMNS, (*texts, *shares, self.asked), strict=True))
