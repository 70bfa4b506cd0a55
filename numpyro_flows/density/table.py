"""The checked data of a fit, and which rows are for what."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from numpyro_flows.density.conditions import Conditions
from numpyro_flows.density.losses import Rows
from numpyro_flows.density.observations import Observations, weights_of
from numpyro_flows.density.preparation import Preparation
from numpyro_flows.training.seeds import Seeds


class Table(NamedTuple):
    """Rows to train on, to stop by, and to test on.

    condition_dropout: share of the rows of a round whose condition is replaced by zeros.
    """

    observations: Observations
    conditions: Conditions | None
    weights: Float[np.ndarray, " num"]
    train: Int[np.ndarray, " some"]
    held: Int[np.ndarray, " some"]
    test: Int[np.ndarray, " some"]
    condition_dropout: float
    seeds: Seeds

    def draw(self, index: Int[np.ndarray, " some"], use: str, *numbers: int) -> tuple[Rows, Float[np.ndarray, " some"]]:
        """Some rows, unconstrained, with noise where they have any, and `log |det|` of that."""
        x, log_det = self.observations.rows(index, self.seeds.rng(use, *numbers))
        condition = None if self.conditions is None else self.conditions.values[index]
        return Rows(x, condition, weights_of(self.weights, index, use)), log_det

    @property
    def changes(self) -> bool:
        """Whether each round has rows of its own."""
        return self.observations.are_noisy or self.condition_dropout > 0

    def round(self, number: int, preparation: Preparation) -> Rows:
        """The prepared rows of a round."""
        rows = self.draw(self.train, "noise", number)[0]
        if rows.condition is not None:
            random = self.seeds.rng("condition dropout", number).random((len(rows.x), 1))
            rows = rows._replace(condition=np.where(random < self.condition_dropout, 0.0, rows.condition))
        return preparation.rows(rows)[0]
