"""Continuous flows to a file and back, with whatever solver, controller, adjoint and estimator they have."""

from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows import FlowDistribution, flows
from numpyro_flows.continuous import (
    ContinuousFlow,
    Energies,
    Hutchinson,
    HutchPlusPlus,
    OTFlowField,
    Training,
    adaptive,
)
from numpyro_flows.files.tree import load_tree, save_tree
from tests.bijections.common import drawn, made
from tests.continuous.common import COARSE, FIELDS, KEY, X, trained_field

CASES = {
    "default": {"field": FIELDS["mlp"]},
    "other solver, controller and adjoint": {
        "field": FIELDS["potential"],
        "solver": diffrax.Dopri5(),
        "stepsize_controller": diffrax.PIDController(rtol=1e-4, atol=1e-5, pcoeff=0.3, icoeff=0.4),
        "adjoint": diffrax.BacksolveAdjoint(solver=diffrax.Bosh3(), stepsize_controller=adaptive(1e-3)),
        "interval": (0.0, 1.5),
    },
    "estimates and training": {
        "field": OTFlowField,
        "divergence": HutchPlusPlus(KEY),
        "training": Training(
            num_steps=3, solver=diffrax.Heun(), divergence=Hutchinson(KEY, num_probes=2), penalties=Energies(0.1, 0.2)
        ),
    },
    "implicit solver": {
        "field": FIELDS["mlp"],
        "solver": diffrax.Kvaerno3(root_finder=diffrax.VeryChord(rtol=1e-5, atol=1e-5)),
    },
}


@pytest.mark.parametrize("name", CASES)
def test_file(name, tmp_path):
    """The same structure, which holds all settings, and the same arrays."""
    flow: Any = drawn(lambda: flows.ffjord(KEY, 3, **CASES[name]), 0.3)
    save_tree(tmp_path / "flow", "flow", flow)
    again = load_tree(tmp_path / "flow", "flow", Any)
    assert jax.tree.structure(again) == jax.tree.structure(flow)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(flow)):
        np.testing.assert_array_equal(a, b)
    assert again.training.penalties == flow.training.penalties


@eqx.filter_jit
def log_prob(flow, y):
    return flow.log_prob(y)


@pytest.mark.slow
def test_a_flow_of_a_file_has_the_same_density(tmp_path):
    steps: Any = np.int32(8)  # of a type as fixed as in a file, so that both flows share what they compile
    flow = FlowDistribution(ContinuousFlow(trained_field(), **COARSE | {"num_steps": steps}))
    flow.save(tmp_path / "flow")
    y = jnp.asarray(X, "float32")
    np.testing.assert_array_equal(log_prob(FlowDistribution.load(tmp_path / "flow"), y), log_prob(flow, y))


@pytest.mark.parametrize(
    "key_style", [pytest.param(jax.random.PRNGKey, marks=pytest.mark.slow), jax.random.key], ids=["raw", "typed"]
)
def test_a_matrix_exponential(key_style, tmp_path):
    make = partial(flows.matrix_exponential, dim=3, num_layers=2, cond_dim=1, gate="tanh")
    flow = made(lambda: make(key_style(0)), scale=0.05)
    FlowDistribution(flow, condition=jnp.ones(1)).save(tmp_path / "flow")
    again: Any = FlowDistribution.load(tmp_path / "flow")
    y = jnp.asarray(X, "float32")
    expected = log_prob(FlowDistribution(flow, condition=jnp.ones(1)), y)
    np.testing.assert_array_equal(log_prob(again, y), expected)
