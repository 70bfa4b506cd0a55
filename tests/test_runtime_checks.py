"""A runtime check of a model that fires at one point makes that point's density NaN, and no other's."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed, substitute
from numpyro.infer.util import log_density

from numpyro_flows.diagnostics.timed_nuts import run_nuts
from numpyro_flows.inference.certificate import certify
from numpyro_flows.inference.target import Target
from numpyro_flows.modeling.model_run import model_run

POINTS = np.array([[0.5], [5.0], [-1.0]], np.float32)


@eqx.filter_jit  # as solvers are: what JAX keeps of it for the user must stay apart
def checked(x):
    return eqx.error_if(x, x > 3, "too far out")


def model():
    x = numpyro.sample("x", dist.Normal(0, 1))

    def step(x, _):
        return checked(x), None

    numpyro.deterministic("checked", jax.lax.scan(step, x, None, length=2)[0])
    numpyro.factor("twice", dist.Normal(0, 1).log_prob(checked(x)) + 0.0 * jax.lax.scan(step, x, None, length=2)[0])


@pytest.fixture(scope="module")
def target():
    return Target(model, jax.random.key(0))


def test_density_and_gradient(target):
    @jax.jit
    def evaluate(points):
        value, gradient = jax.vmap(jax.value_and_grad(target.log_density))(points)
        _, slope = jax.jvp(target.log_density, (points[0],), (jnp.ones(1),))
        return value, gradient, jax.lax.map(target.log_density, points), slope

    value, gradient, mapped, slope = evaluate(POINTS)
    expected = -(POINTS[:, 0] ** 2) - np.log(2 * np.pi)
    expected[1] = np.nan
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[::2], -2 * POINTS[::2], rtol=1e-5)
    np.testing.assert_allclose(mapped, value, rtol=1e-6)
    np.testing.assert_allclose(slope, -1.0, rtol=1e-5)


def test_sites(target):
    sites = jax.jit(jax.vmap(target.constrain))(POINTS)
    np.testing.assert_array_equal(sites["checked"], [POINTS[0, 0], np.nan, POINTS[2, 0]])
    np.testing.assert_array_equal(sites["x"], POINTS[:, 0])


def test_the_users_own_calls_still_raise(target):
    """Also after a fit has traced the same functions, and before it."""
    jax.vmap(target.log_density)(POINTS)
    with pytest.raises(RuntimeError, match="too far out"):
        checked(jnp.array(5.0))
    with pytest.raises(RuntimeError, match="too far out"):
        log_density(substitute(seed(model, 0), data={"x": jnp.array(5.0)}), (), {}, {})
    again = Target(model, jax.random.key(0))
    assert np.isnan(again.log_density(POINTS[1]))


def test_a_run_within_a_run_ends_well():
    with model_run(), model_run():
        pass
    with pytest.raises(RuntimeError, match="too far out"):
        checked(jnp.array(5.0))


def test_many_such_points_are_counted_and_named(target):
    """A normal of sd 3 has 16% of its draws beyond 3; as few as a thousandth count as points of density zero."""
    x = 3.0 * np.random.default_rng(0).standard_normal((2000, 1))
    log_weights = np.asarray(jax.jit(jax.vmap(target.log_density))(np.float32(x)), np.float64)
    num = int((x > 3).sum())
    assert f"{num} of 2000 log weights are NaN" in certify(log_weights).why
    assert "runtime check of the model fires" in certify(log_weights).why
    few = np.where(np.isnan(log_weights), -np.inf, log_weights)
    few[:2] = np.nan
    assert "NaN" not in certify(few).why


@pytest.mark.slow
def test_nuts_goes_on():
    """A normal cut at 3: steps beyond it are rejected."""

    def cut():
        x = numpyro.sample("x", dist.Normal(2.5, 1))
        numpyro.factor("check", 0.0 * checked(x))

    run = run_nuts(cut, (), {}, jax.random.key(0), num_warmup=50, num_samples=100, num_chains=1, progress_bar=False)
    assert run.latents["x"].max() < 3
    assert run.stats["diverging"].any()
