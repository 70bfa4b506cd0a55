"""Compiled functions: once for all data of the same shapes, and right for each."""

from concurrent.futures import ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_flows import FlowVI
from numpyro_flows.training.ahead import Ahead

COMPILED = []


def listen(event: str, duration_secs: float, **_: str | int) -> None:
    if "backend_compile" in event:
        COMPILED.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(listen)


def location(scale, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    with numpyro.plate("row", 20):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def exact(scale, y):
    precision = scale**-2 + len(y)
    return y.sum() / precision, precision**-0.5


@pytest.fixture
def pool():
    with ThreadPoolExecutor() as pool:
        yield pool


def test_other_data_of_the_same_shape_compile_nothing(x64):
    rng = np.random.default_rng(0)
    FlowVI(location, progress_bar=False).run(jax.random.key(0), 3.0, rng.normal(size=20)).sample(
        jax.random.key(1), 4_000
    )
    y = rng.normal(2.0, 1.0, 20)
    COMPILED.clear()
    posterior = FlowVI(location, progress_bar=False).run(jax.random.key(1), 3.0, y)
    draws = posterior.sample(jax.random.key(1), 4_000)["mu"]
    assert not COMPILED
    mean, sd = exact(3.0, y)
    assert draws.mean() == pytest.approx(mean, abs=5 * sd / np.sqrt(4_000))
    assert draws.std() == pytest.approx(sd, rel=0.1)


def test_another_number_in_the_model_is_another_program(x64):
    """Python's own numbers are part of the program."""
    y = np.zeros(20)
    for scale in (0.05, 3.0):
        posterior = FlowVI(location, progress_bar=False).run(jax.random.key(0), scale, y)
        assert posterior.sample(jax.random.key(1), 4_000)["mu"].std() == pytest.approx(exact(scale, y)[1], rel=0.1)


def test_constants_of_any_kind(pool):
    key, table, many = jax.random.key(3), {"a": np.arange(3.0)}, jnp.ones((2, 3))

    def function(x, y):
        return {"sum": x @ table["a"] + jax.random.normal(key), "both": (y, many + x)}

    expected = function(np.ones(3), 2.0)
    got = Ahead(pool, function, np.ones(3), 2.0)(np.ones(3), 2.0)
    jax.tree.map(np.testing.assert_allclose, got, expected)


def test_callbacks_are_not_shared(pool):
    """Their programs differ by an address alone, which may be taken anew."""

    def calling(number):
        return lambda x: jax.pure_callback(lambda x: np.float32(number) * x, jax.ShapeDtypeStruct((), np.float32), x)

    for number in (1.0, 2.0, 3.0):
        assert Ahead(pool, calling(number), np.float32(1))(np.float32(5)) == 5 * number


def test_threads_share_programs(x64):
    """Fits of the same model side by side."""
    ys = np.random.default_rng(1).normal(np.arange(4.0)[:, None], 1.0, (4, 20))

    def fit(y):
        return (
            FlowVI(location, progress_bar=False).run(jax.random.key(0), 3.0, y).sample(jax.random.key(1), 4_000)["mu"]
        )

    with ThreadPoolExecutor() as threads:
        for y, draws in zip(ys, threads.map(fit, ys)):
            assert draws.mean() == pytest.approx(exact(3.0, y)[0], abs=0.03)


def test_a_static_field_that_a_program_does_not_show_is_the_caller_s(pool):
    """Two structures of one program: each call returns its own."""

    class Marked(eqx.Module):
        x: jax.Array
        mark: str = eqx.field(static=True)

    for mark in ("first", "second"):
        make = Ahead(pool, lambda x, mark=mark: Marked(2.0 * x, mark), jnp.ones(3))
        assert make(jnp.ones(3)).mark == mark
        take = Ahead(pool, lambda marked: marked.x.sum(), Marked(jnp.ones(3), mark))
        assert take(Marked(jnp.ones(3), mark)) == 3.0
        with pytest.raises(TypeError, match="structure"):
            take(Marked(jnp.ones(3), "another"))
