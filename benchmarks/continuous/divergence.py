"""Cost of divergences, variance of their estimates, and the effect of one probe on a data set's score.

    uv run --group benchmarks python -m benchmarks.continuous.divergence [--repeats 7]

It writes three files:

- `continuous_divergence_cost.csv`: milliseconds for an evaluation of the field and its divergence, for a batch of 16
  events and a field of three layers of 512 units. The cost of the exact divergence grows with the dimension, that of
  one probe does not.
- `continuous_divergence_variance.csv`: variances of estimates of the trace of a symmetric 24 x 24 matrix, beside the
  formulas.
- `continuous_divergence_score.csv`: estimated minus exact negative log likelihood of one trained flow, averaged over
  test rows; mean size and largest of 10 seeds. One column has a probe for each event, one a probe for all events.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Scalar
from sklearn.datasets import make_moons

from benchmarks.flows.common import target_draws
from benchmarks.results import save
from numpyro_flows import fit_density, flows
from numpyro_flows.bijections.noise import reseeded
from numpyro_flows.continuous import (
    AbstractDivergence,
    AbstractField,
    Exact,
    FlowMatching,
    Hutchinson,
    HutchPlusPlus,
    LinearField,
    MLPField,
)
from numpyro_flows.continuous.divergence import Probes, Velocity
from numpyro_flows.continuous.training_form import continuous_flows

DIMS, BATCH, HIDDEN = (2, 8, 32, 128, 512), 16, (512, 512, 512)
SIZE, DRAWS = 24, 100_000
TRAIN, TEST, SEEDS = 4000, 20_000, 10
_ROUNDING = 1e-3  # of a sum of 24 numbers of size 10 in single precision, and more


class SharedProbe(AbstractDivergence):
    """Hutchinson's estimator with one probe for all events, as a bad example."""

    hutchinson: Hutchinson

    @property
    def estimate(self) -> str:
        return "one probe for all events"

    def probes(self, x: Float[Array, " dim"]) -> Probes:
        return self.hutchinson.probes(jnp.zeros_like(x))

    def __call__(
        self, field: AbstractField, t: Scalar, x: Float[Array, " dim"], condition: Array | None, probes: Probes
    ) -> Velocity:
        return self.hutchinson(field, t, x, condition, probes)


def milliseconds(sides: dict[str, Callable[[], Any]], repeats: int, seconds: float) -> dict[str, float]:
    """Median of an evaluation, the sides taking turns."""
    count = {}
    for name, run in sides.items():
        jax.block_until_ready(run())
        start = time.perf_counter()
        jax.block_until_ready(run())
        count[name] = max(1, round(seconds / (time.perf_counter() - start)))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            for _ in range(count[name]):
                jax.block_until_ready(run())
            found[name].append(1000 * (time.perf_counter() - start) / count[name])
    return {name: statistics.median(values) for name, values in found.items()}


def cost(dim: int, repeats: int, seconds: float) -> dict[str, Any]:
    key = jax.random.key(0)
    field, x = MLPField(key, dim, hidden=HIDDEN), jax.random.normal(key, (BATCH, dim))
    t = jnp.full((), 0.5)

    def evaluation(divergence: AbstractDivergence) -> Callable[[], Any]:
        def one(x: Array) -> tuple[Array, Array]:
            found = divergence(field, t, x, None, divergence.probes(x))
            return found.value, found.divergence

        return partial(jax.jit(jax.vmap(one)), x)

    found = milliseconds(
        {
            "field": partial(jax.jit(jax.vmap(lambda x: field(t, x))), x),
            "exact": evaluation(Exact()),
            "one_probe": evaluation(Hutchinson(key)),
        },
        repeats,
        seconds,
    )
    row = {
        "dim": dim,
        **{f"{name}_milliseconds": f"{value:.3f}" for name, value in found.items()},
        "exact_over_field": f"{found['exact'] / found['field']:.1f}",
        "one_probe_over_field": f"{found['one_probe'] / found['field']:.1f}",
        "exact_over_one_probe": f"{found['exact'] / found['one_probe']:.1f}",
    }
    print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def variances() -> list[dict[str, Any]]:
    matrix = np.random.default_rng(0).normal(size=(SIZE, SIZE))
    low = matrix[:, :2] @ matrix[:2] / 2
    cases = []
    for name, a in {"symmetric": (matrix + matrix.T) / 2, "symmetric of rank 4": low + low.T}.items():
        square, diagonal = (a**2).sum(), (np.diagonal(a) ** 2).sum()
        cases += [
            (name, a, Hutchinson(jax.random.key(0)), 2 * (square - diagonal)),
            (name, a, Hutchinson(jax.random.key(0), distribution="gaussian"), 2 * square),
            (name, a, Hutchinson(jax.random.key(0), num_probes=12), (square - diagonal) / 6),
            (name, a, HutchPlusPlus(jax.random.key(0), num_probes=12), None),
        ]
    rows = []
    for name, a, divergence, formula in cases:
        values = np.asarray(traces(divergence, a), float) - np.trace(a)
        se = np.std(values**2) / np.sqrt(DRAWS)
        rows.append(
            {
                "matrix": name,
                "estimator": divergence.estimate,
                "bias_in_standard_errors": f"{values.mean() / max(values.std(), _ROUNDING) * np.sqrt(DRAWS):.1f}",
                "variance": f"{(values**2).mean():.4g}",
                "standard_error": f"{se:.2g}",
                "formula": "" if formula is None else f"{formula:.4g}",
            }
        )
    return rows


