"""Fit densities with many modes or a deep neck whose evidence is known.

    uv run --group benchmarks python -m benchmarks.targets [--seeds 5] [--only NAME ...]

Fits are in double precision, by the defaults of `FlowVI`, with the seeds 0..N-1. For mixtures with equal weights, the
smallest and the largest share of a component are printed, as a multiple of the right one.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks.results import save
from numpyro_flows import FlowVI

CENTRES = jax.random.uniform(jax.random.key(0), (40, 2), minval=-40, maxval=40)
LOCATIONS = jax.random.uniform(jax.random.key(0), (5, 10), minval=-10, maxval=10)
DRAWS = 20_000


def flat(dim: int) -> jax.Array:
    return jnp.asarray(numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (dim,))))


def funnel() -> None:
    v = numpyro.sample("v", dist.Normal(0, 3))
    numpyro.sample("x", dist.Normal(0, jnp.exp(v / 2)).expand([9]).to_event(1))


def many_well() -> None:
    x = flat(32)
    a, b = x[..., ::2], x[..., 1::2]
    numpyro.factor("wells", jnp.sum(-(a**4 - 6 * a**2 - 0.5 * a) - b**2 / 2, -1))


def forty_gaussians() -> None:
    heights = dist.Normal(CENTRES, 1).to_event(1).log_prob(flat(2))
    numpyro.factor("mixture", jax.nn.logsumexp(heights) - jnp.log(len(CENTRES)))


def student_t_mixture() -> None:
    heights = dist.MultivariateStudentT(2.0, LOCATIONS, jnp.eye(10)).log_prob(flat(10))
    numpyro.factor("mixture", jax.nn.logsumexp(heights) - jnp.log(len(LOCATIONS)))


class Known(NamedTuple):
    model: Callable
    log_evidence: float
    centres: Any = None


TARGETS = {
    "funnel": Known(funnel, 0.0),
    "many-well": Known(many_well, 16 * (np.log(11784.50927) + 0.5 * np.log(2 * np.pi))),
    "40 Gaussians": Known(forty_gaussians, 0.0, CENTRES),
    "Student-t mixture": Known(student_t_mixture, 0.0, LOCATIONS),
}


def row(name: str, target: Known, seed: int) -> dict[str, Any]:
    start = time.perf_counter()
    posterior = FlowVI(target.model, progress_bar=False).run(jax.random.key(seed))
    seconds = time.perf_counter() - start
    shares = ""
    if target.centres is not None:
        x = np.asarray(posterior.sample(jax.random.key(1000 + seed), DRAWS)["x"])
        nearest = ((x[:, None] - np.asarray(target.centres)) ** 2).sum(2).argmin(1)
        relative = np.bincount(nearest, minlength=len(target.centres)) * len(target.centres) / len(x)
        shares = f"{relative.min():.2f} to {relative.max():.2f}"
    return {
        "target": name,
        "seed": seed,
        "certified": posterior.certified,
        "by": posterior.certificate.by if posterior.chains is None else f"fallback, {posterior.certificate.by}",
        "log_evidence_error": f"{posterior.log_evidence - target.log_evidence:+.4f}",
        "log_evidence_se": f"{posterior.log_evidence_se:.4f}",
        "shares": shares,
        "seconds": f"{seconds:.1f}",
        "why": posterior.why,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(TARGETS), help="some of them; nothing is saved")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", UserWarning)
    rows = []
    for name in options.only or TARGETS:
        for seed in range(options.seeds):
            rows.append(row(name, TARGETS[name], seed))
            print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
        jax.clear_caches()
    if not options.only:
        save("targets", rows)


if __name__ == "__main__":
    main()
