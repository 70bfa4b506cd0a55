"""The laws that every bijection keeps, tried on every case of the table, in both directions and both precisions.

Tolerances are rounding errors, not wishes: `eps` times the largest number that occurs, times what the Jacobian (found
by automatic differentiation) makes of an error.
"""

from functools import cache, partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from numpyro_flows.bijections import AbstractBijection, Invert, transform_with_score
from tests.bijections.cases import CASES, FLOWS, perturbed

NUM_EVENTS = 16
OPERATIONS = 32  # how many rounding errors add up in one pass
MODERATE, EXTREME = (1.0,), (1e-3, 1.0, 1e3)

# compiling is nearly all the work here, and nothing runs long enough to be worth optimising
quick_to_compile = partial(
    eqx.filter_jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)

# all tests of a case run on one worker, so that each function is compiled once
over_cases = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in CASES])
over_directions = pytest.mark.parametrize("direction", ["forward", "inverse"])


def make(name: str, direction: str = "forward") -> AbstractBijection:
    bijection = perturbed(CASES[name]())
    return bijection if direction == "forward" else Invert(bijection)


def events(bijection: AbstractBijection, x_sizes=MODERATE, condition_sizes=MODERATE):
    """A batch of events and one of conditions, each value of a size drawn from those given."""
    rng = np.random.default_rng(0)

    def draw(shape, sizes):
        return jnp.asarray(2 * rng.normal(size=(NUM_EVENTS, *shape)) * rng.choice(sizes, size=(NUM_EVENTS, *shape)))

    x = draw(bijection.shape, x_sizes)
    return x, None if bijection.cond_shape is None else draw(bijection.cond_shape, condition_sizes) / 2


