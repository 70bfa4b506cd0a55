"""Anomalies in real data: a density of benign breast tumours, and how it scores malignant ones.

    uv run examples/anomalies.py

Wisconsin breast cancer (569 tumours, 30 measurements, of scikit-learn). The density has seen benign tumours only. The
p-values are ranks among benign tumours that it has not seen either. Writes anomalies.png.
"""

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from numpyro_flows import anomaly_scores, fit_density, flows

LEVEL = 0.05


def main() -> None:
    tumours: Any = load_breast_cancer()
    rows, benign = np.log(tumours.data + 0.01), tumours.target == 1  # lengths, areas, ratios: all positive, all skewed
    order = np.random.default_rng(0).permutation(benign.sum())
    train, reference, regular = np.split(rows[benign][order], [200, 280])

    flow = fit_density(jax.random.key(0), train, flow=flows.realnvp)
    held_out = flow.fit.held_out
    print(f"density of {len(train)} benign tumours: {held_out.nll:.2f} +- {held_out.se:.2f} nats, {flow.fit.why}")

    scores = {
        "benign, not seen before": anomaly_scores(flow, regular, reference),
        "malignant": anomaly_scores(flow, rows[~benign], reference),
    }
    print(f"share of tumours with a p-value of at most {LEVEL}:")
    for name, score in scores.items():
        low = [np.mean(p <= LEVEL) for p in (score.p_density, score.p_typicality)]
        print(f"  {name}: by density {low[0]:.0%}, by typicality {low[1]:.0%}")
    malignant = np.repeat([False, True], [len(regular), (~benign).sum()])
    for name, sign in (("log_prob", -1), ("typicality", 1)):
        values = np.concatenate([sign * getattr(score, name) for score in scores.values()])
        print(f"AUC by {name}: {roc_auc_score(malignant, values):.3f}")
    figure, axis = plt.subplots(figsize=(4.5, 3), layout="constrained")
    for name, score in scores.items():
        axis.hist(np.clip(score.log_prob, -100, None), bins=40, density=True, alpha=0.5, label=name)
    axis.set(xlabel="log density (nats), cut at -100", ylabel="share of tumours per nat")
    axis.legend()
    figure.savefig("anomalies.png", dpi=120)


if __name__ == "__main__":
    main()
