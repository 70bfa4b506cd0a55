"""Small tables: `fit_density` beside what scikit-learn does in a few lines.

    uv run --group benchmarks python -m benchmarks.density.tables [--seeds 3]

Iris, wine, breast cancer, diabetes: standardised by the training rows, ties broken by noise of 1e-3 standard
deviations; a fifth is held out for the score. Rivals: a full Gaussian, one after `PowerTransformer` (Yeo-Johnson), and
a mixture of up to five Gaussians after it, their number chosen by BIC. Seconds have compilation in them. Writes
docs/benchmarks/density_tables.csv.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import PowerTransformer

from benchmarks.results import save
from numpyro_flows import fit_density

Rows = Float[np.ndarray, "num dim"]
TABLES: dict[str, Callable[..., Any]] = {
    "iris": load_iris,
    "wine": load_wine,
    "breast cancer": load_breast_cancer,
    "diabetes": load_diabetes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    save("density_tables", [row(name, seed) for name in TABLES for seed in seeds])


def row(name: str, seed: int) -> dict[str, Any]:
    """Negative log likelihoods of the rows held out, with the standard error of the flow's."""
    train, test = load(name, seed)
    start = time.perf_counter()
    flow = fit_density(jax.random.key(seed), train.astype(np.float32), progress_bar=False)
    log_prob = np.asarray(flow.log_prob(test.astype(np.float32)), np.float64)
    seconds = time.perf_counter() - start
    power = PowerTransformer().fit(train)
    volume = log_slopes(power, test)
    transformed, held = np.asarray(power.transform(train)), np.asarray(power.transform(test))
    mixtures = [mixture(transformed, k) for k in range(1, 6)]
    best = min(mixtures, key=lambda mixture: mixture.bic(transformed))
    result = {
        "table": name,
        "rows": len(train),
        "columns": train.shape[1],
        "seed": seed,
        "fit_density": -log_prob.mean(),
        "se": log_prob.std() / np.sqrt(len(test)),
        "gaussian": -mixture(train, 1).score(test),
        "power_gaussian": -(mixtures[0].score_samples(held) + volume).mean(),
        "power_mixture": -(best.score_samples(held) + volume).mean(),
        "seconds": seconds,
    }
    result = {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in result.items()}
    print("  ".join(f"{key}={value}" for key, value in result.items()), flush=True)
    return result


def load(name: str, seed: int) -> tuple[Rows, Rows]:
    """Training and test rows."""
    rng = np.random.default_rng(seed)
    rows = TABLES[name]().data
    rows = rows + 1e-3 * rows.std(0) * rng.normal(size=rows.shape)
    train, test = np.split(rows[rng.permutation(len(rows))], [round(0.8 * len(rows))])
    return (train - train.mean(0)) / train.std(0), (test - train.mean(0)) / train.std(0)


def mixture(rows: Rows, num: int) -> GaussianMixture:
    return GaussianMixture(num, reg_covar=1e-4, n_init=3, random_state=0).fit(rows)


def log_slopes(power: PowerTransformer, rows: Rows) -> Float[np.ndarray, " num"]:
    """`log |det|` of a Yeo-Johnson transform and the standardisation after it."""
    slopes = np.sign(rows) * (power.lambdas_ - 1.0) * np.log1p(np.abs(rows))
    return slopes.sum(1) - np.log(power._scaler.scale_).sum()


if __name__ == "__main__":
    main()
