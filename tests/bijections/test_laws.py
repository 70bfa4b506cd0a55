"""The laws that every bijection keeps, tried on every case of the table, in both directions and both precisions.

Tolerances are rounding errors, not wishes: `eps` times the largest number that occurs, times what the Jacobian (found
by automatic differentiation) makes of an error. A test is one case and checks all laws: compiling is nearly all the
work, and they share it (`laws.py`). The quick cases are every layer and every recipe in double precision, and two
recipes in single precision; the others are slow.
"""

import equinox as eqx
import jax
import numpy as np
import pytest
from scipy.stats import norm

from tests.bijections.cases import CASES, FLOWS, LAYERS, NEARLY, NUMERICAL, QUICK_DOUBLE, QUICK_SINGLE, WITH_SCORE
from tests.bijections.laws import (
    DIRECTIONS,
    DOUBLE,
    EXTREME,
    MODERATE,
    OPERATIONS,
    SINGLE,
    Broken,
    Case,
    Pass,
    Rounding,
    flat,
)

RIGID = ("identity", "permutation", "dct", "householder", "cayley")
# both directions of these are differentiated in the quick suite: closed forms, and sweeps once; test_root.py has roots
EVERY_GRADIENT = [name for name in QUICK_DOUBLE if name not in FLOWS and not name.startswith(NUMERICAL)]
EVERY_GRADIENT += ["maf 5d conditional"]
QUICK = [(name, DOUBLE) for name in QUICK_DOUBLE] + [(name, SINGLE) for name in QUICK_SINGLE]
IN_SINGLE = [name for name in CASES if name not in FLOWS or name.endswith(" 2d")]
SLOW = [case for case in [(n, SINGLE) for n in IN_SINGLE] + [(n, DOUBLE) for n in CASES] if case not in QUICK]
# in one dimension, and in as many as make gradients expensive to compile, only one direction is differentiated
DIFFERENTIATED = [name for name in CASES if name not in FLOWS or name.endswith(("5d conditional", "4d conditional"))]


def over(cases: list[tuple[str, np.dtype]]):
    # the name of the case is the last part of a test's name, by which tests go to workers
    return pytest.mark.parametrize(("name", "dtype"), cases, ids=[f"{dtype}-{name}" for name, dtype in cases])


@over(QUICK)
def test_laws(name, dtype):
    with_score = name in WITH_SCORE and dtype == DOUBLE
    check(name, dtype, every_gradient=name in EVERY_GRADIENT and dtype == DOUBLE, with_score=with_score)


@pytest.mark.slow
@over(SLOW)
def test_laws_of_other_shapes_and_precisions(name, dtype):
    check(name, dtype, every_gradient=False, with_score=False)


@pytest.mark.slow
@over([(name, DOUBLE) for name in DIFFERENTIATED])
def test_laws_of_both_directions_differentiated(name, dtype):
    check(name, dtype, every_gradient=True, with_score=True)


@pytest.mark.slow
@over([(name, SINGLE) for name in FLOWS if name.endswith(" 2d")])
def test_gradients_of_both_directions_in_single_precision(name, dtype):
    check(name, dtype, every_gradient=True, with_score=False)


def check(name: str, dtype: np.dtype, *, every_gradient: bool, with_score: bool) -> None:
    broken = Broken(f"{name}, {dtype}")
    with jax.enable_x64(dtype == DOUBLE):
        case = Case(name, dtype, every_gradient=every_gradient)
        if name in LAYERS or name in FLOWS:
            it_starts_as_the_identity(broken, case)
        for direction, there, back, exact in case.ways():
            there_and_back(broken, case, direction, there, back, exact)
            log_determinants(broken, case, direction, there, back, exact)
            if there.gradients is not None:
                # between components of a mixture a map may be so flat that its inverse has a slope beyond all numbers
                too_flat = np.abs(there.log_det).max() > -np.log(np.finfo(dtype).tiny)
                broken.unless_true(
                    f"{direction}: gradients are finite out to a thousand",
                    all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(there if too_flat else (there, back))),
                )
            if with_score and direction == DIRECTIONS[0]:
                scores(broken, case, there, exact)
        if dtype == DOUBLE:
            gradients(broken, case)
        elif case.start.shape == (2,):
            densities(broken, case)
    broken.report()


def it_starts_as_the_identity(broken: Broken, case: Case) -> None:
    for direction in DIRECTIONS:
        there = case.evaluate(direction, case.start, case.x, case.condition)
        x, y, log_det = there.x[MODERATE], there.y[MODERATE], there.log_det[MODERATE]
        if case.name.startswith(NEARLY):
            broken.unless(f"{direction} starts near the identity", y, x, 0.5 * np.abs(x).max())
            broken.unless_true(
                f"{direction} starts as what correlates with the identity",
                np.abs(np.corrcoef(y.ravel(), x.ravel())[0, 1]) > 0.98,
            )
        else:
            tolerance = 1e3 * np.finfo(case.dtype).eps
            broken.unless(f"{direction} starts as the identity", y, x, tolerance)
            broken.unless(f"{direction} starts with a log-determinant of 0", log_det, 0.0, tolerance)


