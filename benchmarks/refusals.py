"""Three kinds of posteriors that FlowVI cannot fit, or not with the given settings: it must refuse them.

    uv run --group benchmarks python -m benchmarks.refusals [--seeds 5]

Each is fitted with the seeds 0..N-1. A certificate is wrong if the draws are wrong: a mode is missing. For each case
the number of certified fits is printed and saved, and how often `why` names the cause.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from benchmarks.results import save
from numpyro_flows import FlowVI
from tests.example_models import eight_schools_centred


class Case(NamedTuple):
    model: Callable
    cause: str  # words of `why` that name it
    settings: dict[str, Any] | None = None


def two_modes(first: float, dim: int) -> Callable:
    """Standard Gaussians at `first` (30%) and `first + 8` (70%) on the first axis, under a flat prior."""

    def model():
        x = numpyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (dim,)))
        modes = [jnp.zeros(dim).at[0].set(place) for place in (first, first + 8.0)]
        densities = [dist.Normal(mode, 1.0).to_event(1).log_prob(x) for mode in modes]
        numpyro.factor("modes", jnp.logaddexp(jnp.log(0.3) + densities[0], jnp.log(0.7) + densities[1]))

    return model


def broken_likelihood(dim: int = 3) -> None:
    """NaN beyond the upper third of the first coordinate's prior."""
    x = jnp.asarray(numpyro.sample("x", dist.Normal(0.0, 1.0).expand([dim]).to_event(1)))
    numpyro.factor("likelihood", jnp.where(x[0] > 0.43, jnp.nan, -0.5 * x[1] ** 2))


CASES = {
    "two modes, -4 and 4, 2 dimensions": Case(two_modes(-4.0, 2), "a search found elsewhere"),
    "two modes, 0 and 8, 5 dimensions": Case(two_modes(0.0, 5), "a search found elsewhere"),
    "two modes, -8 and 0, 1 dimension": Case(two_modes(-8.0, 1), "a search found elsewhere"),
    "budget of 50 steps": Case(eight_schools_centred, "budget of 50 steps", {"num_steps": 50}),
    "NaN on a third of the space": Case(broken_likelihood, "NaN"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="cases whose name contains this")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", UserWarning)
    rows = []
    for name, case in CASES.items():
        if options.only and options.only not in name:
            continue
        fits = []
        for seed in range(options.seeds):
            vi = FlowVI(case.model, fallback=None, progress_bar=False, **(case.settings or {}))
            fits.append(vi.run(jax.random.key(seed)))
            print(f"{name}, seed {seed}: {fits[-1].verdict().splitlines()[0]}", flush=True)
        rows.append(
            {
                "case": name,
                "fits": len(fits),
                "certified": sum(fit.certified for fit in fits),
                "cause_named": sum(case.cause in fit.why for fit in fits),
                "mean_seconds": f"{sum(sum(fit.seconds.values()) for fit in fits) / len(fits):.1f}",
            }
        )
        jax.clear_caches()
    save("refusals", rows)


if __name__ == "__main__":
    main()
