"""Comparison of a continuous flow's solver in training with the flow's own."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import ClassVar

import jax
import numpy as np

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.continuous.training_form import continuous_flows, num_evaluations
from numpyro_flows.density.losses import Rows
from numpyro_flows.files.rules import InFiles

_COUNTED_ROWS = 100  # to count the evaluations of a field


class SolverCheck(InFiles):
    """Comparison of a continuous flow's solver in training with its own, on the validation rows.

    gap: mean negative log likelihood by training's solver minus that by the flow's own, in nats; NaN if training used
        no solver.
    num_steps: solver steps of training at the end.
    """

    FILE_KINDS: ClassVar = {"gap": float, "num_steps": int, "num_evaluations": float}

    def __init__(self, gap: float, num_steps: int, num_evaluations: float | Callable[[], float]):
        self.gap = gap
        self.num_steps = num_steps
        self._count = num_evaluations

    @cached_property
    def num_evaluations(self) -> float:
        """Evaluations of the field for the density of one row, on average; counted at the first use, or when saved."""
        return self._count() if callable(self._count) else self._count

    @classmethod
    def of(cls, bijection: AbstractBijection, rows: Rows, gap: float) -> "SolverCheck":
        """The check of a bijection that was trained to a given gap."""
        num_steps = int(max(np.max(flow.training.num_steps) for flow in continuous_flows(bijection)))
        some = jax.tree.map(lambda leaf: leaf[:_COUNTED_ROWS], rows)
        return cls(gap, num_steps, partial(_mean_evaluations, bijection, some))

    def __repr__(self) -> str:
        return f"SolverCheck(gap={self.gap:.3g}, num_steps={self.num_steps})"


def _mean_evaluations(bijection: AbstractBijection, rows: Rows) -> float:
    count = jax.jit(jax.vmap(lambda x, condition: num_evaluations(bijection, x, condition)))
    return float(np.mean(count(rows.x, rows.condition)))
