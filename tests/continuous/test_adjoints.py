"""Gradients are finite differences: along parameters, events and conditions, for every adjoint."""

from functools import cache

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from numpyro_flows.continuous import ContinuousFlow, adaptive
from tests.continuous.common import COND_DIM, CONDITION, KEY, X, quick_to_compile, trained_field

TOLERANCE, STEP = 1e-9, 1e-3
REVERSE = {
    "recursive checkpoints": diffrax.RecursiveCheckpointAdjoint(),
    "backsolve": diffrax.BacksolveAdjoint(),
    "direct": diffrax.DirectAdjoint(),
}


def start(adjoint):
    flow = ContinuousFlow(
        trained_field(cond_dim=COND_DIM), adjoint=adjoint, stepsize_controller=adaptive(TOLERANCE), max_steps=256
    )
    params, static = eqx.partition(flow, eqx.is_inexact_array)
    return (params, jnp.asarray(X), jnp.asarray(CONDITION)), static


def loss(args, static, direction):
    params, x, condition = args
    end, log_det = getattr(eqx.combine(params, static), direction)(x, condition)
    return (end * jnp.array([1.0, -2.0, 0.5])).sum() + log_det


def ways(args):
    """A direction along each of the three, the others held."""
    for i, arg in enumerate(args):
        flat, unravel = ravel_pytree(arg)
        way = unravel(jax.random.normal(jax.random.fold_in(KEY, i), flat.shape) / np.sqrt(flat.size))
        yield tuple(way if i == j else jax.tree.map(jnp.zeros_like, other) for j, other in enumerate(args))


def dot(a, b):
    return float(ravel_pytree(a)[0] @ ravel_pytree(b)[0])


def finite_differences(direction):
    args, static = start(diffrax.RecursiveCheckpointAdjoint())
    value = quick_to_compile(loss)

    def moved(way, step):
        return value(jax.tree.map(lambda a, w: a + step * w, args, way), static, direction)

    return [float(moved(way, STEP) - moved(way, -STEP)) / (2 * STEP) for way in ways(args)]


def check(slopes, expected):
    # of differences: the solver's error over the step, and the square of the step
    np.testing.assert_allclose(slopes, expected, rtol=0, atol=10 * (TOLERANCE / STEP + STEP**2))
    assert np.abs(expected).min() > 1000 * STEP**2


@cache
def differences(direction):
    with jax.enable_x64(True):
        return finite_differences(direction)


@pytest.mark.parametrize(
    ("name", "direction"),
    [*((name, "inverse_and_log_det") for name in REVERSE), ("recursive checkpoints", "transform_and_log_det")],
)
def test_reverse_mode(name, direction, x64):
    args, static = start(REVERSE[name])
    gradient = quick_to_compile(jax.grad(loss))(args, static, direction)
    check([dot(gradient, way) for way in ways(args)], differences(direction))


def test_forward_mode(x64):
    args, static = start(diffrax.ForwardMode())

    @quick_to_compile
    def slope(way):
        return jax.jvp(lambda args: loss(args, static, "inverse_and_log_det"), (args,), (way,))[1]

    check([float(slope(way)) for way in ways(args)], differences("inverse_and_log_det"))
