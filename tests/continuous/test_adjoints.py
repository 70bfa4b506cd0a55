"""Gradients are finite differences: along parameters, events and conditions, for every adjoint."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from numpyro_flows.continuous import ContinuousFlow, adaptive
from tests.continuous.common import COARSE, COND_DIM, CONDITION, X, trained_field

TOLERANCE, STEP = 1e-9, 1e-3
FEW = COARSE | {"max_steps": 16}
# every adjoint once, and either direction, which is a matter of signs, by two of them
CASES = {
    "recursive checkpoints": (diffrax.RecursiveCheckpointAdjoint(), {}, "inverse_and_log_det"),
    "backsolve": (diffrax.BacksolveAdjoint(), {}, "inverse_and_log_det"),
    "direct": (diffrax.DirectAdjoint(), FEW, "transform_and_log_det"),
    "forward mode": (diffrax.ForwardMode(), FEW, "transform_and_log_det"),
}


def ways(args):
    """A direction along each of the three, the others held."""
    rng = np.random.default_rng(0)
    for arg in args:
        size = sum(leaf.size for leaf in jax.tree.leaves(arg))
        yield tuple(
            jax.tree.map(lambda leaf: (other is arg) * rng.normal(size=leaf.shape) / np.sqrt(size), other)  # noqa: B023
            for other in args
        )


QUICK = ("forward mode",)  # the others take long to compile


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in CASES])
def test_gradients(name, x64):
    adjoint, options, direction = CASES[name]
    field = trained_field("mlp with time beside", cond_dim=COND_DIM)
    options: dict[str, Any] = options or {"stepsize_controller": adaptive(TOLERANCE), "max_steps": 256}
    flow = ContinuousFlow(field, adjoint=adjoint, **options)
    params, static = eqx.partition(flow, eqx.is_inexact_array)
    args = params, jnp.asarray(X), jnp.asarray(CONDITION)

    def loss(args):
        params, x, condition = args
        end, log_det = getattr(eqx.combine(params, static), direction)(x, condition)
        return (end * jnp.array([1.0, -2.0, 0.5])).sum() + log_det

    @eqx.filter_jit
    def value_and_slope(step, way):
        moved = jax.tree.map(lambda a, w: a + step * w, args, way)
        if name == "forward mode":
            return jax.jvp(loss, (moved,), (way,))
        value, gradient = jax.value_and_grad(loss)(moved)
        return value, ravel_pytree(gradient)[0] @ ravel_pytree(way)[0]

    for way in ways(args):
        (ahead, _), (_, slope), (behind, _) = (value_and_slope(jnp.asarray(s), way) for s in (STEP, 0.0, -STEP))
        expected = (ahead - behind) / (2 * STEP)
        # of differences: the solver's error over the step, and the square of the step
        np.testing.assert_allclose(slope, expected, rtol=0, atol=10 * (TOLERANCE / STEP + STEP**2))
        assert abs(expected) > 1000 * STEP**2
