"""Anomalies in real data: a density of the colours of one photograph, and how it scores those of another.

    uv run --group test examples/anomalies.py [--swap]

Rows are red, green and blue of random pixels of scikit-learn's two photographs. The density has seen pixels of the
flower only; pixels of the temple are the anomalies. The p-values are ranks among pixels of the flower that it has not
seen. The table has areas under the ROC curve (AUC), over seeds that draw pixels and fit anew, beside four other
detectors and single columns. All have their defaults; the mixture has the number of Gaussians that BIC chooses.

Which detector is best depends on the task. With `--swap` the flower is the anomaly, and one Gaussian has the largest
area. Writes anomalies.png.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from sklearn.covariance import EmpiricalCovariance
from sklearn.datasets import load_sample_image
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor

from numpyro_flows import AnomalyScores, FlowDistribution, anomaly_scores, fit_density

LEVEL = 0.05
SEEDS = 5
NUM_TRAIN, NUM_REFERENCE, NUM_TEST = 2000, 500, 1000
EVERY = 4  # the plot shows every fourth pixel along each side of a photograph

Pixels = Float[np.ndarray, "num 3"]
Scorer = Callable[[Pixels], np.ndarray]
"""A score of each row, large for anomalies."""


def photographs(*, swap: bool) -> dict[str, np.ndarray]:
    """The regular one and that of anomalies, `(height, width, 3)`, values 0 to 255."""
    files = {"flower": "flower.jpg", "temple": "china.jpg"}
    names = reversed(files) if swap else files
    return {name: np.asarray(load_sample_image(files[name])) for name in names}


def rivals(train: Pixels, seed: int) -> dict[str, Scorer]:
    """Other scores of the same rows, which they see with mean 0 and standard deviation 1."""
    loc, scale = train.mean(0), train.std(0)
    rows = (train - loc) / scale
    mixtures = [GaussianMixture(num, random_state=seed).fit(rows) for num in range(1, 11)]
    found: dict[str, Any] = {
        "Gaussian mixture, by BIC": min(mixtures, key=lambda mixture: mixture.bic(rows)),
        "isolation forest": IsolationForest(random_state=seed).fit(rows),
        "local outlier factor": LocalOutlierFactor(novelty=True).fit(rows),
    }
    gaussian = EmpiricalCovariance().fit(rows)
    scorers: dict[str, Scorer] = {
        name: lambda x, model=model: -model.score_samples((x - loc) / scale) for name, model in found.items()
    }
    scorers["Gaussian"] = lambda x: gaussian.mahalanobis((x - loc) / scale)
    for column, colour in enumerate(("red", "green", "blue")):
        scorers[f"distance from the median of {colour}"] = lambda x, column=column: np.abs(
            x[:, column] - np.median(train[:, column])
        )
    return scorers


def compare(pictures: dict[str, np.ndarray], seed: int) -> tuple[FlowDistribution, Pixels, list[AnomalyScores], dict]:
    """A density of regular pixels, reference pixels, scores of regular pixels and of anomalies, and the AUCs."""
    rng = np.random.default_rng(seed)
    # whole numbers have no density: uniform noise spreads each over an interval of 1
    regular, others = (rng.permutation(picture.reshape(-1, 3)) for picture in pictures.values())
    splits = np.cumsum([NUM_TRAIN, NUM_REFERENCE, NUM_TEST])
    train, reference, fresh = (rows + rng.uniform(size=rows.shape) for rows in np.split(regular, splits)[:3])
    anomalies = others[:NUM_TEST] + rng.uniform(size=(NUM_TEST, 3))

    flow = fit_density(jax.random.key(seed), train, progress_bar=False)
    scores = [anomaly_scores(flow, rows, reference) for rows in (fresh, anomalies)]
    is_anomaly = np.repeat([False, True], NUM_TEST)
    auc = {
        "flow, density": roc_auc_score(is_anomaly, np.concatenate([-score.log_prob for score in scores])),
        "flow, typicality": roc_auc_score(is_anomaly, np.concatenate([score.typicality for score in scores])),
    }
    rows = np.concatenate([fresh, anomalies])
    auc |= {name: roc_auc_score(is_anomaly, scorer(rows)) for name, scorer in rivals(train, seed).items()}
    return flow, reference, scores, auc


def draw(pictures: dict[str, np.ndarray], flow: FlowDistribution, reference: Pixels) -> None:
    """Both photographs, and the p-value of each of their pixels."""
    figure, axes = plt.subplots(2, 2, figsize=(7.5, 5), layout="constrained")
    for (name, picture), (left, right) in zip(pictures.items(), axes):
        small = picture[::EVERY, ::EVERY]
        p_value = anomaly_scores(flow, small.reshape(-1, 3) + 0.5, reference).p_density.reshape(small.shape[:2])
        left.imshow(small)
        image = right.imshow(p_value, vmin=0, vmax=1, cmap="viridis")
        right.set_title(f"p-values: {np.mean(p_value <= LEVEL):.0%} at most {LEVEL}", fontsize=10)
        left.set_title(f"{name}, {'regular' if name == next(iter(pictures)) else 'anomalies'}", fontsize=10)
        figure.colorbar(image, ax=right)
        for axis in (left, right):
            axis.set_axis_off()
    figure.savefig("anomalies.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swap", action="store_true", help="the flower is the anomaly")
    pictures = photographs(swap=parser.parse_args().swap)
    flow, reference, scores, auc = compare(pictures, seed=0)
    held_out = flow.fit.held_out
    print(f"density of {NUM_TRAIN} pixels: {held_out.nll:.2f} +- {held_out.se:.2f} nats, {flow.fit.why}")
    print(f"share of pixels with a p-value of at most {LEVEL}:")
    for name, score in zip(pictures, scores):
        low = [np.mean(p <= LEVEL) for p in (score.p_density, score.p_typicality)]
        print(f"  {name}: by density {low[0]:.0%}, by typicality {low[1]:.0%}")
    draw(pictures, flow, reference)

    aucs = [auc, *(compare(pictures, seed)[3] for seed in range(1, SEEDS))]
    print(f"AUC over {SEEDS} seeds: {'median':>22s}  worst")
    table = {name: [auc[name] for auc in aucs] for name in auc}
    for name, values in sorted(table.items(), key=lambda item: -np.median(item[1])):
        print(f"  {name:34s} {np.median(values):6.3f} {np.min(values):6.3f}")


if __name__ == "__main__":
    main()
