"""The laws that every bijection keeps, tried on every case of the table, in both directions and both precisions.

Tolerances are rounding errors, not wishes: `eps` times the largest number that occurs, times what the Jacobian (found
by automatic differentiation) makes of an error. Compiling is nearly all the work, so a case has one compiled function a
direction and precision, which computes all that its laws speak of.
"""

from functools import cache
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.bijections import AbstractBijection, Invert, transform_with_score
from tests.bijections.cases import CASES, FLOWS, LAYERS, NEARLY, NUMERICAL, QUICK_INVERSE
from tests.bijections.common import made

NUM_EVENTS = 16
OPERATIONS = 32  # how many rounding errors add up in one pass
MODERATE, EXTREME = (1.0,), (1e-3, 1.0, 1e3)
DIRECTIONS = ("transform_and_log_det", "inverse_and_log_det")
SINGLE, DOUBLE = np.dtype("float32"), np.dtype("float64")
# To compile gradients is most of the work: of a recipe they are tried in 5 dimensions with a condition, in double
# precision, and in 2 dimensions in single, which is also where its rounding is looked at.
IN_SINGLE = [name for name in CASES if name not in FLOWS or name.endswith(" 2d")]
DOUBLE_GRADIENTS = [name for name in CASES if name not in FLOWS or name.endswith("5d conditional")]
SINGLE_GRADIENTS = [name for name in FLOWS if name.endswith(" 2d")]
PRECISIONS = [(name, SINGLE) for name in IN_SINGLE] + [(name, DOUBLE) for name in CASES]
GRADIENTS = [(name, SINGLE) for name in SINGLE_GRADIENTS] + [(name, DOUBLE) for name in DOUBLE_GRADIENTS]


def over(cases: list[tuple[str, np.dtype]]):
    # the name of the case is the last part of a test's name, by which tests go to workers
    return pytest.mark.parametrize(("name", "dtype"), cases, ids=[f"{dtype}-{name}" for name, dtype in cases])


over_double_gradients = pytest.mark.parametrize("name", DOUBLE_GRADIENTS)
over_directions = pytest.mark.parametrize("direction", DIRECTIONS)


class Pass(NamedTuple):
    """One direction for a batch of events, flattened."""

    x: np.ndarray
    y: np.ndarray
    log_det: np.ndarray
    loss: np.ndarray
    gradients: tuple | None = None  # of the loss, along parameters, events and conditions
    jacobian: np.ndarray | None = None
    log_det_gradient: np.ndarray | None = None


@eqx.filter_jit
def run(params, static, x, condition, direction: str, gradients: bool, jacobian: bool) -> Pass:
    def method(params, x, condition):
        y, log_det = getattr(eqx.combine(params, static), direction)(x, condition)
        return y.ravel(), log_det

    def total(y, log_det):
        return (jnp.cos(jnp.arange(y.size, dtype=y.dtype)) * y.ravel()).sum() + log_det.sum()

    def loss(args):
        y, log_det = jax.vmap(method, in_axes=(None, 0, 0))(*args)
        return total(y, log_det), (y, log_det)

    def with_values(params, x, condition):
        values = method(params, x.reshape(static.shape), condition)
        return values, values

    args, x = (params, x, condition), x.reshape(NUM_EVENTS, -1)
    of_y = of_log_det = along = None
    if jacobian:
        differentiate = jax.jacfwd(with_values, argnums=1, has_aux=True)
        (of_y, of_log_det), (y, log_det) = jax.vmap(differentiate, in_axes=(None, 0, 0))(params, x, condition)
    if gradients:
        (_, (y, log_det)), along = jax.value_and_grad(loss, has_aux=True)(args)
    if not (jacobian or gradients):
        _, (y, log_det) = loss(args)
    return Pass(x, y, log_det, total(y, log_det), along, of_y, of_log_det)


