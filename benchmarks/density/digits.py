"""Images of 8 x 8 pixels: bits per dimension of digits, and draws of the fitted densities.

    uv run --group benchmarks python -m benchmarks.density.digits [--seeds 3]

The 1,797 digits of scikit-learn have integers from 0 to 16. 360 of them are the test rows, the same for all methods of
a seed. `fit_density` has the others, and spreads the integers by uniform noise. `bits` is the mean negative log
likelihood of the test rows in bits, divided by the 64 pixels, with uniform noise drawn three times: an upper bound for
the integers. `se` is its standard error over rows. `tarflow` has its default options, except one transformer block a
layer, for speed: no method was tuned.

The picture has draws of these fits, and of a TarFlow that is trained with Gaussian noise and the class as condition:
    raw, denoised, and guided by the class.

The results are docs/benchmarks/density_digits.csv, with a row for each method and seed and one with medians over seeds,
and docs/images/digits.png.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float, Int
from sklearn.datasets import load_digits

from benchmarks.results import clean_up, save
from numpyro_flows import FlowDistribution, denoise, fit_density, flows, guided

Images = Float[np.ndarray, "num 8 8"]
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "digits.png"
NUM_TEST, NUM_DEQUANTIZED = 360, 3
PIXELS, NUM_CLASSES = 64, 10
NOISE, GUIDANCE, DROPOUT = 1.0, 1.0, 0.1
NUM_STEPS = 2_000
FRAME = 4.0  # a light grey
PER_ROW = 20  # digits of the picture's rows

TARFLOW = partial(flows.tarflow, image_shape=(8, 8), num_blocks=1)
NORMAL = dist.Normal(0.0, 1.0)
METHODS: dict[str, dict[str, Any]] = {
    "default fit": {"num_steps": NUM_STEPS},
    "nsf_coupling": {"flow": flows.nsf_coupling, "base": NORMAL, "num_steps": NUM_STEPS},
    "ffjord, flow matching": {"flow": flows.ffjord, "objective": "flow_matching", "num_steps": 2 * NUM_STEPS},
    "tarflow": {"flow": TARFLOW, "base": NORMAL, "num_steps": NUM_STEPS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows, fitted = [], {}
    for seed in range(arguments.seeds):
        for method in METHODS:
            density, row = fit_and_score(method, seed)
            rows.append(row)
            fitted.setdefault(method, density)
            clean_up()
    draw_picture(fitted, PICTURE)
    save("density_digits", [*rows, *(median(method, rows) for method in METHODS)])


def split(seed: int) -> tuple[Images, Int[np.ndarray, " num"], Images]:
    """Training images, their classes, and test images."""
    values, classes = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(seed).permutation(len(values))
    images, test, train = values.reshape(-1, 8, 8), order[:NUM_TEST], order[NUM_TEST:]
    return images[train], classes[train], images[test]


def fit_and_score(method: str, seed: int) -> tuple[FlowDistribution, dict[str, Any]]:
    train, _, test = split(seed)
    start = time.perf_counter()
    density = fit_density(jax.random.key(seed), train, dequantize=True, progress_bar=False, **METHODS[method])
    seconds = time.perf_counter() - start
    rng = np.random.default_rng(seed)
    score = jax.jit(density.log_prob)
    log_prob = np.mean(
        [score(jnp.asarray(test + rng.uniform(size=test.shape))) for _ in range(NUM_DEQUANTIZED)], axis=0
    )
    bits = -log_prob / (PIXELS * np.log(2.0))
    row = {
        "method": method,
        "seed": seed,
        "bits": f"{bits.mean():.4f}",
        "se": f"{bits.std(ddof=1) / np.sqrt(len(bits)):.4f}",
        "kept": density.fit.kept,
        "steps": len(density.fit.losses),
        "seconds": f"{seconds:.0f}",
    }
    print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return density, row


def median(method: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds."""
    own = [row for row in rows if row["method"] == method]
    middle = {key: f"{np.median([float(row[key]) for row in own]):.4g}" for key in ("bits", "se", "steps", "seconds")}
    kept = max((row["kept"] for row in own), key=[row["kept"] for row in own].count)
    return {"method": method, "seed": "median", "kept": kept} | middle


def of_classes() -> tuple[FlowDistribution, Float[np.ndarray, "num classes"]]:
    """A TarFlow of noisy digits given their class, and the classes of the picture's draws, each twice."""
    train, classes, _ = split(0)
    density = fit_density(
        jax.random.key(0),
        train,
        flow=TARFLOW,
        condition=np.eye(NUM_CLASSES)[classes],
        noise=NOISE,
        condition_dropout=DROPOUT,
        num_steps=NUM_STEPS,
        progress_bar=False,
    )
    return density, np.repeat(np.eye(NUM_CLASSES), PER_ROW // NUM_CLASSES, axis=0)


def draw_picture(fitted: dict[str, FlowDistribution], path: Path) -> None:
    """A row of digits for each method, and rows of a TarFlow trained with noise: raw, denoised, denoised and guided."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    key = jax.random.key(1)
    train, classes, _ = split(0)
    noisy, shown = of_classes()
    given = noisy.given(shown)
    further = guided(noisy, GUIDANCE).given(shown)
    real = np.concatenate([train[classes == digit][: PER_ROW // NUM_CLASSES] for digit in range(NUM_CLASSES)])
    draw: Callable[[FlowDistribution], Any] = jax.jit(lambda flow: flow.sample(key))
    raw = draw(given)
    unordered = {method: jax.jit(lambda flow: flow.sample(key, (PER_ROW,)))(flow) for method, flow in fitted.items()}
    rows = {
        "data": real,
        **unordered,
        "tarflow by class,\nnoisy": raw,
        "the same,\ndenoised": denoise(given, raw, NOISE),
        f"guided by {GUIDANCE:g},\ndenoised": denoise(given, draw(further), NOISE),
    }
    figure, axes = plt.subplots(len(rows), 1, figsize=(11, 0.62 * len(rows)), layout="constrained")
    for axis, (name, images) in zip(axes, rows.items()):
        strip = np.pad(np.asarray(images, float), ((0, 0), (1, 1), (1, 1)), constant_values=FRAME)
        axis.imshow(np.concatenate(list(strip), axis=1), cmap="gray_r", vmin=0.0, vmax=16.0)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
