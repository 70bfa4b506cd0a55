"""Angles, counts and categories beside real columns: `fit_density` compared with the true density.

    uv run --group benchmarks python -m benchmarks.density.mixed [--seeds 3]

Fits use 10,000 rows, scores 20,000 fresh rows. `excess` is the mean of log p(row) - log q(row) over the fresh rows: the
Kullback-Leibler divergence of the fit, in nats, with standard error `se`. `mass` is the sum and integral of the fitted
density over a grid. `outside` counts draws outside their support among 20,000. Seconds include compilation. The results
are in docs/benchmarks/density_mixed.csv.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Float
from numpyro.distributions import constraints

from benchmarks.results import save
from numpyro_flows import MixedDistribution, fit_density

Rows = Float[np.ndarray, "num dim"]
NUM_TRAIN, NUM_TEST, NUM_DRAWS = 10_000, 20_000, 20_000
BLOCK = 10_000  # points of a grid scored at once
CIRCLE = -np.pi + 2 * np.pi * (np.arange(150) + 0.5) / 150


class Case(NamedTuple):
    """A density that is known.

    draw: `(rng, num) -> rows`; log_prob: its log density.
    grid: points of each column, and the width of a cell, 1 for whole numbers.
    condition: `(rng, num) -> conditions`, given to `draw` and `log_prob` as well; None without one.
    """

    support: list[constraints.Constraint]
    draw: Callable[..., Rows]
    log_prob: Callable[..., Float[np.ndarray, " num"]]
    grid: list[tuple[Float[np.ndarray, " points"], float]]
    condition: Callable[..., Rows] | None = None


def von_mises(angle: Any, concentration: Any) -> Any:
    return scipy.stats.vonmises.logpdf(angle, concentration)


def line(low: float, high: float, num: int) -> tuple[Float[np.ndarray, " points"], float]:
    width = (high - low) / num
    return low + width * (np.arange(num) + 0.5), width


def counts(num: int) -> tuple[Float[np.ndarray, " points"], float]:
    return np.arange(num, dtype=float), 1.0


ANGLES = CIRCLE, float(CIRCLE[1] - CIRCLE[0])


def draw_pair(rng: np.random.Generator, num: int) -> Rows:
    first = rng.vonmises(0.5, 2.0, num)
    return np.stack([first, first + rng.vonmises(0.0, 4.0, num)], axis=1)


def pair(x: Rows) -> Float[np.ndarray, " num"]:
    return von_mises(x[:, 0] - 0.5, 2.0) + von_mises(x[:, 1] - x[:, 0], 4.0)


def mean_on_torus(x: Rows) -> Float[np.ndarray, " num"]:
    return 2.0 * np.cos(x[:, 0]) + np.sin(x[:, 1])


def draw_torus(rng: np.random.Generator, num: int) -> Rows:
    angles = draw_pair(rng, num)
    return np.column_stack([angles, mean_on_torus(angles) + 0.5 * rng.normal(size=num)])


def torus(x: Rows) -> Float[np.ndarray, " num"]:
    return pair(x) + scipy.stats.norm.logpdf(x[:, 2], mean_on_torus(x), 0.5)


def draw_two_bumps(rng: np.random.Generator, num: int) -> Rows:
    centre = np.where(rng.uniform(size=num) < 0.7, -2.0, 2.5)
    return rng.vonmises(centre, 6.0)[:, None]


def two_bumps(x: Rows) -> Float[np.ndarray, " num"]:
    return np.logaddexp(np.log(0.7) + von_mises(x[:, 0] + 2.0, 6.0), np.log(0.3) + von_mises(x[:, 0] - 2.5, 6.0))


def rate(x: Any) -> Any:
    return np.exp(1.0 + 0.7 * x)


def draw_poisson(rng: np.random.Generator, num: int) -> Rows:
    x = rng.normal(size=num)
    return np.stack([rng.poisson(rate(x)), x], axis=1).astype(float)


def poisson(rows: Rows) -> Float[np.ndarray, " num"]:
    return scipy.stats.poisson.logpmf(rows[:, 0], rate(rows[:, 1])) + scipy.stats.norm.logpdf(rows[:, 1])


def draw_given(rng: np.random.Generator, num: int, condition: Rows) -> Rows:
    return rng.poisson(rate(condition[:, 0]))[:, None].astype(float)


def poisson_given(rows: Rows, condition: Rows) -> Float[np.ndarray, " num"]:
    return scipy.stats.poisson.logpmf(rows[:, 0], rate(condition[:, 0]))


SHARES, CENTRES, SPREADS = np.array([0.5, 0.3, 0.2]), np.array([-2.0, 0.0, 2.0]), np.array([0.5, 1.0, 0.7])
DISPERSION = 3.0


def mean_visits(group: Any, x: Any) -> Any:
    return np.exp(1.5 - 0.5 * group + 0.4 * x)


def draw_groups(rng: np.random.Generator, num: int) -> Rows:
    group = rng.choice(3, num, p=SHARES)
    x = CENTRES[group] + SPREADS[group] * rng.normal(size=num)
    visits = rng.negative_binomial(DISPERSION, DISPERSION / (DISPERSION + mean_visits(group, x)))
    return np.stack([x, group, visits], axis=1).astype(float)


def groups(rows: Rows) -> Float[np.ndarray, " num"]:
    x, group, visits = rows[:, 0], rows[:, 1].astype(int), rows[:, 2]
    share = DISPERSION / (DISPERSION + mean_visits(group, x))
    of_x = scipy.stats.norm.logpdf(x, CENTRES[group], SPREADS[group])
    return np.log(SHARES[group]) + of_x + scipy.stats.nbinom.logpmf(visits, DISPERSION, share)


def draw_hours(rng: np.random.Generator, num: int) -> Rows:
    night = rng.uniform(size=num) < 0.4
    hour = rng.vonmises(np.where(night, -2.5, 1.0), np.where(night, 5.0, 1.5))
    return np.stack([night, hour], axis=1).astype(float)


def hours(rows: Rows) -> Float[np.ndarray, " num"]:
    night = rows[:, 0] == 1
    concentration, centre = np.where(night, 5.0, 1.5), np.where(night, -2.5, 1.0)
    return np.log(np.where(night, 0.4, 0.6)) + von_mises(rows[:, 1] - centre, concentration)


COUNT, REAL, ANGLE = constraints.nonnegative_integer, constraints.real, constraints.circular
CASES = {
    "one angle, two modes": Case([ANGLE], draw_two_bumps, two_bumps, [ANGLES]),
    "von Mises pair": Case([ANGLE, ANGLE], draw_pair, pair, [ANGLES, ANGLES]),
    "two angles, a real column": Case([ANGLE, ANGLE, REAL], draw_torus, torus, [ANGLES, ANGLES, line(-6.0, 6.0, 200)]),
    "yes or no, an angle": Case([constraints.boolean, ANGLE], draw_hours, hours, [counts(2), ANGLES]),
    "Poisson counts, a real column": Case([COUNT, REAL], draw_poisson, poisson, [counts(1000), line(-7.0, 7.0, 500)]),
    "Poisson counts given a condition": Case(
        [COUNT], draw_given, poisson_given, [counts(1000)], lambda rng, num: rng.normal(size=(num, 1))
    ),
    "a real column, groups, negative binomial counts": Case(
        [REAL, constraints.integer_interval(0, 2), COUNT],
        draw_groups,
        groups,
        [line(-8.0, 8.0, 300), counts(3), counts(1000)],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    rows = [row(name, seed) for name in arguments.cases for seed in range(arguments.seeds)]
    if set(arguments.cases) == set(CASES):
        save("density_mixed", rows)


def row(name: str, seed: int, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST, **options: Any) -> dict[str, Any]:
    """A fit of a case, scored."""
    case = CASES[name]
    rng = np.random.default_rng(seed)
    train, seen = _drawn(case, rng, num_train)
    start = time.perf_counter()
    fitted: Any = fit_density(
        jax.random.key(seed), train, support=case.support, condition=seen, progress_bar=False, **options
    )
    seconds = time.perf_counter() - start
    fresh, condition = _drawn(case, rng, num_test)
    true = case.log_prob(fresh) if condition is None else case.log_prob(fresh, condition)
    excess = true - scores(fitted, fresh, condition)
    one = None if condition is None else condition[0]
    result = {
        "case": name,
        "seed": seed,
        "rows": num_train,
        "entropy": -true.mean(),
        "nll": -true.mean() + excess.mean(),
        "excess": excess.mean(),
        "se": excess.std() / np.sqrt(num_test),
        "mass": mass(fitted, case, one),
        "outside": num_outside(fitted, case, seed, one),
        "seconds": round(seconds, 1),
    }
    result = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in result.items()}
    result["seconds"] = f"{seconds:.1f}"
    print("  ".join(f"{key}={value}" for key, value in result.items()), flush=True)
    return result


def _drawn(case: Case, rng: np.random.Generator, num: int) -> tuple[Rows, Rows | None]:
    if case.condition is None:
        return case.draw(rng, num), None
    condition = case.condition(rng, num)
    return case.draw(rng, num, condition), condition


@partial(jax.jit, static_argnames="block")
def _log_prob(mixed: MixedDistribution, rows: Any, condition: Any, block: int = BLOCK) -> jax.Array:
    def one(row: tuple[Any, Any]) -> jax.Array:
        return (mixed if row[1] is None else mixed.given(row[1])).log_prob(row[0])

    return jax.lax.map(one, (rows, condition), batch_size=block)


def scores(mixed: MixedDistribution, rows: Rows, condition: Rows | None) -> Float[np.ndarray, " num"]:
    """Log densities of rows, each under its own condition."""
    seen = None if condition is None else jnp.asarray(condition)
    return np.asarray(_log_prob(mixed, jnp.asarray(rows), seen), np.float64)


def mass(mixed: MixedDistribution, case: Case, condition: Any = None) -> float:
    """The sum and integral of the density, by the midpoints of cells."""
    points = np.stack(
        [axis.ravel() for axis in np.meshgrid(*(points for points, _ in case.grid), indexing="ij")], axis=1
    )
    seen = None if condition is None else np.broadcast_to(condition, (len(points), len(condition)))
    return float(np.exp(scores(mixed, points, seen)).sum() * np.prod([width for _, width in case.grid]))


def num_outside(mixed: MixedDistribution, case: Case, seed: int, condition: Any = None) -> int:
    """How many draws have a value outside its support, or of density 0."""
    some = mixed if condition is None else mixed.given(condition)
    draws = np.asarray(some.sample(jax.random.key(seed + 100), (NUM_DRAWS,)))
    inside = np.stack([np.asarray(one(column)) for one, column in zip(case.support, draws.T)])
    return int((~inside.all(0) | ~np.isfinite(np.asarray(some.log_prob(draws)))).sum())


if __name__ == "__main__":
    main()