def quick_direction(name: str) -> str:
    """The direction in closed form, whose Jacobian is compiled; that of the other is its inverse."""
    return DIRECTIONS[name.startswith(QUICK_INVERSE)]


@cache
def start(name: str) -> AbstractBijection:
    """The case as it is made, in double precision."""
    with jax.enable_x64(True):
        return made(CASES[name])


@cache
def trained(name: str) -> AbstractBijection:
    with jax.enable_x64(True):
        return made(CASES[name], scale=0.05)


def evaluate(name: str, bijection, direction: str, dtype: np.dtype, x, condition) -> Pass:
    """All of one direction, computed in `dtype` and returned in double precision."""
    kinds = {"f": dtype, "i": np.dtype(f"int{8 * dtype.itemsize}")}

    def cast(leaf):
        return np.asarray(leaf, kinds.get(leaf.dtype.kind, leaf.dtype)) if eqx.is_array_like(leaf) else leaf

    with jax.enable_x64(dtype == DOUBLE):
        bijection, x, condition = jax.tree.map(cast, (bijection, x, condition))
        params, static = eqx.partition(bijection, eqx.is_inexact_array_like)
        gradients = (name, dtype) in GRADIENTS
        jacobian = dtype == DOUBLE and direction == quick_direction(name)
        x = x.reshape(NUM_EVENTS, *bijection.shape)
        result = run(params, static, x, condition, direction, gradients, jacobian)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result))
        return jax.tree.map(lambda leaf: np.asarray(leaf, DOUBLE), result)


def events(bijection: AbstractBijection, x_sizes=MODERATE, condition_sizes=MODERATE):
    """A batch of events and one of conditions, each value of a size drawn from those given."""
    rng = np.random.default_rng(0)
    shape = (NUM_EVENTS, *bijection.shape)
    x = 2 * rng.normal(size=shape) * rng.choice(x_sizes, size=shape)
    if bijection.cond_shape is None:
        return x, None
    shape = (NUM_EVENTS, *bijection.cond_shape)
    return x, rng.normal(size=shape) * rng.choice(condition_sizes, size=shape)


@cache
def there_and_back(
    name: str, direction: str, dtype: np.dtype, x_sizes=MODERATE, condition_sizes=MODERATE
) -> tuple[Pass, Pass]:
    bijection = trained(name)
    x, condition = events(bijection, x_sizes, condition_sizes)
    there = evaluate(name, bijection, direction, dtype, x, condition)
    back = evaluate(name, bijection, DIRECTIONS[1 - DIRECTIONS.index(direction)], dtype, there.y, condition)
    return there, back


def inverse(matrices: np.ndarray) -> np.ndarray:
    """Of Jacobians, which far out may be singular to rounding: then it is huge, and so are the errors it allows."""
    left, sizes, right = np.linalg.svd(matrices)
    return np.swapaxes(left / np.maximum(sizes, 1e-100)[:, None, :] @ right, -1, -2)


def flat(tree) -> np.ndarray:
    """All numbers of a tree in one vector."""
    return np.concatenate([np.zeros(0), *(np.ravel(leaf) for leaf in jax.tree.leaves(tree))])


class Rounding(NamedTuple):
    """What rounding may do to a pass, as the Jacobian of the exact one says; one number for each event."""

    there: Pass
    jacobian: np.ndarray
    log_det_gradient: np.ndarray
    dtype: np.dtype

    @property
    def stretch(self) -> np.ndarray:
        return np.maximum(np.linalg.norm(self.jacobian, 2, axis=(-2, -1)), 1.0)

    @property
    def stretch_back(self) -> np.ndarray:
        return np.maximum(np.linalg.norm(inverse(self.jacobian), 2, axis=(-2, -1)), 1.0)

    @property
    def log_det_slope(self) -> np.ndarray:
        return np.abs(self.log_det_gradient).sum(-1)

    @property
    def of_events(self) -> np.ndarray:
        """By how much the way back may miss: what is wrong in `y`, passed back through the inverse."""
        size = 5.0 + np.abs(self.there.x).max(-1) + np.abs(self.there.y).max(-1)
        error = OPERATIONS * np.finfo(self.dtype).eps * size * self.stretch_back
        return error * np.exp(np.minimum(self.log_det_slope * error, 100.0))  # over that way the stretch may change

    @property
    def of_log_det(self) -> np.ndarray:
        own = OPERATIONS * np.finfo(self.dtype).eps * (self.there.x.shape[-1] + np.abs(self.there.log_det))
        return own + self.log_det_slope * self.of_events


