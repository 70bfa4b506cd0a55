"""Two moons and a spiral: held-out negative log likelihoods compared with the exact densities' entropies.

    uv run --group benchmarks python -m benchmarks.density.toys [--seeds 3]

Data are standardised by the training rows' mean and standard deviation. Scores use 20,000 fresh rows; for the spiral
they use the last third of 6,000. The entropies are those of the exact densities after the same standardisation (arcs
convolved with the noise, by quadrature). They are the lowest possible held-out scores, up to the noise of the scores.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float
from sklearn.datasets import make_moons

from benchmarks.results import save
from numpyro_flows import FlowDistribution, fit_density, flows
from numpyro_flows.gaussianization import fit_rbig

Data = Float[np.ndarray, "num 2"]
ENTROPY = {"moons": 1.615, "spiral": 1.361}
REACHED = 1.70  # of the moons: the score to which steps are counted
WARM_LAYERS = 5  # of a greedy fit to train on: its last ones fit noise (moons: 1.639 from 5 layers, 1.645 from all)
# Gaussianization flows: their mixtures take larger steps than networks, and map the data themselves to normal
RATE = {"learning_rate": 1e-2, "base": dist.Normal(0.0, 1.0)}


def moons(seed: int) -> tuple[Data, Data]:
    train, _ = make_moons(3000, noise=0.08, random_state=seed)
    test, _ = make_moons(20_000, noise=0.08, random_state=1000 + seed)
    return standardized(np.asarray(train), np.asarray(test))


def spiral(seed: int) -> tuple[Data, Data]:
    rng = np.random.default_rng(seed)
    t, sign = rng.uniform(0.5, 3.5, 6000), rng.choice([-1.0, 1.0], 6000)
    points = (sign * np.stack([t * np.cos(2.5 * t), t * np.sin(2.5 * t)])).T + 0.08 * rng.normal(size=(6000, 2))
    return standardized(points[:4000], points[4000:])


def standardized(train: Data, test: Data) -> tuple[Data, Data]:
    mean, deviation = train.mean(0), train.std(0)
    return (train - mean) / deviation, (test - mean) / deviation


def rbig(key: jax.Array, train: Data) -> FlowDistribution:
    return FlowDistribution(fit_rbig(key, train).bijection)


def warm(recipe: Callable[..., Any], key: jax.Array, train: Data, **options: Any) -> FlowDistribution:
    options.pop("base")  # the flow has it
    start = FlowDistribution(recipe(key, train.shape[1], init=fit_rbig(key, train, max_layers=WARM_LAYERS)))
    return fit_density(key, train, flow=start, progress_bar=False, **options)


def trained(recipe: Callable[..., Any], key: jax.Array, train: Data, **options: Any) -> FlowDistribution:
    return fit_density(key, train, flow=recipe, progress_bar=False, **options)


FITS: dict[str, dict[str, Callable[..., FlowDistribution]]] = {
    "moons": {
        "RBIG, greedy": rbig,
        "diagonal Gaussianization, from RBIG": partial(warm, flows.gaussianization, **RATE),
        "diagonal Gaussianization, cold": partial(trained, flows.gaussianization, **RATE),
        "coupling Gaussianization, from RBIG": partial(warm, flows.coupling_gaussianization, **RATE),
        "coupling Gaussianization, cold": partial(trained, flows.coupling_gaussianization, **RATE),
        "spline coupling, normal base": partial(trained, flows.nsf_coupling, base=dist.Normal(0.0, 1.0)),
        "the default": partial(trained, flows.nsf_coupling),
    },
    "spiral": {
        "diagonal Gaussianization, from RBIG": partial(warm, flows.gaussianization, **RATE),
        "coupling Gaussianization, cold": partial(trained, flows.coupling_gaussianization, **RATE),
        "spline coupling, normal base": partial(trained, flows.nsf_coupling, base=dist.Normal(0.0, 1.0)),
        "the default": partial(trained, flows.nsf_coupling),
    },
}


def measure(data: str, name: str, seed: int) -> dict[str, Any]:
    train, test = {"moons": moons, "spiral": spiral}[data](seed)
    start = time.perf_counter()
    flow = FITS[data][name](jax.random.key(seed), train)
    seconds = time.perf_counter() - start
    log_prob = np.asarray(flow.log_prob(test))
    latent = np.asarray(jax.vmap(lambda y: flow.bijection.inverse_and_log_det(y)[0])(test))
    reached: Any = ""
    if flow.fit is not None:
        # 300 validation rows are up to 0.04 nats easier or harder than the fresh ones: by so much as at the end
        fresh = flow.fit.validation - flow.fit.held_out.nll - log_prob.mean()
        reached = flow.fit.steps[np.argmax(fresh <= REACHED)] if (fresh <= REACHED).any() else "never"
    row = {
        "data": data,
        "flow": name,
        "seed": seed,
        "held_out_nll": f"{-log_prob.mean():.4f}",
        "standard_error": f"{log_prob.std() / np.sqrt(len(test)):.4f}",
        "entropy": ENTROPY[data],
        "latent_mean": "" if name == "the default" else f"{np.abs(latent.mean(0)).max():.3f}",
        "latent_sd_off": "" if name == "the default" else f"{np.abs(latent.std(0) - 1).max():.3f}",
        "kept": "" if flow.fit is None else flow.fit.kept,
        "steps_to_1.70": reached if data == "moons" else "",
        "steps": "" if flow.fit is None else len(flow.fit.losses),
        "seconds": f"{seconds:.1f}",
    }
    print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, nothing written")
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    rows = [measure(data, name, seed) for data, fits in FITS.items() for name in fits for seed in seeds]
    if not options.quick:
        save("density_toys", rows)


if __name__ == "__main__":
    main()
