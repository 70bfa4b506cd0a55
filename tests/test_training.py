import jax
import jax.numpy as jnp
import numpy as np

from numpyro_flows.training.steps import TrainState, cosine_schedule, train_chunk


def run(loss, params, rates):
    keys = jax.random.split(jax.random.key(0), rates.size)
    return jax.jit(lambda s, k, r: train_chunk(loss, s, k, r))(TrainState.init(params), keys, rates)


def test_finds_a_minimum():
    state, losses, skipped = run(
        lambda p, key: jnp.sum((p["a"] - 3.0) ** 2), {"a": jnp.zeros(2)}, cosine_schedule(500, 0.1)
    )
    np.testing.assert_allclose(state.params["a"], 3.0, atol=1e-3)
    assert losses.shape == (500,)
    assert losses[-1] < 1e-5 < losses[0]
    assert skipped == 0


def test_steps_that_are_not_finite_are_skipped_and_counted():
    """A third of the steps gives NaN, the others still reach the minimum."""

    def loss(p, key):
        broken = jax.random.uniform(key) < 1 / 3
        return jnp.where(broken, jnp.nan, 1.0) * (p - 3.0) ** 2

    keys = jax.random.split(jax.random.key(0), 600)
    expected = int((jax.vmap(jax.random.uniform)(keys) < 1 / 3).sum())
    state, losses, skipped = run(loss, jnp.zeros(()), cosine_schedule(600, 0.1))
    np.testing.assert_allclose(state.params, 3.0, atol=1e-2)
    assert skipped == expected > 150
    assert int(jnp.isnan(losses).sum()) == expected


def test_a_rate_of_zero_changes_nothing():
    state, _, _ = run(lambda p, key: p**2, jnp.ones(()), jnp.zeros(10))
    assert state.params == 1.0


def test_schedule():
    rates = cosine_schedule(1000, 2.0)
    assert rates.argmax() in (99, 100)
    np.testing.assert_allclose(rates.max(), 2.0, rtol=1e-3)
    assert 0 < rates[0] < 0.03
    assert 0 < rates[-1] < 1e-4
    assert np.all(np.diff(rates[101:]) < 0)
