"""The record of a density fit, with scores of simpler densities on the same rows."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from numpyro_flows.density.solver_check import SolverCheck


class Score(NamedTuple):
    """A mean negative log likelihood, in nats an event on the data's own scale, and its standard error."""

    nll: float
    se: float

    @classmethod
    def of(cls, log_prob: Float[np.ndarray, " num"], weights: Float[np.ndarray, " num"]) -> "Score":
        """Of rows with weights of mean 1."""
        terms = -weights * log_prob
        return cls(float(terms.mean()), float(terms.std() / np.sqrt(len(terms))))

    def __str__(self) -> str:
        return f"{self.nll:.2f} ± {self.se:.2f}"


class DensityFit(NamedTuple):
    """How `fit_density` fitted a density.

    Attributes:
        losses: mean negative log likelihood of the rows in each training step, in nats an event.
        validation: mean negative log likelihood of the validation rows at each evaluation.
        steps: number of training steps before each evaluation.
        held_out: score of the returned density on the validation rows. Training was stopped by these rows, so the score
            is a little optimistic.
        test: score on the test rows, which influenced no choice; None if no rows were set aside for a test.
        seconds: wall time of preparation, of compilation (the mixtures are fitted meanwhile), and of training.
        num_skipped: number of steps skipped because the loss or gradient was not finite.
        why: what ended the training, in a sentence.
        reason: what ended the training, in one or two words.
        solver: comparison of training's solver with the flow's own, for a continuous flow; else None.
        baselines: scores of simpler densities on the same validation rows: "gaussian", "transformed_gaussian" and
            "mixture". Empty for densities given a condition, and if training continued from a fitted flow.
        kept: "flow", or "mixture" if the flow was not better by more than the standard error of the difference.

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
    baselines: dict[str, Score]
    kept: str

    @property
    def brief(self) -> str:
        """As a distribution's text shows it."""
        return f"kept={self.kept!r}, held_out={self.held_out}"

    def print_summary(self) -> None:
        """Print the held-out scores of the flow and the baselines, which density was kept, and why training ended.

        Example:
            >>> import numpy as np
            >>> from numpyro_flows.density.result import DensityFit, Score
            >>> empty = np.zeros(0)
            >>> some = (empty, np.array([2.5]), np.zeros(1, int), Score(2.5, 0.1), None, {}, 0, "all 9 steps taken")
            >>> DensityFit(*some, "budget", None, {"gaussian": Score(3.0, 0.2)}, "flow").print_summary()
            held-out negative log likelihood (nats a row, less is better)
              gaussian  3.00 ± 0.20
              flow      2.50 ± 0.10  kept
            training: all 9 steps taken
        """
        lines = {name: str(score) for name, score in self.baselines.items()}
        lines["flow"] = str(self.held_out) if self.kept == "flow" else f"{np.min(self.validation):.2f}"
        width = max(map(len, lines))
        print("held-out negative log likelihood (nats a row, less is better)")
        for name, score in lines.items():
            print(f"  {name:{width}}  {score}{'  kept' if name == self.kept else ''}")
        if self.test is not None:
            print(f"test: {self.test}")
        print(f"training: {self.why}")

    def __eq__(self, other: object) -> bool:
        """Compare printed texts: trees compare their structures by `==`, which for arrays is neither true nor false."""
        return isinstance(other, DensityFit) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(self.why)


class MixedFit(NamedTuple):
    """How `fit_density` fitted a `MixedDistribution`.

    Attributes:
        held_out: mean negative log likelihood of whole rows, in nats a row, on the validation rows. The training of
            every part was stopped by these rows, so the score is a little optimistic.
        test: score on the test rows, which influenced no choice; None if no rows were set aside for a test.
        seconds: wall time of compilation and of training, summed over the parts.
        num_skipped: number of steps skipped because the loss or gradient was not finite.
        why: what ended the training of each part, in a sentence.
        reason: what ended the training of each part, in one or two words.
        parts: the fit of each part that exists: "discrete", "angles" and "linear".

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

    def print_summary(self) -> None:
        """Print the held-out score of whole rows, then the summary of each part."""
        print(f"held-out negative log likelihood of whole rows: {self.held_out}")
        if self.test is not None:
            print(f"test: {self.test}")
        for name, part in self.parts.items():
            print(f"\n{name} columns:")
            part.print_summary()

    def __eq__(self, other: object) -> bool:
        """As for `DensityFit`."""
        return isinstance(other, MixedFit) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(self.why)
