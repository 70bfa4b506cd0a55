# pyright: reportArgumentType=false, reportIndexIssue=false
"""A hierarchical model of one's own, from a table to a certified posterior, predictions and a file.

    python tests/journeys/hierarchical.py FOLDER

Made with the pages "Start here" and "How a fit is certified" alone.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.infer import Predictive

from numpyro_flows import FlowPosterior, FlowVI

NOISE = 0.5  # standard deviation of a yield, in tons a hectare

rng = np.random.default_rng(1)
table = pd.DataFrame({"farm": np.repeat(np.arange(6), 8)})
table["tons"] = rng.normal(5.0, 1.0, 6)[table["farm"]] + NOISE * rng.normal(size=len(table))


def model(farm, tons=None, num_farms=6):
    mean = numpyro.sample("mean", dist.Normal(5.0, 2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("farms", num_farms):
        of_farm = numpyro.sample("of_farm", dist.Normal(mean, spread))
    with numpyro.plate("rows", len(farm)):
        numpyro.sample("tons", dist.Normal(of_farm[farm], NOISE), obs=tons)


def fit(path):
    posterior = FlowVI(model).run(jax.random.key(0), table["farm"], table["tons"])
    posterior.print_summary()
    posterior.save(path)
    return posterior


def load(path):
    return FlowPosterior.load(path, model, table["farm"], table["tons"])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    path = folder / "farms.fit"
    posterior = load(path) if path.exists() else fit(path)
    draws = posterior.sample(jax.random.key(1), 4000)
    new_rows = np.array([0, 3])  # one more year on two farms
    predicted = np.asarray(Predictive(model, draws)(jax.random.key(2), new_rows)["tons"])
    print("predicted", predicted.mean(0).round(2), "+-", predicted.std(0).round(2))
    np.savez(folder / "draws.npz", mean=draws["mean"], spread=draws["spread"], predicted=predicted)
