"""A table of MINIBOONE's size, 30,000 x 43: `fit_density` with its defaults compared with zuko's NSF in equal time.

    uv run --group benchmarks --group peers python -m benchmarks.density.large [--seeds 1]

MINIBOONE is not in any package, so the rows are simulated. There are two classes. 12 latent normal numbers pass through
a random network of two layers, and a third of the columns are made positive and skewed. 5,000 rows are held out. zuko
trains by Adam at 1e-3, batches of 256, for as many seconds as `fit_density` took, compilation included; its best
parameters on a tenth of the rows are kept. The results are in docs/benchmarks/density_large.csv.
"""

import argparse
import time
from functools import partial
from typing import Any

import jax
import numpy as np
import zuko  # pyright: ignore[reportMissingImports]
from jaxtyping import Float

from benchmarks.density.tabular import BINS, HIDDEN, by_zuko
from benchmarks.results import save
from numpyro_flows import fit_density

NUM, DIM, LATENT, HELD_OUT = 30_000, 43, 12, 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    save("density_large", [row(seed) for seed in range(parser.parse_args().seeds)])


def row(seed: int) -> dict[str, Any]:
    train, test = data(seed)
    start = time.perf_counter()
    flow = fit_density(jax.random.key(seed), train, progress_bar=False)
    seconds = time.perf_counter() - start
    ours = np.asarray(jax.jit(flow.log_prob)(test), np.float64)
    make = partial(zuko.flows.NSF, bins=BINS, passes=2, hidden_features=HIDDEN)
    of_zuko, theirs = by_zuko(make, seed, train, test, batch=256, limit=seconds)
    gap = ours - theirs
    return {
        "seed": seed,
        "kept": flow.fit.kept,
        "steps": len(flow.fit.losses),
        "ours": f"{-ours.mean():.3f}",
        "zuko_nsf": f"{-theirs.mean():.3f}",
        "above_ours": f"{gap.mean():.3f}",
        "standard_error": f"{gap.std() / np.sqrt(len(gap)):.3f}",
        "ours_seconds": f"{seconds:.0f}",
        "zuko_seconds": f"{of_zuko:.0f}",
    }


def data(seed: int) -> tuple[Float[np.ndarray, "num dim"], Float[np.ndarray, "num dim"]]:
    """Training and test rows, standardised by the training rows."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(LATENT, 64)), rng.normal(size=(64, DIM)) / 8
    centres = 1.5 * rng.normal(size=(2, LATENT))
    latent = centres[rng.integers(2, size=NUM + HELD_OUT)] + rng.normal(size=(NUM + HELD_OUT, LATENT))
    rows = np.tanh(latent @ first) @ second + 0.1 * rng.normal(size=(NUM + HELD_OUT, DIM))
    rows[:, ::3] = np.exp(rows[:, ::3])
    train, test = rows[:NUM], rows[NUM:]
    mean, deviation = train.mean(0), train.std(0)
    return ((train - mean) / deviation).astype(np.float32), ((test - mean) / deviation).astype(np.float32)


if __name__ == "__main__":
    main()
