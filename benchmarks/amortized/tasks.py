"""Three tasks of the simulation-based-inference benchmark, their observations and reference draws, and C2ST.

Priors are uniform on a box. Observations and 10,000 draws of each exact posterior are files of PyPI's `sbibm-jax`.

Source: Lueckmann, Boelts, Greenberg, Goncalves, Macke 2021, arXiv 2101.04653, appendix T.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

Rows = Float[np.ndarray, "num dim"]


class Task(NamedTuple):
    """A uniform prior on `[-bound, bound]^dim`, and a simulator of data for each row of parameters.

    target: the C2ST that the median over observations should not exceed.
    """

    dim: int
    bound: float
    simulate: Callable[[np.random.Generator, Rows], Rows]
    target: float

    def draw(self, rng: np.random.Generator, num: int) -> tuple[Rows, Rows]:
        """Parameters and data."""
        theta = rng.uniform(-self.bound, self.bound, (num, self.dim))
        return theta, self.simulate(rng, theta)


def two_moons(rng: np.random.Generator, theta: Rows) -> Rows:
    """A crescent, moved by the parameters; the absolute value makes two of the posterior."""
    angle = rng.uniform(-np.pi / 2, np.pi / 2, len(theta))
    radius = rng.normal(0.1, 0.01, len(theta))
    crescent = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], 1)
    first, second = theta.T
    return crescent + np.stack([-np.abs(first + second), second - first], 1) / np.sqrt(2.0)


def gaussian_linear_uniform(rng: np.random.Generator, theta: Rows) -> Rows:
    """The parameters with Gaussian noise of variance 0.1."""
    return theta + rng.normal(0.0, np.sqrt(0.1), theta.shape)


def slcp(rng: np.random.Generator, theta: Rows) -> Rows:
    """Four points of a Gaussian in the plane, whose mean, scales and correlation are functions of five parameters."""
    mean, scale, correlation = theta[:, :2], theta[:, 2:4] ** 2, np.tanh(theta[:, 4])
    noise = rng.normal(size=(4, len(theta), 2))
    second = correlation * noise[..., 0] + np.sqrt(1.0 - correlation**2) * noise[..., 1]
    points = mean + scale * np.stack([noise[..., 0], second], -1)
    return points.transpose(1, 0, 2).reshape(len(theta), 8)


TASKS = {
    "two_moons": Task(2, 1.0, two_moons, 0.58),
    "gaussian_linear_uniform": Task(10, 1.0, gaussian_linear_uniform, 0.53),
    "slcp": Task(5, 3.0, slcp, 0.80),
}


def observation(package: Path, task: str, number: int) -> tuple[Float[np.ndarray, " size"], Rows]:
    """Data and 10,000 draws of their posterior, of the installed package `sbibm_jax`; numbers begin with 1."""
    folder = package / "tasks" / task / "files" / f"num_observation_{number}"
    data = np.loadtxt(folder / "observation.csv", delimiter=",", skiprows=1)
    return data, np.loadtxt(folder / "reference_posterior_samples.csv.bz2", delimiter=",", skiprows=1)


def c2st(reference: Rows, draws: Rows, seed: int = 1) -> float:
    """Accuracy of a classifier that tells two sets of draws apart, 5-fold: 0.5 where they are alike, 1 at worst.

    The classifier is the benchmark's: two layers of 10 units for each coordinate, of draws standardised by the
    reference.
    """
    loc, scale = reference.mean(0), reference.std(0, ddof=1)
    rows = np.concatenate([(reference - loc) / scale, (draws - loc) / scale])
    labels = np.repeat([0, 1], [len(reference), len(draws)])
    width = 10 * reference.shape[1]
    classifier = MLPClassifier((width, width), activation="relu", solver="adam", max_iter=1_000, random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, rows, labels, cv=folds, scoring="accuracy").mean())
