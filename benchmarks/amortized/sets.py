"""One amortised flow for sets of 5 to 500 observations: the verdicts by the size of the set.

    uv run --group benchmarks python -m benchmarks.amortized.sets [--seeds 3]

The model is the location and the scale of Student's t distribution with 4 degrees of freedom. `certified` is the share
of 200 fresh data sets of each size whose verdict is good by weights alone; `certified_with_refit` that after `FlowVI`
has fitted the others, of which at most 10 of each size are tried and counted up. Writes
docs/benchmarks/amortized_sets.csv.
"""

import argparse
import time
from typing import Any

import jax
import numpyro
import numpyro.distributions as dist

from benchmarks.amortized.refits import certified_with_refit
from benchmarks.results import save
from numpyro_flows import AmortizedFlow
from numpyro_flows.modeling.simulation import Simulator

SIZES = 5, 10, 20, 50, 100, 200, 500
NUM_DATA_SETS = 200


def model(num: int = SIZES[-1], y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("observations", num):
        numpyro.sample("y", dist.StudentT(4.0, mu, sigma), obs=y)


def rows(seed: int) -> list[dict[str, Any]]:
    key = jax.random.key(seed)
    start = time.perf_counter()
    amortized = AmortizedFlow(model, observed=["y"], sizes=(SIZES[0], SIZES[-1]), progress_bar=False).fit(key)
    training = time.perf_counter() - start
    found = []
    for size in SIZES:
        y = Simulator(model, ["y"], (size,))(jax.random.fold_in(key, size), NUM_DATA_SETS).data["y"]
        many = amortized.posteriors(jax.random.fold_in(key, 1), {"y": y}, size)
        found.append(
            {
                "seed": seed,
                "observations": size,
                "certified": f"{many.certified.mean():.4g}",
                "certified_with_refit": f"{certified_with_refit(amortized, many, y, size, most=10):.4g}",
                "median_ess": f"{many.table['ess'].median():.3g}",
                "training_seconds": f"{training:.0f}",
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    save("amortized_sets", [row for seed in range(options.seeds) for row in rows(seed)])


if __name__ == "__main__":
    main()
