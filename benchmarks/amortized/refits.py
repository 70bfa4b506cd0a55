"""What becomes of data sets whose amortised posterior is refused: `FlowVI` fits them."""

import warnings
from typing import Any

import numpy as np

from numpyro_flows import AmortizedPosterior, ManyPosteriors


def certified_with_refit(
    amortized: AmortizedPosterior, many: ManyPosteriors, y: np.ndarray, *args: Any, most: int
) -> float:
    """The certified share after refits; at most so many are tried, and stand for all others."""
    refused = np.flatnonzero(~many.certified)
    if not len(refused):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rescued = np.mean([amortized.posterior({"y": y[i]}, *args).certified for i in refused[:most]])
    return (many.certified.sum() + rescued * len(refused)) / len(y)
