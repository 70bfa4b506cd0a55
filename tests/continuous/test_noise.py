"""Who says that it estimates, and new seeds for those who do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows import flows
from numpyro_flows.bijections import Chain, Frozen, Invert, Reshape, Residual
from numpyro_flows.bijections.noise import EventNoise, estimates, reseeded
from numpyro_flows.continuous import Hutchinson, HutchPlusPlus, in_training
from tests.bijections.cases import perturbed
from tests.continuous.common import FIELDS, KEY

ONE_PROBE = ["Hutchinson's estimator with 1 rademacher probes"]
SMALL = {"num_layers": 2, "hidden": (4,)}


@pytest.mark.parametrize("key_style", [jax.random.PRNGKey, jax.random.key], ids=["raw", "typed"])
def test_a_key_for_each_event(key_style, dtype):
    noise, other = EventNoise(key_style(0)), EventNoise(key_style(1))
    x = jnp.array([0.5, -1.0, 0.0])
    events = [x, -x, x[::-1], jnp.nextafter(x, 2.0), x.at[1].set(1.0)]
    keys = [tuple(np.asarray(jax.random.key_data(n.key(event)))) for n in (noise, other) for event in events]
    assert len(set(keys)) == len(keys)
    assert keys[0] == tuple(np.asarray(jax.random.key_data(EventNoise(key_style(0)).key(x))))


def seeds(tree):
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, EventNoise))
    found = [np.reshape(node.seed, (-1, 2)) for node in nodes if isinstance(node, EventNoise)]
    return np.concatenate(found) if found else np.zeros((0, 2))


def test_new_seeds():
    """All of them, each its own, a function of the key; layers of a stack have one each, and nothing else changes."""

    @eqx.filter_jit
    def make(key):
        continuous = flows.ffjord(key, 3, field=FIELDS["mlp"], divergence=Hutchinson(key))
        return Chain([flows.residual(key, 3, **SMALL), continuous])

    bijection = make(KEY)
    new = reseeded(bijection, jax.random.key(1))
    assert jax.tree.structure(new) == jax.tree.structure(bijection)
    before, after = seeds(bijection), seeds(new)
    assert before.shape == after.shape == (3, 2)
    assert len({tuple(seed) for seed in (*before, *after)}) == 6
    np.testing.assert_array_equal(seeds(reseeded(bijection, jax.random.key(1))), after)
    assert not np.array_equal(seeds(reseeded(bijection, jax.random.key(2))), after)
    floats = [eqx.filter(tree, eqx.is_inexact_array) for tree in (bijection, new)]
    assert eqx.tree_equal(*floats)


@pytest.mark.slow
def test_new_seeds_give_a_residual_map_other_errors():
    """In training, too: one event has one value for each key."""
    make = eqx.filter_jit(lambda key: perturbed(Residual(key, 3, hidden=(4,), exact_dim=2), scale=0.5))
    residual = make(KEY)
    keys = jax.random.split(KEY, 8)
    log_det = eqx.filter_jit(lambda key: in_training(residual, key).transform_and_log_det(jnp.ones(3))[1])
    values = [float(log_det(key)) for key in keys]
    assert len(set(values)) > 1
    assert values == [float(log_det(key)) for key in keys]


def test_what_has_no_seed_stays_as_it_is():
    plain = eqx.filter_jit(lambda key: flows.realnvp(key, 3, **SMALL))(KEY)
    assert eqx.tree_equal(reseeded(plain, KEY), plain)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: flows.realnvp(KEY, 3, **SMALL), []),
        (lambda: flows.residual(KEY, 3, **SMALL), []),
        (lambda: flows.residual(KEY, 65, **SMALL), ["the series of Residual, exact up to 64 of 65 coordinates"]),
        (lambda: flows.ffjord(KEY, 3), []),
        # exact in use, for all that it is trained by an estimate
        (lambda: flows.ffjord(KEY, 33), []),
        (
            lambda: in_training(flows.ffjord(KEY, 33), KEY),
            ONE_PROBE,
        ),
        (
            lambda: Frozen(Invert(Reshape(flows.ffjord(KEY, 6, divergence=HutchPlusPlus(KEY)), (2, 3)))),
            ["the Hutch++ estimator with 3 products"],
        ),
        (lambda: Chain([flows.ffjord(KEY, 3, divergence=Hutchinson(KEY)) for _ in range(2)]), ONE_PROBE),
    ],
)
def test_estimates_say_so(make, expected):
    assert estimates(eqx.filter_eval_shape(make)) == expected
