# pyright: reportArgumentType=false, reportIndexIssue=false
"""One's own table with a positive, a bounded and an integer column: a density, draws, a query, a file.

    python tests/journeys/density.py FOLDER

Made with the page "Densities: fit, inspect and use them" alone.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from numpyro.distributions import constraints

from numpyro_flows import MixedDistribution, fit_density

rng = np.random.default_rng(2)
visits = rng.poisson(3.0, 3000)
table = pd.DataFrame(
    {
        "income": np.exp(1.0 + 0.3 * visits + 0.4 * rng.normal(size=3000)),  # grows with the number of visits
        "share": rng.beta(2.0, 4.0, 3000),  # does not depend on the others
        "visits": visits,
    }
)
support = {
    "income": constraints.positive,
    "share": constraints.unit_interval,
    "visits": constraints.nonnegative_integer,
}

if __name__ == "__main__":
    joint = fit_density(jax.random.key(0), table, support=support, num_steps=1500)
    joint.fit.print_summary()
    draws = pd.DataFrame(joint.sample(jax.random.key(1), (20_000,)))
    print(draws.describe())
    # which incomes have people with three visits? A table with whole numbers has no `condition_on`, but draws are cheap
    of_three = draws[draws["visits"] == 3]
    # the same question as a density: the columns in question, given the others
    real = {name: support[name] for name in ("income", "share")}
    given_visits = fit_density(
        jax.random.key(2), table[list(real)], condition=table[["visits"]], support=real, num_steps=1500
    )
    at_three = pd.DataFrame(given_visits.given(np.array([3.0])).sample(jax.random.key(3), (20_000,)))
    path = Path(sys.argv[1]) / "people.density"
    joint.save(path)
    again = MixedDistribution.load(path)
    score = float(np.mean(again.log_prob(table)))
    print("mean log density of the rows", round(score, 3))
