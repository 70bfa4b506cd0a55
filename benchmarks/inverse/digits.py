"""Half of a digit is missing: posteriors of its pixels under a flow prior, beside a Gaussian mixture prior.

    uv run --group benchmarks python -m benchmarks.inverse.digits [--seeds 0 1] [--chains 2] [--picture]

The images are the 8 x 8 digits of scikit-learn, integers from 0 to 16, spread by uniform noise. One half of each, right
or lower, is missing; the other is measured with noise of standard deviation 1. Each seed has its own 1,437 training
images, 200 test images, noise and fits. The methods:

- `mixture`: a Gaussian mixture of scikit-learn as the prior, its size by validation, and its exact posterior;
- `amortised`: a flow prior, and a conditional flow that is trained on draws of this prior and their measurements;
- `direct`: a conditional flow that is trained on the images and their measurements, without a prior;
- `nuts`: the same flow prior, and NUTS in the flow's space, for the first `--chains` test images of seed 0.

`coverage` is the share of missing pixels in the central 90% intervals of 1,000 draws. `pixel_score` is the mean log
probability of a missing pixel's integer, in nats, by the counts of 1,000 draws, with half a count added to each of the
17 integers; `joint_score` is the log density of the 32 missing pixels, divided by 32. `..._gain` is the difference to
the mixture on the same images, with its standard error over images. For `nuts`, `mean_difference` is the root mean
square difference of pixels' posterior means to those of `amortised`, in posterior standard deviations, and
`sd_ratio` the median ratio of standard deviations, NUTS over amortised. `seconds` are those of the fit and of all
posteriors, with compilation.

Writes docs/benchmarks/inverse_digits.csv; `--picture` draws docs/images/inverse.png instead.
"""

import argparse
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float, Int

from benchmarks.density.digits import split
from benchmarks.inverse import mixture
from benchmarks.inverse.problems import HALVES, NOISE, by_nuts
from benchmarks.results import clean_up, read, write
from numpyro_flows import FlowDistribution, fit_density

NUM_TEST, NUM_DRAWS, NUM_SIMULATIONS = 200, 1_000, 50_000
PRIOR_STEPS, AMORTISED_STEPS = 2_000, 4_000
GREYS = 17
PIXELS = np.arange(64).reshape(8, 8)
Row = dict[str, Any]
Draws = Float[np.ndarray, "draws num missing"]


class Half(NamedTuple):
    """Which pixels are measured and which are missing, of 64."""

    seen: Int[np.ndarray, " seen"]
    missing: Int[np.ndarray, " missing"]

    @classmethod
    def of(cls, name: str) -> "Half":
        seen = np.asarray(HALVES[name].measure(jnp.asarray(PIXELS))).ravel()
        return cls(seen, np.setdiff1d(PIXELS, seen))

    def measured(self, images: Float[np.ndarray, "num 64"], rng: np.random.Generator) -> Float[np.ndarray, "num seen"]:
        return images[:, self.seen] + NOISE * rng.standard_normal((len(images), len(self.seen)))


class Task(NamedTuple):
    """Missing pixels of test images, and measurements of the others."""

    x: Float[np.ndarray, "num missing"]
    y: Float[np.ndarray, "num seen"]


class Found(NamedTuple):
    """Posteriors of the missing pixels of all test images; NUTS knows no density."""

    draws: Draws
    log_prob: Float[np.ndarray, " num"] | None
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="others keep their earlier results")
    parser.add_argument("--chains", type=int, default=2, help="test images for NUTS")
    parser.add_argument("--picture", action="store_true", help="draw the picture only")
    arguments = parser.parse_args()
    if arguments.picture:
        from benchmarks.inverse.picture import draw_picture

        draw_picture(prior_of(0))
        return
    for seed in arguments.seeds:
        own = of_seed(seed, arguments.chains if seed == 0 else 0)
        others = [row for row in read("inverse_digits") if int(row["seed"]) != seed]
        rows = sorted([*others, *own], key=lambda row: int(row["seed"]))
        print(f"written to {write('inverse_digits', rows)}", flush=True)
        clean_up()


def prior_of(seed: int) -> FlowDistribution:
    train, _, _ = split(seed)
    options = {"dequantize": True, "num_steps": PRIOR_STEPS, "progress_bar": False}
    return fit_density(jax.random.key(seed), train, base=dist.Normal(0.0, 1.0), **options)


