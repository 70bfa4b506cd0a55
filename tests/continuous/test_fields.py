"""Vector fields: where they start, what they see, and that closed forms are what they say."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.continuous import LinearField, MLPField, OTFlowField, PotentialField
from tests.continuous.common import (
    COND_DIM,
    CONDITION,
    DIM,
    FIELDS,
    KEY,
    X,
    linear_field,
    trained_field,
    with_random_parameters,
)

TIMES = (0.0, 0.3, 1.0)


CLOSED_FORMS = {
    "ot-flow": lambda: trained_field("ot-flow"),
    "ot-flow conditional": lambda: trained_field("ot-flow", cond_dim=COND_DIM),
    "linear": lambda: linear_field(np.random.default_rng(0).normal(size=(DIM, DIM)), [1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize(
    ("cond_dim", "precision"), [pytest.param(None, "float64", marks=pytest.mark.slow), (COND_DIM, "float32")]
)
@pytest.mark.parametrize("name", FIELDS)
def test_they_start_at_zero(name, cond_dim, precision):
    with jax.enable_x64(precision == "float64"):

        @eqx.filter_jit
        def values(key, times, x, condition):
            field = FIELDS[name](key, DIM, cond_dim=cond_dim)
            return jax.vmap(lambda t: field(t, x, condition))(times)

        condition = None if cond_dim is None else jnp.asarray(CONDITION)
        found = values(KEY, jnp.asarray(TIMES), jnp.asarray(X), condition)
        assert found.shape == (len(TIMES), DIM)
        assert found.dtype == precision
        # only the quadratic of OT-Flow, which at zero would have no gradient, is not exactly zero
        assert np.abs(found).max() <= (1e-3 if name == "ot-flow" else 0.0)


@pytest.mark.parametrize("name", FIELDS)
def test_they_depend_on_time_place_and_condition(name, x64):
    field = trained_field(name, cond_dim=COND_DIM)
    t, x, condition = jnp.asarray(0.3), jnp.asarray(X), jnp.asarray(CONDITION)
    slopes = eqx.filter_jit(lambda *args: jax.jacfwd(field, argnums=(0, 1, 2))(*args))(t, x, condition)
    for slope in slopes:
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() > 1e-3


@pytest.mark.parametrize(
    "name",
    ["mlp", "ot-flow", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mlp with time beside", "potential"))],
)
def test_all_parameters_learn(name):
    """What is zero at the start holds others back, but after two steps of gradient descent no array is stuck."""

    @eqx.filter_jit
    def gradient_after_two_steps(key, times, x, condition):
        @eqx.filter_grad
        def gradient(field):
            return (jax.vmap(lambda t: field(t, x, condition))(times) * jnp.array([[1.0, -2.0, 0.7]])).sum()

        def step(params, _):
            slopes = gradient(eqx.combine(params, static))
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, slopes), None

        params, static = eqx.partition(FIELDS[name](key, DIM, cond_dim=COND_DIM), eqx.is_inexact_array)
        params, _ = jax.lax.scan(step, params, length=2)
        return gradient(eqx.combine(params, static))

    later = gradient_after_two_steps(KEY, jnp.asarray(TIMES), jnp.asarray(X), jnp.asarray(CONDITION))
    if name == "potential":  # a constant of the potential is no velocity
        later = eqx.tree_at(lambda f: f.network.biases[-1], later, None)
    for leaf in jax.tree.leaves(later):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_divergences_are_traces(name, x64):
    field, x = CLOSED_FORMS[name](), jnp.asarray(X)
    condition = None if field.cond_dim is None else jnp.asarray(CONDITION)

    @eqx.filter_jit
    def compute(t):
        jacobian = jax.jacfwd(lambda x: field(t, x, condition))(x)
        return *field.velocity_and_divergence(t, x, condition), field(t, x, condition), jacobian

    for t in TIMES:
        value, divergence, expected, jacobian = compute(jnp.asarray(t))
        np.testing.assert_allclose(value, expected, rtol=1e-14)
        np.testing.assert_allclose(divergence, np.trace(jacobian), rtol=1e-13, atol=1e-13)
        assert abs(divergence) > 0.01


@eqx.filter_jit
def jacobian_of_field(field, x, condition):
    return jax.jacfwd(lambda x: field(0.3, x, condition))(x)


@pytest.mark.parametrize("cond_dim", [pytest.param(None, marks=pytest.mark.slow), COND_DIM])
@pytest.mark.parametrize("name", ["potential", "ot-flow"])
def test_potential_fields_do_not_rotate(name, cond_dim, x64):
    """Their Jacobian is symmetric, that of a free field is not."""
    condition = None if cond_dim is None else jnp.asarray(CONDITION)

    def asymmetry(field):
        jacobian = jacobian_of_field(field, jnp.asarray(X), condition)
        return np.abs(jacobian - jacobian.T).max() / np.abs(jacobian).max()

    assert asymmetry(trained_field(name, cond_dim=cond_dim)) < 1e-14
    assert asymmetry(trained_field("mlp", cond_dim=cond_dim)) > 0.1


def test_the_quadratic_of_ot_flow_is_a_linear_field(x64):
    """Without its network it is `-A^T A s - b`."""
    field = with_random_parameters(partial(OTFlowField, dim=DIM), scale=0.0)
    quadratic = np.random.default_rng(0).normal(size=field.quadratic.shape)
    linear = np.array([1.0, 2.0, 3.0, 4.0])
    field = eqx.tree_at(lambda f: (f.quadratic, f.linear), field, (jnp.asarray(quadratic), jnp.asarray(linear)))
    expected = -(quadratic.T @ (quadratic @ np.append(X, 0.3)) + linear)[:DIM]
    np.testing.assert_allclose(eqx.filter_jit(field)(0.3, jnp.asarray(X)), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPField(KEY, 0), "dim expected at least 1, got 0"),
        (lambda: PotentialField(KEY, -1), "dim expected at least 1, got -1"),
        (lambda: OTFlowField(KEY, -2), "dim expected at least 1, got -2"),
        (lambda: LinearField(-3), "dim expected at least 1, got -3"),
        (lambda: MLPField(KEY, 2, time="sine"), r"time expected one of \['fourier', 'concatenated'\], got 'sine'"),  # pyright: ignore[reportArgumentType]
        (lambda: PotentialField(KEY, 2, num_frequencies=0), "num_frequencies expected at least 1, got 0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
