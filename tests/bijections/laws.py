"""What a case computes for all the laws, and the errors that rounding allows.

Compiling is nearly all the work of these tests. So one function has all that the laws need of a direction: its values
and one pass of reverse mode, which gives the Jacobian, the gradient of the log-determinant and those along parameters
and conditions. It is differentiated in one direction, or both.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_flows.bijections import transform_with_score
from tests.bijections.cases import CASES, quick_direction
from tests.bijections.common import made

NUM_EVENTS = 16  # of each size
OPERATIONS = 32  # how many rounding errors add up in one pass
MODERATE, EXTREME, EXTREME_CONDITION = (slice(i * NUM_EVENTS, (i + 1) * NUM_EVENTS) for i in range(3))
DIRECTIONS = ("transform_and_log_det", "inverse_and_log_det")
SINGLE, DOUBLE = np.dtype("float32"), np.dtype("float64")


class Pass(NamedTuple):
    """One direction for a batch of events, flattened; the derivatives only where the direction is differentiated."""

    x: np.ndarray
    y: np.ndarray
    log_det: np.ndarray
    jacobian: Any = None  # or an array, as the next one
    log_det_gradient: Any = None
    gradients: Any = None  # or a tuple: of the loss, along parameters, events and conditions

    @property
    def loss(self) -> float:
        outputs = np.column_stack([self.y, self.log_det])
        return float((outputs @ weights(outputs.shape[-1])).sum())


@eqx.filter_jit
def compiled(direction: str, differentiated: bool, params, static, x, condition):
    """Values and log-determinants as one array; and, where the direction is differentiated, the slopes of each."""

    def one(params, x, condition):
        y, log_det = getattr(eqx.combine(params, static), direction)(x.reshape(static.shape), condition)
        return jnp.append(y.ravel(), log_det)

    outputs = jax.vmap(one, in_axes=(None, 0, 0))
    if not differentiated:
        return outputs(params, x, condition), None
    # one pass backwards over as many copies of the events as there are outputs, of which each asks for another
    num, size = len(x), x.shape[-1] + 1
    x, condition = jax.tree.map(lambda events: jnp.tile(events, (size, 1)), (x, condition))
    values, pull = jax.vjp(outputs, params, x, condition)
    along_params, *slopes = pull(jnp.repeat(jnp.diag(weights(size)).astype(x.dtype), num, axis=0))
    return values[:num], (along_params, *jax.tree.map(lambda slope: slope.reshape(size, num, -1), slopes))


def weights(size: int) -> np.ndarray:
    """The loss is the sum of all values and log-determinants with these weights."""
    return 1.0 + 0.5 * np.cos(np.arange(size))


@eqx.filter_jit
def compiled_score(params, static, x, condition):
    """`(y, log_det, score)` of a standard normal."""

    def score(x, condition):
        x = x.reshape(static.shape)
        return transform_with_score(eqx.combine(params, static), x, -x, condition)

    return jax.vmap(score)(x, condition)


def as_pass(x, values, slopes) -> Pass:
    """What a compiled function gave of one direction, taken apart."""
    y, log_det = values[:, :-1], values[:, -1]
    if slopes is None:
        return Pass(x, y, log_det)
    along_params, along_x, along_condition = slopes
    of_loss = (along_params, along_x.sum(0), None if along_condition is None else along_condition.sum(0))
    along_x = np.swapaxes(along_x / weights(len(along_x))[:, None, None], 0, 1)
    return Pass(x, y, log_det, along_x[:, :-1], along_x[:, -1], of_loss)


class Case:
    """A bijection of the table in one precision, and which of its directions are differentiated."""

    def __init__(self, name: str, dtype: np.dtype, *, every_gradient: bool):
        self.name, self.dtype = name, dtype
        self.differentiated = DIRECTIONS if every_gradient else (quick_direction(name),)
        self.start = self._cast(made(CASES[name]))
        self.trained = self._moved(self.start, 0.05)
        self.condition = None
        rng, shape = np.random.default_rng(0), self.start.shape
        num, dim = 3 * NUM_EVENTS, int(np.prod(shape))
        sizes = np.ones((num, dim))
        sizes[EXTREME.start :] = rng.choice([1e-3, 1.0, 1e3], size=(num - NUM_EVENTS, dim))
        self.x = 2 * rng.normal(size=(num, dim)) * sizes
        if self.start.cond_shape is not None:
            sizes = np.ones((num, *self.start.cond_shape))
            sizes[EXTREME_CONDITION] = rng.choice([1e-3, 1.0, 1e3], size=sizes[EXTREME_CONDITION].shape)
            self.condition = rng.normal(size=sizes.shape) * sizes

    def _cast(self, tree):
        """All numbers of the tree in the precision of the case."""
        kinds = {"f": self.dtype, "i": np.dtype(f"int{8 * self.dtype.itemsize}")}
        return jax.tree.map(
            lambda leaf: np.asarray(leaf, kinds.get(leaf.dtype.kind, leaf.dtype)) if eqx.is_array_like(leaf) else leaf,
            tree,
        )

    def _moved(self, bijection, scale: float):
        """With noise on every parameter: at the start all log-dets are 0, and a test of them would be vacuous."""
        rng = np.random.default_rng(0)
        return jax.tree.map(
            lambda leaf: self._cast(leaf + scale * rng.normal(size=leaf.shape)) if _is_parameter(leaf) else leaf,
            bijection,
        )

    def evaluate(self, direction: str, bijection, x, condition) -> Pass:
        """The values of one direction, and its slopes where it is differentiated; in double precision as returned."""
        x = self._cast(x)
        values, slopes = self._run(compiled, direction, direction in self.differentiated, bijection, x, condition)
        return as_pass(np.asarray(x, DOUBLE), values, slopes)

    def score(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(y, log_det, score)` at the events, trained."""
        return self._run(compiled_score, self.trained, self.x, self.condition)

    def _run(self, function, *args):
        *first, bijection, x, condition = args
        bijection, x, condition = self._cast((bijection, x, condition))
        found = function(*first, *eqx.partition(bijection, eqx.is_inexact_array_like), x, condition)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {self.dtype}
        return jax.tree.map(lambda leaf: np.asarray(leaf, DOUBLE), found)

    def ways(self):
        """`(direction, there, back, rounding)` from the events through each direction and back, trained."""
        for direction, opposite in (DIRECTIONS, DIRECTIONS[::-1]):
            there = self.evaluate(direction, self.trained, self.x, self.condition)
            back = self.evaluate(opposite, self.trained, there.y, self.condition)
            if there.jacobian is not None:
                exact = Rounding(there, there.jacobian, there.log_det_gradient, self.dtype)
            else:
                jacobian = inverse(back.jacobian)
                slope = -np.einsum("ni,nij->nj", back.log_det_gradient, jacobian)
                exact = Rounding(there, jacobian, slope, self.dtype)
            yield direction, there, back, exact