def rounding(name: str, direction: str, dtype: np.dtype, x_sizes=MODERATE) -> Rounding:
    there, back = there_and_back(name, direction, DOUBLE, x_sizes)
    if direction == quick_direction(name):
        return Rounding(there, there.jacobian, there.log_det_gradient, dtype)
    jacobian = inverse(back.jacobian)
    return Rounding(there, jacobian, -np.einsum("ni,nij->nj", back.log_det_gradient, jacobian), dtype)


@over(PRECISIONS)
@over_directions
def test_round_trip(name, direction, dtype):
    there, back = there_and_back(name, direction, dtype)
    miss = np.abs(back.y - there.x).max(-1)
    tolerance = rounding(name, direction, dtype).of_events
    assert (miss <= tolerance).all()
    assert np.median(tolerance) < 1e4 * np.finfo(dtype).eps  # the law says something
    numerical = name.startswith(NUMERICAL)
    promised = {SINGLE: 1e-5 if numerical else 1e-4, DOUBLE: 1e-8 if numerical else 1e-9}[dtype]
    assert np.median(miss) <= promised


@over(PRECISIONS)
@over_directions
def test_round_trip_out_to_a_thousand(name, direction, dtype):
    there, back = there_and_back(name, direction, dtype, EXTREME)
    allowed = rounding(name, direction, dtype, EXTREME)
    tolerance = allowed.of_events * allowed.stretch  # values on the way may be larger than both ends
    assert (np.abs(back.y - there.x).max(-1) <= tolerance).all()


@over(PRECISIONS)
@over_directions
def test_log_det_is_that_of_the_jacobian(name, direction, dtype):
    there, back = there_and_back(name, direction, dtype)
    exact = rounding(name, direction, dtype)
    expected = np.linalg.slogdet(exact.jacobian)[1]
    assert (np.abs(there.log_det - expected) <= exact.of_log_det).all()
    assert (np.abs(back.log_det + expected) <= exact.of_log_det).all()
    is_rigid = name.startswith(("permutation", "dct", "householder", "cayley"))
    assert is_rigid or np.abs(expected).max() > 1e-3  # a wrong log-det of 0 would be seen


@over(GRADIENTS)
@over_directions
def test_gradients_are_finite_out_to_a_thousand(name, direction, dtype):
    there, _ = there_and_back(name, direction, dtype, EXTREME, EXTREME)
    assert np.isfinite(flat((there.loss, there.gradients))).all()


@over_double_gradients
@over_directions
def test_gradients_are_finite_differences(name, direction):
    bijection = trained(name)
    gradients = there_and_back(name, direction, DOUBLE)[0].gradients
    args = (bijection, *events(bijection))
    for i in range(3):  # along the parameters, the events, the conditions
        floats, rest = eqx.partition(args[i], eqx.is_inexact_array_like)
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, floats))
        rng = np.random.default_rng(i)
        way = [1e-6 * rng.normal(size=leaf.shape) for leaf in leaves]
        ends = []
        for sign in (1, -1):
            moved = jax.tree.unflatten(structure, [leaf + sign * step for leaf, step in zip(leaves, way)])
            ends.append((*args[:i], eqx.combine(moved, rest), *args[i + 1 :]))
        up, down = (evaluate(name, b, direction, DOUBLE, x, condition).loss for b, x, condition in ends)
        gradient, flat_way = flat(gradients[i]), flat(way)
        tolerance = 1e-7 * np.linalg.norm(flat_way) * (1.0 + np.linalg.norm(gradient))
        assert abs((up - down) / 2 - gradient @ flat_way) <= tolerance


