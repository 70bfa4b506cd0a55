"""Simple densities of the training rows. The flow is compared with them, and its training starts from the mixture."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float

from numpyro_flows.density.losses import Rows
from numpyro_flows.density.mixture import GaussianMixture
from numpyro_flows.density.preparation import Preparation
from numpyro_flows.density.result import Score
from numpyro_flows.density.stacking import MOST_COMPONENTS, Stack
from numpyro_flows.training.seeds import Seeds


@dataclass(frozen=True)
class Baselines:
    """Two Gaussians and, if asked for, a mixture of Gaussians, which is fitted when it is first used.

    gaussian: Gaussian of the rows as they are.
    prepared: rows in the form used for training.
    stacks: whether there is a mixture.
    """

    gaussian: GaussianMixture
    prepared: Rows
    seeds: Seeds
    stacks: bool

    @classmethod
    def of(cls, rows: Rows, prepared: Rows, seeds: Seeds, *, mixture: bool) -> "Baselines":
        """Baselines of some rows, without a mixture if there are very many coordinates or very few rows."""
        stacks = mixture and Stack.possible(rows.x, rows.weights)
        return cls(GaussianMixture.single(rows.x, rows.weights), prepared, seeds, stacks)

    @cached_property
    def stack(self) -> Stack | None:
        """The stack behind the mixture."""
        rows = in_double(self.prepared)
        return Stack.of(rows.x, rows.weights, self.seeds.rng("mixtures")) if self.stacks else None

    @cached_property
    def mixture(self) -> GaussianMixture | None:
        """The mixture of prepared rows."""
        rows = in_double(self.prepared)
        return None if self.stack is None else self.stack.fit(rows.x, rows.weights, self.seeds.rng("mixture"))

    @property
    def base(self) -> dist.Distribution:
        """The mixture, padded to the largest number of components that a stack can have."""
        assert self.mixture is not None
        return self.mixture.filled(MOST_COMPONENTS).to_train_on

    def scores(self, rows: Rows, log_det: Float[np.ndarray, " num"], preparation: Preparation) -> dict[str, Score]:
        """Scores on held-out rows; `log_det` is the log-determinant of the transform that made them unconstrained."""
        prepared, of_preparation = preparation.rows(rows)
        prepared, of_preparation = in_double(prepared), log_det + of_preparation
        log_probs = {"gaussian": self.gaussian.log_prob(rows.x) + log_det}
        if preparation.powers is not None:
            mine = in_double(self.prepared)
            transformed = GaussianMixture.single(mine.x, mine.weights)
            log_probs["transformed_gaussian"] = transformed.log_prob(prepared.x) + of_preparation
        if self.mixture is not None:
            log_probs["mixture"] = self.mixture.log_prob(prepared.x) + of_preparation
        return {name: Score.of(log_prob, rows.weights) for name, log_prob in log_probs.items()}

    def refitted(self, rows: Rows, preparation: Preparation, seeds: Seeds) -> GaussianMixture:
        """The mixture of the same members, fitted to more rows."""
        assert self.stack is not None
        prepared = in_double(preparation.rows(rows)[0])
        return self.stack.fit(prepared.x, prepared.weights, seeds.rng("last mixture"))


def blank_base(dim: int) -> dist.Distribution:
    """A stand-in for `Baselines.base`, with its shapes."""
    return GaussianMixture.blank(MOST_COMPONENTS, dim).to_train_on


def in_double(rows: Rows) -> Rows:
    """Rows in NumPy's double precision."""
    return rows._replace(x=np.asarray(rows.x, np.float64), weights=np.asarray(rows.weights, np.float64))