def _is_parameter(leaf) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"


def flat(tree) -> np.ndarray:
    """All numbers of a tree in one vector."""
    return np.concatenate([np.zeros(0), *(np.ravel(leaf) for leaf in jax.tree.leaves(tree))])


def inverse(matrices: np.ndarray) -> np.ndarray:
    """Of Jacobians, which far out may be singular to rounding: then it is huge, and so are the errors it allows."""
    left, sizes, right = np.linalg.svd(matrices)
    return np.swapaxes(left / np.maximum(sizes, 1e-100)[:, None, :] @ right, -1, -2)


class Rounding(NamedTuple):
    """What rounding may do to a pass, as the Jacobian says; one number for each event."""

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
    def of_values(self) -> np.ndarray:
        """Values on the way may be larger than both ends."""
        return self.of_events * self.stretch

    @property
    def of_log_det(self) -> np.ndarray:
        """Of the log-determinant, and of that of the Jacobian, which is computed in the same precision."""
        dim = self.there.x.shape[-1]
        own = OPERATIONS * np.finfo(self.dtype).eps * (dim + np.abs(self.there.log_det))
        of_jacobian = dim * np.finfo(self.dtype).eps * self.stretch * self.stretch_back
        return own + of_jacobian + self.log_det_slope * self.of_events


class Broken:
    """The laws that a case breaks, all of them: a test fails once, at its end."""

    def __init__(self, case: str):
        self.case, self.laws = case, []

    def unless(self, law: str, got, expected, tolerance) -> None:
        """`got` is within the tolerance of `expected`; the event that is furthest off is named."""
        got, expected, tolerance = np.broadcast_arrays(*(np.asarray(a, float) for a in (got, expected, tolerance)))
        wrong = ~(np.abs(got - expected) <= tolerance)
        if wrong.any():
            worst = np.unravel_index(np.argmax(np.where(wrong, np.abs(got - expected) / tolerance, -1)), wrong.shape)
            self.laws.append(
                f"{law}: got {got[worst]:.17g}, expected {expected[worst]:.17g} to {tolerance[worst]:.2g}, "
                f"at {tuple(map(int, worst))} and {wrong.sum()} of {wrong.size} in all"
            )

    def unless_true(self, law: str, holds) -> None:
        if not np.all(holds):
            self.laws.append(law)

    def report(self) -> None:
        assert not self.laws, "\n".join([f"{self.case} breaks {len(self.laws)} laws", *self.laws])