def traces(divergence: AbstractDivergence, matrix: np.ndarray) -> Float[Array, " draws"]:
    field = eqx.tree_at(lambda f: f.weight, LinearField(SIZE), jnp.asarray(matrix, float))

    @jax.jit
    @jax.vmap
    def one(key: PRNGKeyArray) -> Array:
        estimator, x = reseeded(divergence, key), jnp.ones(SIZE)
        return estimator(field, jnp.zeros(()), x, None, estimator.probes(x)).divergence

    return one(jax.random.split(jax.random.key(1), DRAWS))


def moons() -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(make_moons(TRAIN + TEST, noise=0.08, random_state=0)[0])
    return points[:TRAIN], points[TRAIN:]


def bent() -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(target_draws(jax.random.key(2), TRAIN + TEST, 10))
    return points[:TRAIN], points[TRAIN:]


def scores(name: str, num_steps: int) -> dict[str, Any]:
    train, test = {"two moons": moons, "ten bent coordinates": bent}[name]()
    key = jax.random.key(0)
    flow = fit_density(
        key, train, flow=flows.ffjord, objective=FlowMatching(), num_steps=num_steps, progress_bar=False
    ).bijection

    def nll(flow: Any, y: Array) -> Array:
        x, log_det = flow.inverse_and_log_det(y)
        return 0.5 * (x**2).sum() - log_det + 0.5 * x.size * jnp.log(2 * jnp.pi)

    @eqx.filter_jit
    def of_rows(flow: Any, y: Array) -> Array:
        return jax.vmap(lambda y: nll(flow, y))(y)

    def by(divergence: AbstractDivergence) -> Any:
        return eqx.tree_at(lambda b: continuous_flows(b)[0].divergence, flow, divergence)

    y = jnp.asarray(test, jnp.result_type(float))
    exact = of_rows(flow, y).mean()
    hutchinson = Hutchinson(key)
    errors = {}
    for side, estimated in {"each": by(hutchinson), "shared": by(SharedProbe(hutchinson))}.items():
        keys = jax.random.split(jax.random.key(3), SEEDS)
        errors[side] = np.abs([float(of_rows(reseeded(estimated, k), y).mean() - exact) for k in keys])
    return {
        "data": name,
        "rows": len(test),
        "exact_nll": f"{exact:.4f}",
        "mean_error_of_a_probe_each": f"{errors['each'].mean():.4f}",
        "largest": f"{errors['each'].max():.4f}",
        "mean_error_of_a_shared_probe": f"{errors['shared'].mean():.4f}",
        "largest_of_shared": f"{errors['shared'].max():.4f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one timing")
    parser.add_argument("--quick", action="store_true", help="small and short, nothing written")
    options = parser.parse_args()
    if options.quick:
        print([cost(dim, 1, 0.01) for dim in DIMS[:2]], variances(), scores("two moons", 200), sep="\n")
        return
    save("continuous_divergence_variance", variances())
    save("continuous_divergence_score", [scores(name, 3000) for name in ("two moons", "ten bent coordinates")])
    save("continuous_divergence_cost", [cost(dim, options.repeats, options.seconds) for dim in DIMS])


if __name__ == "__main__":
    main()