@pytest.mark.parametrize("name", [*LAYERS, *FLOWS])
def test_starts_as_the_identity(name):
    bijection = start(name)
    x, condition = events(bijection)
    for direction in DIRECTIONS:
        there = evaluate(name, bijection, direction, DOUBLE, x, condition)
        if name.startswith(NEARLY):
            assert np.abs(there.y - there.x).max() < 0.5 * np.abs(there.x).max()
            assert np.abs(np.corrcoef(there.y.ravel(), there.x.ravel())[0, 1]) > 0.98
        else:
            np.testing.assert_allclose(there.y, there.x, rtol=0, atol=1e-12)
            np.testing.assert_allclose(there.log_det, 0.0, rtol=0, atol=1e-12)


@over_double_gradients
@over_directions
def test_one_event_eagerly_is_as_compiled_in_a_batch(name, direction, x64):
    there = there_and_back(name, direction, DOUBLE)[0]
    allowed = rounding(name, direction, DOUBLE)
    bijection = trained(name)
    x, condition = events(bijection)
    y, log_det = getattr(bijection, direction)(x[7], None if condition is None else condition[7])
    assert np.abs(np.ravel(y) - there.y[7]).max() <= (allowed.of_events * allowed.stretch)[7]
    assert np.abs(log_det - there.log_det[7]) <= allowed.of_log_det[7]


@eqx.filter_jit
def scores(bijection, x, condition):
    return jax.vmap(lambda x, condition: transform_with_score(bijection, x, -x, condition))(x, condition)


@over_double_gradients
def test_score_solves_its_equation(name, x64):
    there = there_and_back(name, DIRECTIONS[0], DOUBLE)[0]
    allowed = rounding(name, DIRECTIONS[0], DOUBLE)
    bijection = trained(name)
    x, condition = events(bijection)
    y, log_det, score = (np.asarray(a).reshape(NUM_EVENTS, -1) for a in scores(bijection, x, condition))
    right = -there.x - allowed.log_det_gradient
    expected = np.linalg.solve(np.swapaxes(allowed.jacobian, -1, -2), right[..., None])[..., 0]
    slope = allowed.stretch * (1.0 + np.abs(right).max(-1)) * (1.0 + allowed.log_det_slope)  # of the right side too
    tolerance = OPERATIONS * np.finfo(DOUBLE).eps * slope * allowed.stretch_back**2
    assert (np.abs(score - expected).max(-1) <= tolerance).all()
    assert (np.abs(y - there.y).max(-1) <= allowed.of_events * allowed.stretch).all()
    assert (np.abs(log_det[:, 0] - there.log_det) <= allowed.of_log_det).all()


@pytest.mark.parametrize("name", [n for n in CASES if n not in FLOWS])
def test_score_is_the_gradient_of_the_log_density(name, x64):
    bijection = trained(name)
    x, condition = (None if a is None else jnp.asarray(a) for a in events(bijection))

    def log_density(y, condition):
        x, log_det = bijection.inverse_and_log_det(y, condition)
        return -0.5 * jnp.sum(x**2) + log_det

    @jax.jit
    @jax.vmap
    def both(x, condition):
        y, _, own = transform_with_score(bijection, x, -x, condition)
        # two inversions are no change, but have no score of their own: the general way
        _, _, general = transform_with_score(Invert(Invert(bijection)), x, -x, condition)
        return own, general, jax.grad(log_density)(y, condition)

    own, general, expected = both(x, condition)
    np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(general, expected, rtol=1e-12, atol=1e-12)
