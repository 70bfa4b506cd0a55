"""Spirals by a latent ODE: reconstruction, extrapolation, and how Gaussian the aggregate posterior is.

    uv run --group benchmarks python -m benchmarks.latent_ode [--seeds 5]

There are 200 series to train on and 50 held out, of `examples/latent_ode_spirals.py`. Errors are root mean squares,
over the standard deviation of the noise: `held_out` against the noisy observations (exact paths have 1), and
`held_out_truth` and `extrapolation` (times after the window) against the spirals without noise.

Moments are the largest absolute value of the four coordinates. `z0` and `base` (the same, through the flow's inverse)
are of 20 draws of q(z0 | series) for each of the 250 series. `fresh` is the base of one draw for each of 5,000 other
series, which neither trained the fit nor chose its parameters.

`base_bound` and `fresh_bound` are what chance alone gives. They are the 95% quantile of the largest absolute excess
kurtosis in 1,000 simulations of an exact aggregate `N(0, I)`. A simulated series has a Gaussian mean and Gaussian draws
around it. Their share of the variance is that of the fit's own draws within a series.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kurtosis, skew

from benchmarks.results import save
from examples.latent_ode_spirals import NOISE, WINDOW, Spirals, rmse, spirals
from numpyro_flows import LatentODE, fit_latent_ode

FLOWS: dict[str, dict[str, Any]] = {"default": {}, "none": {"flow": None}}
NUM_FRESH = 5_000
NUM_SIMULATIONS = 1_000


def moments(name: str, z: jax.Array) -> dict[str, str]:
    points = np.asarray(z).reshape(-1, z.shape[-1])
    largest = {"mean": np.mean, "skew": skew, "kurtosis": kurtosis}
    return {f"{name}_{what}": f"{np.abs(of(points, axis=0)).max():.2f}" for what, of in largest.items()}


def kurtosis_bound(z: jax.Array) -> str:
    """The largest absolute excess kurtosis, 95% quantile, if draws `(num_draws, num_series, dim)` were of `N(0, I)`."""
    points, rng = np.asarray(z, np.float64), np.random.default_rng(0)
    within = points.var(0).mean(0) / points.var((0, 1)) if len(points) > 1 else np.zeros(points.shape[2])
    within = np.minimum(within * len(points) / max(len(points) - 1, 1), 1.0)  # unbiased; 1 where q is the prior

    def largest() -> float:
        mean, around = rng.standard_normal((1, *points.shape[1:])), rng.standard_normal(points.shape)
        simulated = np.sqrt(1 - within) * mean + np.sqrt(within) * around
        return np.abs(kurtosis(simulated.reshape(-1, points.shape[2]), axis=0)).max()

    return f"{np.quantile([largest() for _ in range(NUM_SIMULATIONS)], 0.95):.2f}"


def draws(latent_ode: LatentODE, data: Spirals, num_draws: int) -> jax.Array:
    return jnp.asarray(latent_ode.encode(data.times, data.values).sample(jax.random.key(1), (num_draws,)))


def measure(name: str, seed: int) -> dict[str, Any]:
    data, fresh = spirals(seed, 250), spirals(10_000 + seed, NUM_FRESH)
    train, held_out = (Spirals(*(part[some] for part in data)) for some in (slice(200), slice(200, 250)))
    fit = fit_latent_ode(
        jax.random.key(seed), train.times, train.values, window=WINDOW, progress_bar=False, **FLOWS[name]
    )
    latent_ode = fit.latent_ode
    row: dict[str, Any] = {"flow": name, "seed": seed}
    for label, part in (("train", train), ("held_out", held_out)):
        predict = partial(latent_ode.predict, part.times, part.values)
        row |= {
            label: f"{rmse(predict(), part.values) / NOISE:.3f}",
            f"{label}_truth": f"{rmse(predict(), part.truth) / NOISE:.3f}",
            f"{label}_extrapolation": f"{rmse(predict(at=part.later), part.truth_later) / NOISE:.2f}",
        }
    everything = draws(latent_ode, data, 20)
    row |= moments("z0", everything)
    for label, z0 in (("base", everything), ("fresh", draws(latent_ode, fresh, 1))):
        base = latent_ode.to_base(z0)
        row |= moments(label, base) | {f"{label}_bound": kurtosis_bound(base)}
    row |= {
        "noise": f"{float(latent_ode.noise[0]) / NOISE:.3f}",
        "validation_nll": f"{fit.validation.min():.2f}",
        "solver_error": f"{fit.solver_error:.3f}",
        "skipped": fit.num_skipped,
        "seconds": f"{fit.seconds:.0f}",
    }
    print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    save("latent_ode", [measure(name, seed) for name in FLOWS for seed in range(options.seeds)])


if __name__ == "__main__":
    main()
