"""Errors that a certificate may overlook: two modes of different widths, and the ends of a banana.

    uv run --group benchmarks python -m benchmarks.blind [--seeds 4]

- modes: 60% around -3 with the standard deviation 0.71 and 40% around 3 with 1.41 in every coordinate; a wide prior.
- banana: `x0 ~ N(0, 3)`, `x1 ~ N(0.3 x0^2 - 1, 0.2)` and four standard normals.

The evidence is 1 in both cases. The results are in docs/benchmarks/blind.csv.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from benchmarks.results import save
from numpyro_flows import FlowVI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    seeds = range(parser.parse_args().seeds)
    warnings.filterwarnings("ignore", message="the fit is not certified")
    cases = {f"modes, {dim} dimensions": (modes(dim), "x", None) for dim in (5, 8, 12)}
    cases["banana, 6 dimensions"] = (banana, "x1", np.sqrt(2 * 0.3**2 * 81 + 0.2**2))
    save("blind", [row(name, *case, seed) for name, case in cases.items() for seed in seeds])


def row(name: str, model: Callable, site: str, sd: float | None, seed: int) -> dict[str, Any]:
    posterior = FlowVI(model, progress_bar=False).run(jax.random.key(seed))
    draws = np.asarray(posterior.sample(jax.random.key(1), 20_000)[site])
    result = {
        "case": name,
        "seed": seed,
        "certified": posterior.certified,
        "khat": f"{posterior.khat:.2f}",
        "log_evidence": f"{posterior.log_evidence:.4f}",
        "se": f"{posterior.log_evidence_se:.4f}",
        "sd_ratio": "" if sd is None else f"{draws.std() / sd:.3f}",
    }
    print("  ".join(f"{key}={value}" for key, value in result.items()), flush=True)
    return result


def modes(dim: int) -> Callable[[], None]:
    def model() -> None:
        prior = dist.Normal(0, 10).expand([dim]).to_event(1)
        x = jnp.asarray(numpyro.sample("x", prior))
        parts = [np.log(share) + dist.Normal(loc, sd).log_prob(x).sum() for share, loc, sd in MODES]
        numpyro.factor("modes", logsumexp(jnp.stack(parts)) - prior.log_prob(x))

    return model


MODES = ((0.6, -3.0, 0.5**0.5), (0.4, 3.0, 2.0**0.5))


def banana() -> None:
    x0 = jnp.asarray(numpyro.sample("x0", dist.Normal(0, 3)))
    numpyro.sample("x1", dist.Normal(0.3 * x0**2 - 1, 0.2))
    numpyro.sample("rest", dist.Normal(0, 1).expand([4]).to_event(1))


if __name__ == "__main__":
    main()
