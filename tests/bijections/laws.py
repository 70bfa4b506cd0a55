"""One compiled function a case, which computes all that the laws speak of, and the errors that rounding allows.

Compiling is nearly all the work of these tests. So a function has both directions of a bijection, one pass of reverse
mode that gives the Jacobian, the gradient of the log-determinant and those along parameters and conditions, and the
score; every law reads from it.
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
    def weights(self) -> np.ndarray:
        """The loss is the sum of all values and log-determinants with these weights."""
        return np.append(np.cos(np.arange(self.y.shape[-1])), 1.0)

    @property
    def loss(self) -> float:
        return float((np.column_stack([self.y, self.log_det]) @ self.weights).sum())


@eqx.filter_jit
def compiled(params, static, starts, condition, differentiated: tuple[str, ...], with_score: bool):
    """Both directions, each from its own starts; and the score of a standard normal under the first."""

    def outputs(direction):
        def one(params, x, condition):
            y, log_det = getattr(eqx.combine(params, static), direction)(x.reshape(static.shape), condition)
            return jnp.append(y.ravel(), log_det)

        return jax.vmap(one, in_axes=(None, 0, 0))

    passes = []
    for direction, x in zip(DIRECTIONS, starts):
        if direction in differentiated:
            values, pull = jax.vjp(outputs(direction), params, x, condition)
            num, size = values.shape
            one_output = jnp.eye(size, dtype=x.dtype)[:, None, :]
            passes.append((values, jax.vmap(pull)(jnp.broadcast_to(one_output, (size, num, size)))))
        else:
            passes.append((outputs(direction)(params, x, condition), None))

    def score(x, condition):
        x = x.reshape(static.shape)
        return transform_with_score(eqx.combine(params, static), x, -x, condition)

    return passes, jax.vmap(score)(starts[0], condition) if with_score else None


def as_pass(x, values, slopes) -> Pass:
    """What a compiled function gave of one direction, taken apart."""
    y, log_det = values[:, :-1], values[:, -1]
    if slopes is None:
        return Pass(x, y, log_det)
    along_params, along_x, along_condition = slopes
    one = Pass(x, y, log_det, np.swapaxes(along_x[:-1], 0, 1), along_x[-1])
    of_loss = jax.tree.map(lambda slope: np.tensordot(one.weights, slope, 1), (along_params, along_x, along_condition))
    return one._replace(gradients=of_loss)


class Case:
    """A bijection of the table in one precision, and which of its directions are differentiated."""

    def __init__(self, name: str, dtype: np.dtype, *, every_gradient: bool, with_score: bool):
        self.name, self.dtype, self.with_score = name, dtype, with_score
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

    def evaluate(self, bijection, to_transform, to_invert, condition) -> tuple[Pass, Pass, tuple | None]:
        """The transformed and the inverted, and `(y, log_det, score)`; in double precision as returned."""
        bijection, condition = self._cast((bijection, condition))
        starts = self._cast((to_transform, to_invert))
        params, static = eqx.partition(bijection, eqx.is_inexact_array_like)
        found = compiled(params, static, starts, condition, self.differentiated, self.with_score)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {self.dtype}
        passes, score = jax.tree.map(lambda leaf: np.asarray(leaf, DOUBLE), found)
        transformed, inverted = (as_pass(np.asarray(x, DOUBLE), *p) for x, p in zip(starts, passes))
        return transformed, inverted, score

    def ways(self):
        """`(direction, there, back, rounding)` from the events through each direction and back, trained."""
        out, home, _ = self.evaluate(self.trained, self.x, self.x, self.condition)
        back_out, back_home, _ = self.evaluate(self.trained, home.y, out.y, self.condition)
        # the way that starts with the transform goes back by the inverse
        for direction, there, back in ((DIRECTIONS[0], out, back_home), (DIRECTIONS[1], home, back_out)):
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
