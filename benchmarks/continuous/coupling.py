"""Independent and optimal-transport pairs of flow matching, with conditions, weights and both: held-out scores.

    uv run --group benchmarks python -m benchmarks.continuous.coupling [--seeds 3]

Each task has 4,000 training rows, 10,000 fresh rows and a known density. Both couplings take the same rows, the same
number of steps and otherwise the defaults. `above_truth` is the mean of `log p(x) - log q(x)` over the fresh rows, so
it has little noise. `share` is the mass of a mode that has 10/11 by the rows' weights, and 1/2 without weights.
`evaluations` of the field are those of the density of a row.

Tasks: `line` is `x = 2 c + 0.3 e` with normal `c` and `e`; `groups` has three normals, one for each value of a discrete
condition; `turned moons` are turned by an angle, which is the condition; `weighted` has two equal modes, whose weights
are 10 to 1; in `both` two such modes move with a condition.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.datasets import make_moons

from benchmarks.results import save
from numpyro_flows import fit_density, flows
from numpyro_flows.continuous import FlowMatching
from numpyro_flows.continuous.matching import Coupling

NUM, FRESH, STEPS = 4_000, 10_000, 3_000
NOISE, ODDS, WIDTH = 0.06, 10.0, 0.3  # of the moons; of the weights; of a mode
COUPLINGS: tuple[Coupling, ...] = ("independent", "minibatch_ot")


class Rows(NamedTuple):
    """Training rows, fresh rows of the density that is to be found, and its log density at these."""

    x: Float[np.ndarray, "num dim"]
    condition: Float[np.ndarray, "num cond_dim"] | None
    weights: Float[np.ndarray, " num"] | None
    fresh: Float[np.ndarray, "fresh dim"]
    fresh_condition: Float[np.ndarray, "fresh cond_dim"] | None
    log_density: Float[np.ndarray, " fresh"]


def line(rng: np.random.Generator) -> Rows:
    c, e = rng.normal(size=(2, NUM + FRESH, 1))
    x, c = np.split(2 * c + WIDTH * e, [NUM]), np.split(c, [NUM])
    return Rows(x[0], c[0], None, x[1], c[1], norm.logpdf(x[1], 2 * c[1], WIDTH)[:, 0])


def groups(rng: np.random.Generator) -> Rows:
    group = rng.choice(3, size=NUM + FRESH, p=[0.6, 0.3, 0.1])
    loc, width = np.array([-1.0, 0.0, 2.0])[group, None], np.array([0.2, 1.0, 0.5])[group, None]
    x = loc + width * rng.normal(size=(NUM + FRESH, 2))
    log_density = norm.logpdf(x, loc, width).sum(1)
    c = group[:, None].astype(float)
    return Rows(x[:NUM], c[:NUM], None, x[NUM:], c[NUM:], log_density[NUM:])


def turned_moons(rng: np.random.Generator) -> Rows:
    points, _ = make_moons(NUM + FRESH, noise=NOISE, random_state=int(rng.integers(2**31)))
    centred = np.asarray(points) - [0.5, 0.25]
    angle = rng.uniform(-np.pi / 2, np.pi / 2, NUM + FRESH)
    cos, sin = np.cos(angle), np.sin(angle)
    x = np.stack([cos * centred[:, 0] - sin * centred[:, 1], sin * centred[:, 0] + cos * centred[:, 1]], axis=1)
    c = angle[:, None]
    return Rows(x[:NUM], c[:NUM], None, x[NUM:], c[NUM:], moons_log_density(np.asarray(points)[NUM:]))


def moons_log_density(points: Float[np.ndarray, "num 2"]) -> Float[np.ndarray, " num"]:
    """Of arcs convolved with the noise, by quadrature over their angle."""
    angle = np.linspace(0, np.pi, 501)
    arcs = np.stack([[np.cos(angle), np.sin(angle)], [1 - np.cos(angle), 0.5 - np.sin(angle)]])
    weight = np.full(angle.size, 0.5 / (angle.size - 1))
    weight[[0, -1]] /= 2
    blocks = []
    for block in np.array_split(points, 20):
        squared = ((block[:, None, None] - arcs.transpose(0, 2, 1)) ** 2).sum(-1)
        blocks.append(logsumexp(-squared / (2 * NOISE**2), b=weight, axis=(1, 2)))
    return np.concatenate(blocks) - np.log(2 * np.pi * NOISE**2)


def two_modes(rng: np.random.Generator, *, moving: bool) -> Rows:
    c = rng.normal(size=(NUM + FRESH, 1)) if moving else np.zeros((NUM + FRESH, 1))
    chance = np.repeat([0.5, ODDS / (1 + ODDS)], [NUM, FRESH])
    upper = rng.uniform(size=NUM + FRESH) < chance
    x = c + np.where(upper, 1.0, -1.0)[:, None] + WIDTH * rng.normal(size=(NUM + FRESH, 1))
    weights = np.where(upper, ODDS, 1.0)[:NUM]
    log_modes = norm.logpdf(x[NUM:] - c[NUM:], [[-1.0, 1.0]], WIDTH)
    log_density = np.asarray(logsumexp(log_modes, b=np.array([1.0, ODDS]) / (1 + ODDS), axis=1))
    conditions = np.split(c, [NUM]) if moving else (None, None)
    return Rows(x[:NUM], conditions[0], weights, x[NUM:], conditions[1], log_density)


TASKS: dict[str, Callable[[np.random.Generator], Rows]] = {
    "line": line,
    "groups": groups,
    "turned moons": turned_moons,
    "weighted": partial(two_modes, moving=False),
    "both": partial(two_modes, moving=True),
}


def measure(task: str, coupling: Coupling, seed: int) -> dict[str, Any]:
    rows = TASKS[task](np.random.default_rng(seed))
    jax.clear_caches()
    start = time.perf_counter()
    flow = fit_density(
        jax.random.key(seed),
        rows.x,
        condition=rows.condition,
        weights=rows.weights,
        flow=flows.ffjord,
        objective=FlowMatching(coupling=coupling),
        num_steps=STEPS,
        progress_bar=False,
    )
    seconds = time.perf_counter() - start

    def fresh_log_prob(x: Any, condition: Any) -> Any:
        return (flow if condition is None else flow.given(condition)).log_prob(x)

    log_prob = np.asarray(jax.jit(fresh_log_prob)(rows.fresh, rows.fresh_condition), np.float64)
    excess, share = rows.log_density - log_prob, ""
    if rows.weights is not None:
        share = f"{upper_share(flow, rows):.3f}"
    assert flow.fit.solver is not None
    row = {
        "task": task,
        "coupling": coupling,
        "seed": seed,
        "held_out_nll": f"{-log_prob.mean():.4f}",
        "truth": f"{-rows.log_density.mean():.4f}",
        "above_truth": f"{excess.mean():.4f}",
        "standard_error": f"{excess.std() / np.sqrt(FRESH):.4f}",
        "share": share,
        "evaluations": f"{flow.fit.solver.num_evaluations:.0f}",
        "seconds": f"{seconds:.1f}",
    }
    print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def upper_share(flow: Any, rows: Rows) -> float:
    """How many draws are in the mode of the larger weights, each for the condition of a fresh row."""
    c = rows.fresh_condition
    given = flow if c is None else flow.given(c)
    draws = np.asarray(jax.jit(lambda key: given.sample(key, (FRESH,) if c is None else ()))(jax.random.key(0)))
    return float(np.mean(draws > (0.0 if c is None else c)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--quick", action="store_true", help="one seed, nothing written")
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    rows = [measure(task, coupling, seed) for task in options.tasks for coupling in COUPLINGS for seed in seeds]
    if not options.quick:
        save("continuous_coupling", rows)


if __name__ == "__main__":
    main()
