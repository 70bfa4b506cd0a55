"""Models in several threads: NumPyro's handlers are global, so each run must be alone."""

import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_flows.inference.target import Target

THREADS, RUNS = 4, 4


@pytest.fixture
def frequent_switches():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run(number):
    """What several targets of one model say in one thread."""
    names = [f"{number}_{site}" for site in range(5)]

    def model():
        for name in names:
            numpyro.sample(name, dist.Normal(number, 1))

    for _ in range(RUNS):
        target = Target(model, jax.random.key(0))
        assert list(target.shapes) == names
        assert list(jax.eval_shape(target.constrain, jnp.zeros(target.dim))) == names
        assert list(target.supports()) == names
    return float(target.log_density(jnp.full(target.dim, number, float)))  # pyright: ignore[reportPossiblyUnboundVariable]


def test_each_thread_sees_its_own_sites(frequent_switches):
    with ThreadPoolExecutor(THREADS) as pool:
        densities = list(pool.map(run, range(THREADS)))
    assert densities == pytest.approx([5 * float(dist.Normal(0, 1).log_prob(0.0))] * THREADS)