def there_and_back(broken: Broken, case: Case, direction: str, there: Pass, back: Pass, exact: Rounding) -> None:
    miss, tolerance = np.abs(back.y - there.x).max(-1), exact.of_events
    broken.unless(f"{direction} and back is the identity", miss[MODERATE], 0.0, tolerance[MODERATE])
    broken.unless(f"{direction} and back, out to a thousand", miss[EXTREME], 0.0, exact.of_values[EXTREME])
    says_something = np.median(tolerance[MODERATE]) < 1e4 * np.finfo(case.dtype).eps
    broken.unless_true(f"{direction}: the rounding allowed is so large that the law is void", says_something)
    numerical = case.name.startswith(NUMERICAL)
    promised = {SINGLE: 1e-5 if numerical else 1e-4, DOUBLE: 1e-8 if numerical else 1e-9}[case.dtype]
    broken.unless(f"{direction} and back, in half of the events", np.median(miss[MODERATE]), 0.0, promised)


def log_determinants(broken: Broken, case: Case, direction: str, there: Pass, back: Pass, exact: Rounding) -> None:
    expected, tolerance = np.linalg.slogdet(exact.jacobian[MODERATE])[1], exact.of_log_det[MODERATE]
    law = "the log-determinant is that of the Jacobian"
    broken.unless(f"{direction}: {law}", there.log_det[MODERATE], expected, tolerance)
    broken.unless(f"{direction}: {law}, of the way back", back.log_det[MODERATE], -expected, tolerance)
    if not case.name.startswith(RIGID):
        broken.unless_true("a wrong log-determinant of 0 would be seen", np.abs(expected).max() > 1e-3)


def gradients(broken: Broken, case: Case) -> None:
    """Against finite differences: in one way along all parameters, one along the events, one along the conditions."""
    batch = (a if a is None else np.concatenate([a[MODERATE]] * 3) for a in (case.x, case.condition))
    args = case.trained, *batch  # of as many events as is compiled for
    for direction in case.differentiated:
        slopes = case.evaluate(direction, *args).gradients
        assert slopes is not None
        for i, what in enumerate(("parameters", "events", "conditions")):
            floats, rest = eqx.partition(args[i], eqx.is_inexact_array_like)
            leaves, structure = jax.tree.flatten(floats)
            rng = np.random.default_rng(i)
            way = [1e-6 * rng.normal(size=leaf.shape) for leaf in leaves]
            losses = []
            for sign in (1, -1):
                moved = jax.tree.unflatten(structure, [leaf + sign * step for leaf, step in zip(leaves, way)])
                moved = *args[:i], eqx.combine(moved, rest), *args[i + 1 :]
                losses.append(case.evaluate(direction, *moved).loss)
            gradient = flat(slopes[i])
            tolerance = 1e-7 * np.linalg.norm(flat(way)) * (1.0 + np.linalg.norm(gradient))
            law = f"{direction}: the gradient along {what} is that of finite differences"
            broken.unless(law, (losses[0] - losses[1]) / 2, gradient @ flat(way), tolerance)


def densities(broken: Broken, case: Case) -> None:
    """What a flow near the identity makes of a standard normal, on a grid that ends at six deviations."""
    side, step = np.linspace(-6.0, 6.0, 61, retstep=True)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    condition = None if case.condition is None else np.broadcast_to(case.condition[0], case.condition.shape)
    mass = 0.0
    for block in np.array_split(grid, len(grid) // len(case.x) + 1):
        y = np.pad(block, [(0, len(case.x) - len(block)), (0, 0)], "edge")  # as many as is compiled for
        home = case.evaluate(DIRECTIONS[1], case.trained, y, condition)
        mass += np.exp(norm.logpdf(home.y).sum(-1) + home.log_det)[: len(block)].sum() * step**2
    broken.unless("the density integrates to 1", mass, 1.0, 1e-3)


def scores(broken: Broken, case: Case, there: Pass, exact: Rounding) -> None:
    y, log_det, score = case.score()
    y, score = y.reshape(there.y.shape), score.reshape(there.y.shape)
    right = -there.x - exact.log_det_gradient
    transposed = np.swapaxes(exact.jacobian[MODERATE], -1, -2)
    expected = np.linalg.solve(transposed, right[MODERATE, :, None])[..., 0]
    slope = exact.stretch * (1.0 + np.abs(right).max(-1)) * (1.0 + exact.log_det_slope)  # of the right side too
    tolerance = OPERATIONS * np.finfo(case.dtype).eps * slope * exact.stretch_back**2
    broken.unless("the score solves its equation", score[MODERATE], expected, tolerance[MODERATE, None])
    law = "with its score comes the same"
    broken.unless(f"{law} value", y[MODERATE], there.y[MODERATE], exact.of_values[MODERATE, None])
    broken.unless(f"{law} log-determinant", log_det[MODERATE], there.log_det[MODERATE], exact.of_log_det[MODERATE])
