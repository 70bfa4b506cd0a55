"""Simple densities of the training rows: a flow is compared with them, and its training starts from the mixture."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_flows.density.losses import Rows
from numpyro_flows.density.mixture import GaussianMixture
from numpyro_flows.density.preparation import Preparation
from numpyro_flows.density.result import Score
from numpyro_flows.density.stacking import Stack
from numpyro_flows.training.seeds import Seeds


class Baselines(NamedTuple):
    """Two Gaussians and a mixture of Gaussians.

    gaussian: of the rows as they are.
    transformed: of prepared rows.
    stack: what the mixture is made of, and `mixture`, of prepared rows; None where none is asked for, and for very many
        coordinates.
    """

    gaussian: GaussianMixture
    transformed: GaussianMixture
    stack: Stack | None
    mixture: GaussianMixture | None

    @classmethod
    def of(cls, rows: Rows, preparation: Preparation, seeds: Seeds, *, mixture: bool) -> "Baselines":
        prepared = in_double(preparation.rows(rows)[0])
        stack = Stack.of(prepared.x, prepared.weights, seeds.rng("mixtures")) if mixture else None
        return cls(
            GaussianMixture.single(rows.x, rows.weights),
            GaussianMixture.single(prepared.x, prepared.weights),
            stack,
            None if stack is None else stack.fit(prepared.x, prepared.weights, seeds.rng("mixture")),
        )

    def scores(self, rows: Rows, log_det: Float[np.ndarray, " num"], preparation: Preparation) -> dict[str, Score]:
        """On rows that nothing was fitted to; `log_det` is that of how they were made unconstrained."""
        prepared, of_preparation = preparation.rows(rows)
        prepared, of_preparation = in_double(prepared), log_det + of_preparation
        log_probs = {"gaussian": self.gaussian.log_prob(rows.x) + log_det}
        if preparation.powers is not None:
            log_probs["transformed_gaussian"] = self.transformed.log_prob(prepared.x) + of_preparation
        if self.mixture is not None:
            log_probs["mixture"] = self.mixture.log_prob(prepared.x) + of_preparation
        return {name: Score.of(log_prob, rows.weights) for name, log_prob in log_probs.items()}

    def refitted(self, rows: Rows, preparation: Preparation, seeds: Seeds) -> GaussianMixture:
        """The mixture of the same members, fitted to more rows."""
        assert self.stack is not None
        prepared = in_double(preparation.rows(rows)[0])
        return self.stack.fit(prepared.x, prepared.weights, seeds.rng("last mixture"))


def in_double(rows: Rows) -> Rows:
    """Rows in NumPy's double precision."""
    return rows._replace(x=np.asarray(rows.x, np.float64), weights=np.asarray(rows.weights, np.float64))
