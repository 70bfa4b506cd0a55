"""Power transforms and whitening, folded into the flow that is trained after them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_flows.bijections import AbstractBijection, ConditionLayout
from numpyro_flows.density.losses import Rows
from numpyro_flows.density.powers import Powers
from numpyro_flows.density.stacking import Stack
from numpyro_flows.density.whitening import Whitening
from numpyro_flows.training.seeds import Seeds

_QUICK = (1, 4)  # components of the mixtures that compare two preparations


class Preparation(NamedTuple):
    """`whitening(powers(x))`; without `powers`, the whitening alone."""

    powers: Powers | None
    whitening: Whitening

    @classmethod
    def identity(cls, rows: Rows) -> "Preparation":
        return cls(None, Whitening.identity(rows))

    @classmethod
    def of(cls, rows: Rows, seeds: Seeds, layout: ConditionLayout | None = None) -> "Preparation":
        """Preparation with power transforms if mixtures of Gaussians then predict held-out rows better.

        Columns that are nearly a linear function of each other, such as shares of a budget, which sum to 1, lose this
        property by powers (`Ecdat/BudgetUK` of benchmarks.density.tables). `layout` is the layout of conditions that
        are not plain vectors.
        """
        plain = cls(None, Whitening.of(rows, seeds.rng("whitening"), layout))
        powers = Powers.of(rows.x, rows.weights, seeds.rng("powers"))
        if powers is None:
            return plain
        transformed = rows._replace(x=powers.rows(rows.x)[0])
        powered = cls(powers, Whitening.of(transformed, seeds.rng("whitening"), layout))
        if rows.condition is not None:
            return powered
        scores = [preparation._quick_score(rows, seeds) for preparation in (powered, plain)]
        return powered if scores[0] >= scores[1] else plain

    def _quick_score(self, rows: Rows, seeds: Seeds) -> float:
        prepared, log_det = self.rows(rows)
        weights = np.asarray(rows.weights, np.float64)
        stack = Stack.of(np.asarray(prepared.x, np.float64), weights, seeds.rng("quick mixtures"), _QUICK)
        return 0.0 if stack is None else stack.held_out + float(np.mean(weights * log_det))

    def rows(self, rows: Rows) -> tuple[Rows, Float[np.ndarray, " num"]]:
        """Prepared rows at JAX's precision, and `log |det|` of that for each."""
        log_det = np.full(len(rows.x), self.whitening.log_det)
        if self.powers is not None:
            x, of_powers = self.powers.rows(rows.x)
            rows, log_det = rows._replace(x=x), log_det + of_powers
        return self.whitening.rows(rows), log_det

    def fold(self, bijection: AbstractBijection) -> AbstractBijection:
        """The bijection of rows as they were."""
        return self.whitening.fold(bijection, *(() if self.powers is None else self.powers.bijections))
