"""How a fit of a density went."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from numpyro_flows.density.fitting import SolverCheck


class Score(NamedTuple):
    """A mean negative log likelihood, in nats an event on the data's own scale, and its standard error."""

    nll: float
    se: float


class DensityFit(NamedTuple):
    """How `fit_density` fitted a flow.

    Attributes:
        losses: mean negative log likelihood of each training step's rows, in nats an event.
        validation: that of the validation rows after `steps` training steps, one number a look.
        steps: training steps before each look.
        held_out: of the flow that is kept, on the validation rows that it was chosen by, which flatters it a little.
        test: on rows that nothing was chosen by; None where no share of the data was set aside for it.
        seconds: wall time of compilation and training.
        num_skipped: steps left out because loss or gradient was not finite.
        why: what ended the training, and `reason`, the same in one word or two.
        solver: of a continuous flow, how the solver of training compares with its own; None for others.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows import fit_density
        >>> data = jax.random.normal(jax.random.key(0), (500, 2))
        >>> fit_density(jax.random.key(1), data, num_steps=10, progress_bar=False).fit.why
        'all 10 steps taken'
    """

    losses: Float[np.ndarray, " steps"]
    validation: Float[np.ndarray, " looks"]
    steps: Int[np.ndarray, " looks"]
    held_out: Score
    test: Score | None
    seconds: dict[str, float]
    num_skipped: int
    why: str
    reason: str
    solver: SolverCheck | None

    def __eq__(self, other: object) -> bool:
        """By what they print, as trees compare their structures: of arrays `==` would not be true or false."""
        return isinstance(other, DensityFit) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(self.why)


class MixedFit(NamedTuple):
    """How `fit_density` fitted a `MixedDistribution`.

    Attributes:
        held_out: mean negative log likelihood of the whole rows, in nats a row, on the validation rows that every part
            was chosen by: a little optimistic.
        test: the same on rows that nothing was chosen by; None where no share of the data was set aside for it.
        seconds: wall time of compilation and of training, summed over the parts.
        num_skipped: steps left out because loss or gradient was not finite.
        why: what ended the training of each part, and `reason`, the same in one word or two.
        parts: the fit of each part, "discrete", "angles" and "linear", where there is one.

    Example:
        >>> import jax, numpy as np  # doctest: +SLOW
        >>> from numpyro.distributions import constraints
        >>> from numpyro_flows import fit_density
        >>> angles = np.random.default_rng(0).vonmises(0.0, 3.0, 500)
        >>> options = {"support": constraints.circular, "num_steps": 10, "progress_bar": False}
        >>> fit_density(jax.random.key(1), angles, **options).fit.why
        'angles: all 10 steps taken'
    """

    held_out: Score
    test: Score | None
    seconds: dict[str, float]
    num_skipped: int
    why: str
    reason: str
    parts: dict[str, DensityFit]

    def __eq__(self, other: object) -> bool:
        """As for `DensityFit`."""
        return isinstance(other, MixedFit) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(self.why)