class Values(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    log_det: np.ndarray
    x_back: np.ndarray
    log_det_back: np.ndarray
    jacobian: np.ndarray
    log_det_gradient: np.ndarray

    @property
    def stretch(self) -> np.ndarray:
        return np.maximum(np.linalg.norm(self.jacobian, 2, axis=(-2, -1)), 1.0)

    @property
    def stretch_back(self) -> np.ndarray:
        return np.maximum(np.linalg.norm(np.linalg.inv(self.jacobian), 2, axis=(-2, -1)), 1.0)

    @property
    def log_det_slope(self) -> np.ndarray:
        return np.abs(self.log_det_gradient).sum(-1)

    def rounding(self, dtype: np.dtype) -> np.ndarray:
        """By how much `x_back` may miss `x`: what is wrong in `y`, passed back through the inverse."""
        size = 5.0 + np.abs(self.x).max(-1) + np.abs(self.y).max(-1)
        error = OPERATIONS * np.finfo(dtype).eps * size * self.stretch_back
        return error * np.exp(np.minimum(self.log_det_slope * error, 100.0))  # over that way the stretch may change

    def log_det_rounding(self, dtype: np.dtype) -> np.ndarray:
        own = OPERATIONS * np.finfo(dtype).eps * (1.0 + np.abs(self.log_det))
        return own + self.log_det_slope * self.rounding(dtype)


@quick_to_compile
def _values(bijection, x, condition):
    def one(x, condition):
        def forward(x):
            y, log_det = bijection.transform_and_log_det(x, condition)
            return (y, log_det), (y, log_det)

        (jacobian, log_det_gradient), (y, log_det) = jax.jacfwd(forward, has_aux=True)(x)
        x_back, log_det_back = bijection.inverse_and_log_det(y, condition)
        flat = jacobian.reshape(x.size, x.size), log_det_gradient.ravel()
        return Values(x.ravel(), y.ravel(), log_det, x_back.ravel(), log_det_back, *flat)

    return jax.vmap(one)(x, condition)


@cache
def values(name: str, direction: str, dtype: np.dtype, x_sizes=MODERATE) -> Values:
    bijection = make(name, direction)
    results = _values(bijection, *events(bijection, x_sizes))
    assert all(v.dtype == dtype for v in results)
    return Values(*(np.asarray(v, dtype="float64") for v in results))


@over_cases
@over_directions
def test_round_trip(name, direction, dtype):
    v = values(name, direction, dtype)
    tolerance = v.rounding(dtype)
    assert (np.abs(v.x_back - v.x).max(-1) <= tolerance).all()
    assert np.median(tolerance) < 1e4 * np.finfo(dtype).eps  # the law says something


@over_cases
@over_directions
def test_round_trip_out_to_a_thousand(name, direction, dtype):
    v = values(name, direction, dtype, EXTREME)
    tolerance = v.rounding(dtype) * v.stretch  # values on the way may be larger than both ends
    assert (np.abs(v.x_back - v.x).max(-1) <= tolerance).all()


@over_cases
@over_directions
def test_log_det_is_that_of_the_jacobian(name, direction, dtype):
    v = values(name, direction, dtype)
    expected = np.linalg.slogdet(v.jacobian)[1]
    assert (np.abs(v.log_det - expected) <= v.log_det_rounding(dtype)).all()


@over_cases
@over_directions
def test_log_dets_of_both_directions_cancel(name, direction, dtype):
    v = values(name, direction, dtype)
    assert (np.abs(v.log_det + v.log_det_back) <= v.log_det_rounding(dtype)).all()


@over_cases
@over_directions
def test_one_event_eagerly_is_as_compiled_in_a_batch(name, direction, x64):
    dtype = np.dtype("float64")
    v = values(name, direction, dtype)
    bijection = make(name, direction)
    x, condition = events(bijection)
    y, log_det = bijection.transform_and_log_det(x[7], None if condition is None else condition[7])
    assert np.abs(np.ravel(y) - v.y[7]).max() <= (v.rounding(dtype) * v.stretch)[7]
    assert np.abs(log_det - v.log_det[7]) <= v.log_det_rounding(dtype)[7]


@quick_to_compile
def loss_and_gradients(args, static):
    """A number made of all outputs, and its gradients; `args`: parameters, a batch of events, one of conditions."""

    def loss(args):
        params, x, condition = args
        y, log_det = jax.vmap(eqx.combine(params, static).transform_and_log_det)(x, condition)
        return (jnp.cos(jnp.arange(y.size, dtype=y.dtype)) * y.ravel()).sum() + log_det.sum()

    return jax.value_and_grad(loss)(args)


@over_cases
@over_directions
def test_gradients_are_finite(name, direction, dtype):
    bijection = make(name, direction)
    params, static = eqx.partition(bijection, eqx.is_inexact_array)
    for sizes in (MODERATE, EXTREME):
        results = loss_and_gradients((params, *events(bijection, sizes, sizes)), static)
        assert np.isfinite(ravel_pytree(results)[0]).all()


@over_cases
@over_directions
def test_gradients_are_finite_differences(name, direction, x64):
    bijection = make(name, direction)
    params, static = eqx.partition(bijection, eqx.is_inexact_array)
    args = (params, *events(bijection))
    gradients = loss_and_gradients(args, static)[1]
    for i in range(3):  # along the parameters, the events, the conditions
        gradient = ravel_pytree(gradients[i])[0]
        flat, unravel = ravel_pytree(args[i])
        way = 1e-6 * np.random.default_rng(i).normal(size=flat.shape)
        ends = [(*args[:i], unravel(flat + step), *args[i + 1 :]) for step in (way, -way)]
        up, down = (loss_and_gradients(end, static)[0] for end in ends)
        tolerance = 1e-7 * np.linalg.norm(way) * (1.0 + np.linalg.norm(gradient))
        assert abs((up - down) / 2 - gradient @ way) <= tolerance


@over_cases
def test_score_solves_its_equation(name, dtype):
    bijection = make(name)
    v = values(name, "forward", dtype)
    x, condition = events(bijection)
    scores = jax.jit(jax.vmap(lambda x, condition: transform_with_score(bijection, x, -x, condition)))
    y, log_det, score = (np.float64(a).reshape(NUM_EVENTS, -1) for a in scores(x, condition))
    right = -v.x - v.log_det_gradient
    expected = np.linalg.solve(np.swapaxes(v.jacobian, -1, -2), right[..., None])[..., 0]
    slope = v.stretch * (1.0 + np.abs(right).max(-1)) * (1.0 + v.log_det_slope)  # of the right side too
    tolerance = OPERATIONS * np.finfo(dtype).eps * slope * v.stretch_back**2
    assert (np.abs(score - expected).max(-1) <= tolerance).all()
    assert (np.abs(y - v.y).max(-1) <= v.rounding(dtype) * v.stretch).all()
    assert (np.abs(log_det[:, 0] - v.log_det) <= v.log_det_rounding(dtype)).all()


@pytest.mark.parametrize("name", [n for n in CASES if n not in FLOWS])
def test_score_is_the_gradient_of_the_log_density(name, x64):
    bijection = make(name)
    x, condition = events(bijection)

    def log_density(y, condition):
        x, log_det = bijection.inverse_and_log_det(y, condition)
        return -0.5 * jnp.sum(x**2) + log_det

    @jax.jit
    @jax.vmap
    def scores(x, condition):
        y, _, own = transform_with_score(bijection, x, -x, condition)
        # two inversions are no change, but have no score of their own: the general way
        _, _, general = transform_with_score(Invert(Invert(bijection)), x, -x, condition)
        return own, general, jax.grad(log_density)(y, condition)

    own, general, expected = scores(x, condition)
    np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(general, expected, rtol=1e-12, atol=1e-12)
