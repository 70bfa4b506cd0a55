"""The picture of inverse problems: truth, measurement, posterior draws, their mean and standard deviation."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from benchmarks.density.digits import split
from benchmarks.inverse.problems import PROBLEMS, by_nuts
from numpyro_flows import FlowDistribution

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "inverse.png"
NUM_DRAWS, SHOWN = 500, 4
DIGITS = (18, 11, 3, 4, 33, 13)  # test images, one a problem
LARGEST_SD = 5.0  # yellow


def draw_picture(prior: FlowDistribution, path: Path = PICTURE) -> None:
    """A row a problem of `PROBLEMS`, each of another test image, by NUTS in the flow's space."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, _, test = split(0)
    rng = np.random.default_rng(0)
    titles = ["truth", "measurement", *["draw"] * SHOWN, "mean", "sd"]
    figure, axes = plt.subplots(len(PROBLEMS), len(titles), figsize=(10, 1.18 * len(PROBLEMS)), layout="constrained")
    for row, (name, problem), number in zip(axes, PROBLEMS.items(), DIGITS):
        truth = test[number] + rng.uniform(size=(8, 8))
        y = np.asarray(problem(jnp.asarray(truth)).sample(jax.random.key(number)))
        draws = by_nuts(prior, problem, y[None], NUM_DRAWS)[0]
        shown = draws[:: NUM_DRAWS // SHOWN][:SHOWN]
        images = [truth, whole(y), *shown, draws.mean(0), draws.std(0)]
        for axis, image, title in zip(row, images, titles):
            of_sd = title == "sd"
            axis.imshow(image, cmap="viridis" if of_sd else "gray_r", vmin=0.0, vmax=LARGEST_SD if of_sd else 16.0)
            axis.set(xticks=[], yticks=[])
            axis.set_facecolor("tab:olive")
        row[0].set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center", fontsize=9)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def whole(y: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "side side"]:
    """A measurement as a square image, NaN where pixels are missing."""
    if y.shape[0] == y.shape[1]:
        return y
    full = np.full((8, 8), np.nan)
    full[: y.shape[0], : y.shape[1]] = y
    return full
