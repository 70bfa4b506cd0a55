"""Yesterday's posterior is today's prior: a data set in two halves, beside all of it at once.

    uv run examples/sequential_update.py

Diabetes progression of 442 patients (of scikit-learn) by a regression with Student-t noise. The posterior of the first
half, certified, saved and loaded, is the prior of the second half; the result is compared with the fit of all patients,
by NUTS and by FlowVI.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_diabetes

from numpyro_flows import FlowDistribution, FlowVI, sample_sites

Draws = dict[str, jax.Array]


def likelihood(sites: Mapping[str, Any], x: np.ndarray, y: np.ndarray) -> None:
    location = sites["intercept"] + x @ sites["slopes"]
    numpyro.sample("y", dist.StudentT(sites["nu"], location, sites["sigma"]), obs=y)


def first(x: np.ndarray, y: np.ndarray) -> None:
    sites = {
        "intercept": numpyro.sample("intercept", dist.Normal(0, 5)),
        "slopes": numpyro.sample("slopes", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1)),
        "sigma": numpyro.sample("sigma", dist.HalfNormal(2)),
        "nu": numpyro.sample("nu", dist.Gamma(2, 0.1)),
    }
    likelihood(sites, x, y)


def next_model(prior: FlowDistribution, x: np.ndarray, y: np.ndarray) -> None:
    likelihood(sample_sites("prior", prior), x, y)


def by_nuts(model: Callable, key: jax.Array, *args: Any) -> Draws:
    mcmc = MCMC(NUTS(model), num_warmup=1000, num_samples=4000, progress_bar=False)
    mcmc.run(key, *args)
    return mcmc.get_samples()


def differences(found: Draws, reference: Draws) -> tuple[float, float]:
    """Largest differences over all scalars: of means in reference sds, and of sds relative to the reference."""
    means, deviations = [], []
    for name in ("intercept", "slopes", "sigma", "nu"):
        deviation = reference[name].std(0)
        means.append(jnp.abs(found[name].mean(0) - reference[name].mean(0)) / deviation)
        deviations.append(jnp.abs(found[name].std(0) / deviation - 1))
    largest = [float(jnp.concatenate([jnp.atleast_1d(v) for v in values]).max()) for values in (means, deviations)]
    return largest[0], largest[1]


def main() -> None:
    diabetes: Any = load_diabetes()
    x = (diabetes.data - diabetes.data.mean(0)) / diabetes.data.std(0)
    y = (diabetes.target - diabetes.target.mean()) / diabetes.target.std()
    half = len(y) // 2
    keys = jax.random.split(jax.random.key(0), 6)

    yesterday = FlowVI(first).run(keys[0], x[:half], y[:half])
    print("first half:", yesterday.verdict(), sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        yesterday.as_prior().save(Path(folder) / "prior")
        prior = FlowDistribution.load(Path(folder) / "prior")

    today = FlowVI(next_model).run(keys[1], prior, x[half:], y[half:])
    print("second half:", today.verdict(), sep="\n")
    updated = {"FlowVI": today.sample(keys[2], 4000), "NUTS": by_nuts(next_model, keys[3], prior, x[half:], y[half:])}
    at_once = {"FlowVI": FlowVI(first).run(keys[4], x, y).sample(keys[5], 4000), "NUTS": by_nuts(first, keys[5], x, y)}
    print("largest difference between the update and all data at once:")
    for name, draws in updated.items():
        for other, reference in at_once.items():
            mean, deviation = differences(draws, reference)
            print(f"  update by {name}, all by {other}: means {mean:.3f} sd, sds {deviation:.1%}")


if __name__ == "__main__":
    main()