def of_seed(seed: int, num_chains: int) -> list[Row]:
    train, _, test = split(seed)
    rng = np.random.default_rng(seed)
    images = test[:NUM_TEST].reshape(-1, 64) + rng.uniform(size=(NUM_TEST, 64))
    flat = train.reshape(-1, 64).astype(int)
    start = time.perf_counter()
    rival = mixture.fitted(flat, rng)
    of_rival = time.perf_counter() - start
    start = time.perf_counter()
    prior = prior_of(seed)
    simulated = np.asarray(jax.jit(lambda key: prior.sample(key, (NUM_SIMULATIONS,)))(jax.random.key(seed)))
    simulated = simulated.reshape(-1, 64)
    of_prior = time.perf_counter() - start
    rows = []
    for name in HALVES:
        half = Half.of(name)
        task = Task(images[:, half.missing], half.measured(images, rng))
        start = time.perf_counter()
        exact = mixture.Posterior(rival, half.seen, half.missing, NOISE)
        draws, log_prob = exact.sample(task.y, NUM_DRAWS, rng), exact.log_prob(task.y, task.x)
        found = {"mixture": Found(draws, log_prob, of_rival + time.perf_counter() - start)}
        pairs = simulated[:, half.missing], half.measured(simulated, rng)
        found["amortised"] = conditional(seed, pairs, task, of_prior)
        pairs = flat[:, half.missing], half.measured(flat + rng.uniform(size=flat.shape), rng)
        found["direct"] = conditional(seed, pairs, task, dequantize=True)
        own = [row(seed, name, method, task, found) for method in found]
        if num_chains:
            own.append(chains(seed, name, prior, task, found, num_chains))
        for each in own:
            print("  ".join(f"{key}={value}" for key, value in each.items()), flush=True)
        rows += own
    return rows


def conditional(
    seed: int, pairs: tuple[np.ndarray, np.ndarray], task: Task, seconds_before: float = 0.0, **options: Any
) -> Found:
    """By a flow of missing pixels given measured ones, trained on pairs."""
    start = time.perf_counter()
    missing, measured = pairs
    options = {"num_steps": AMORTISED_STEPS, "progress_bar": False, **options}
    flow = fit_density(jax.random.key(seed), missing, condition=measured, **options).given(jnp.asarray(task.y))
    log_prob = np.asarray(flow.log_prob(jnp.asarray(task.x)))
    draws = np.asarray(jax.jit(lambda flow: flow.sample(jax.random.key(seed), (NUM_DRAWS,)))(flow))
    return Found(draws, log_prob, seconds_before + time.perf_counter() - start)


def chains(seed: int, name: str, prior: FlowDistribution, task: Task, found: dict[str, Found], num: int) -> Row:
    """NUTS for the first images, with the other methods on the same images."""
    start = time.perf_counter()
    shape = HALVES[name].measure(jnp.asarray(PIXELS)).shape
    images = by_nuts(prior, HALVES[name], task.y[:num].reshape(num, *shape), NUM_DRAWS)
    draws = images.reshape(num, NUM_DRAWS, 64)[..., Half.of(name).missing].swapaxes(0, 1)
    some = {method: Found(own.draws[:, :num], None, own.seconds) for method, own in found.items()}
    some["nuts"] = Found(draws, None, time.perf_counter() - start)
    sd, other = draws.std(0), some["amortised"].draws
    difference = (draws.mean(0) - other.mean(0)) / sd
    return row(seed, name, "nuts", Task(task.x[:num], task.y[:num]), some) | {
        "mean_difference": f"{np.sqrt((difference**2).mean()):.3f}",
        "sd_ratio": f"{np.median(sd / other.std(0)):.3f}",
    }


def row(seed: int, half: str, method: str, task: Task, found: dict[str, Found]) -> Row:
    own, rival = found[method], found["mixture"]
    low, high = np.quantile(own.draws, [0.05, 0.95], axis=0)
    inside = ((task.x >= low) & (task.x <= high)).mean(1)
    scores = {"pixel": (pixel_scores(own.draws, task.x), pixel_scores(rival.draws, task.x))}
    if own.log_prob is not None and rival.log_prob is not None:
        num_missing = task.x.shape[1]
        scores["joint"] = own.log_prob / num_missing, rival.log_prob / num_missing
    result: Row = {
        "seed": seed,
        "half": half,
        "method": method,
        "images": len(task.x),
        "coverage": f"{inside.mean():.4f}",
        "coverage_se": f"{standard_error(inside):.4f}",
    }
    for name in ("pixel", "joint"):
        own_score, rival_score = scores.get(name, (None, None))
        gain = None if own_score is None or method == "mixture" else own_score - rival_score
        result[f"{name}_score"] = "" if own_score is None else f"{own_score.mean():.4f}"
        result[f"{name}_gain"] = "" if gain is None else f"{gain.mean():.4f}"
        result[f"{name}_gain_se"] = "" if gain is None else f"{standard_error(gain):.4f}"
    return result | {"mean_difference": "", "sd_ratio": "", "seconds": f"{own.seconds:.0f}"}


def pixel_scores(draws: Draws, x: Float[np.ndarray, "num missing"]) -> Float[np.ndarray, " num"]:
    """Mean log probability of the integers of an image's missing pixels, by the counts of draws."""
    greys = np.clip(np.floor(draws), 0, GREYS - 1)
    counts = (greys == np.floor(x)).sum(0)
    return np.log((counts + 0.5) / (len(draws) + 0.5 * GREYS)).mean(1)


def standard_error(values: Float[np.ndarray, " num"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


if __name__ == "__main__":
    main()
