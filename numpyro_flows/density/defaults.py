"""Options, defaults and the split of the rows, for all trainings of densities."""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from numpyro_flows.training.watch import Callback

_FEW_VALIDATION, _MOST_VALIDATION = 30, 10_000  # rows: fewer are too noisy, more do not stop training any better
LIKELIHOOD_STEPS = 5_000
USUAL_RATE = 5e-3
# For a condition without an embedding. With 10,000 simulations of a five-dimensional posterior (SLCP), the mean log
# density of fresh ones was -4.61 by 5e-3 and -4.14 by 2e-2. With an embedding of sets, 2e-2 was worse.
CONDITIONAL_RATE = 2e-2
LIKELIHOOD_ROUND = 50  # minimum number of steps between two evaluations of the validation rows


class Options(NamedTuple):
    """The arguments of `fit_density` that every part of a density is trained with."""

    num_steps: int
    batch_size: int | None
    learning_rate: float
    patience: int | None
    validation: float | None
    test: float
    num_restarts: int
    progress_bar: bool
    callback: Callback | None
    mesh: Mesh | None


def usual_batch(num: int) -> int:
    """Rows in a step of maximum likelihood, of `num` rows to train on."""
    return int(np.clip(num // 40, 32, 256))


def split(rng: np.random.Generator, num: int, validation: float | None, test: float) -> list[Int[np.ndarray, " some"]]:
    """Row numbers to train on, to stop by, and to test on."""
    if (validation or 0.0) + test >= 1:
        raise ValueError(f"validation and test expected shares below 1 in all, got {validation} and {test}")
    num_test = round(test * num)
    rest = num - num_test
    num_validation = max(rest // 10, min(_FEW_VALIDATION, rest // 4)) if validation is None else round(validation * num)
    num_validation = min(max(num_validation, 1), _MOST_VALIDATION)
    num_train = rest - num_validation
    if num_train < 1:
        raise ValueError(f"expected rows to train on, got {num} in all with shares {validation} and {test} set aside")
    return np.split(rng.permutation(num), [num_train, num_train + num_validation])
