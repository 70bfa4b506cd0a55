"""Trainable flows that start as a greedy fit, out to the tails, and learn from there."""

from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.flows.zoo import two_moons
from numpyro_flows import flows
from numpyro_flows.bijections import Cayley, Householder
from numpyro_flows.gaussianization import fit_rbig
from tests.bijections.common import made

KEY = jax.random.key(0)
NUM = 200
RECIPES = {
    "gaussianization with cayley": partial(flows.gaussianization, rotation=Cayley),
    "gaussianization conditional": partial(flows.gaussianization, cond_dim=2),
    "coupling_gaussianization conditional": partial(flows.coupling_gaussianization, cond_dim=2, hidden=(8,)),
}


@cache
def fit(marginal: Any = "mixture", max_layers: int = 3):
    with jax.enable_x64(True):
        return fit_rbig(KEY, two_moons(np.random.default_rng(0), 1_000), marginal=marginal, max_layers=max_layers)


def points() -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.normal(size=(NUM, 2)) * rng.choice([1.0, 10.0, 100.0], size=(NUM, 1))


def _to_base(bijection, x):
    condition = None if bijection.cond_shape is None else jnp.ones(bijection.cond_shape)
    return jax.vmap(bijection.inverse_and_log_det, in_axes=(0, None))(x, condition)


to_base = eqx.filter_jit(_to_base)


@cache
def started(name):
    """A flow that starts as the fit: what it makes of the points, and the gradient of their density."""

    @eqx.filter_jit
    @partial(eqx.filter_grad, has_aux=True)
    def gradient_and_values(flow):
        z, log_det = _to_base(flow, points())
        return (0.5 * (z**2).sum(1) - log_det).mean(), (z, log_det)

    with jax.enable_x64(True):
        return gradient_and_values(RECIPES[name](KEY, 2, init=fit()))


# the quick suite has the recipe that has both kinds of parameters, of the map and of its conditioner
over_recipes = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("coupling" not in name)) for name in RECIPES]
)


@over_recipes
def test_equals_the_fit_tails_included(name, x64):
    _, values = started(name)
    for got, expected in zip(values, to_base(fit().bijection, points())):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "marginal"), [(flows.gaussianization, "logistic"), (flows.coupling_gaussianization, "spline")]
)
def test_equals_a_fit_of_other_marginals(recipe, marginal, x64):
    flow = recipe(KEY, 2, init=fit(marginal))
    for got, expected in zip(to_base(flow, points()), to_base(fit(marginal).bijection, points())):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@over_recipes
def test_all_of_it_can_be_trained(name):
    gradient, _ = started(name)
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    untouched = [jax.tree_util.keystr(path) for path, leaf in leaves if not np.abs(leaf).max() > 0]
    # behind last weights of zero hidden layers have no gradient, yet
    assert not [path for path in untouched if "conditioner" not in path]


@pytest.mark.slow
def test_coupling_with_zero_kernels_is_the_diagonal_flow(x64):
    coupling: Any = made(lambda: flows.coupling_gaussianization(KEY, 3, num_layers=2, hidden=(8,)), scale=0.3)
    inverted, rotation = coupling.bijections[0].layers.bijections
    network = inverted.bijection.conditioner.mlp
    silent = eqx.tree_at(lambda m: m.weights[-1], network, jnp.zeros_like(network.weights[-1]))
    coupling = eqx.tree_at(lambda c: c.bijections[0].layers.bijections[0].bijection.conditioner.mlp, coupling, silent)
    diagonal = eqx.tree_at(
        lambda d: (
            d.bijections[0].layers.bijections[0].bijection.params,
            d.bijections[0].layers.bijections[1],
            d.bijections[1],
        ),
        eqx.filter_eval_shape(lambda: flows.gaussianization(KEY, 3, num_layers=2)),
        (network.biases[-1].reshape(2, 3, 24), rotation, coupling.bijections[1]),
    )
    x = 3 * np.random.default_rng(0).normal(size=(100, 3))
    for got, expected in zip(to_base(coupling, x), to_base(diagonal, x)):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rotation", [Householder, Cayley])
def test_cold_start_mixes_coordinates(rotation, x64):
    """Layers look at different directions, and yet their product is the identity."""

    @jax.jit
    def rotations(key):
        flow: Any = flows.gaussianization(key, 4, num_layers=5, rotation=rotation)
        return eqx.filter_vmap(lambda r: r.matrix())(flow.bijections[0].layers.bijections[1])

    matrices = np.asarray(rotations(KEY))
    np.testing.assert_allclose(np.linalg.multi_dot([*matrices[::-1]]), np.eye(4), atol=1e-9)
    off_diagonal = np.abs(matrices[:, ~np.eye(4, dtype=bool)])
    assert (off_diagonal.max(1) > 0.1).all()


@pytest.mark.parametrize(
    ("init", "dim", "message"),
    [
        (fit, 3, "init expected a fit of 3 coordinates, got one of 2"),
        (partial(fit, "empirical", 1), 2, "got marginal='empirical'"),
    ],
)
@pytest.mark.parametrize("recipe", [flows.gaussianization, flows.coupling_gaussianization])
def test_errors(recipe, init, dim, message):
    with pytest.raises(ValueError, match=message):
        recipe(KEY, dim, init=init())
