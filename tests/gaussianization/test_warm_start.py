"""Trainable flows that start as a greedy fit, out to the tails, and learn from there."""

from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.flows.zoo import two_moons
from numpyro_flows import flows
from numpyro_flows.bijections import Cayley, Householder
from numpyro_flows.gaussianization import fit_rbig
from tests.bijections.cases import perturbed

KEY = jax.random.key(0)
RECIPES = {
    "gaussianization": flows.gaussianization,
    "gaussianization with cayley": partial(flows.gaussianization, rotation=Cayley),
    "gaussianization conditional": partial(flows.gaussianization, cond_dim=2),
    "coupling_gaussianization": flows.coupling_gaussianization,
    "coupling_gaussianization conditional": partial(flows.coupling_gaussianization, cond_dim=2, hidden=(8,)),
}


@cache
def fit(marginal: str = "mixture", max_layers: int = 4):
    with jax.enable_x64(True):
        return fit_rbig(KEY, two_moons(np.random.default_rng(0), 1_000), marginal=marginal, max_layers=max_layers)


@eqx.filter_jit
def to_base(bijection, x):
    condition = None if bijection.cond_shape is None else jnp.ones(bijection.cond_shape)
    return jax.vmap(bijection.inverse_and_log_det, in_axes=(0, None))(x, condition)


@pytest.mark.parametrize("marginal", ["mixture", "logistic", "spline"])
@pytest.mark.parametrize("name", RECIPES)
def test_equals_the_fit_tails_included(name, marginal, x64):
    rng = np.random.default_rng(1)
    points = jnp.asarray(rng.normal(size=(200, 2)) * rng.choice([1.0, 10.0, 100.0], size=(200, 1)))
    flow = RECIPES[name](KEY, 2, init=fit(marginal))
    for got, expected in zip(to_base(flow, points), to_base(fit(marginal).bijection, points)):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_all_of_it_can_be_trained(name, x64):
    flow = RECIPES[name](KEY, 2, init=fit())
    points = jnp.asarray(two_moons(np.random.default_rng(2), 64))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(flow):
        z, log_det = to_base(flow, points)
        return (0.5 * (z**2).sum(1) - log_det).mean()

    leaves = jax.tree_util.tree_leaves_with_path(gradient(flow))
    untouched = [jax.tree_util.keystr(path) for path, leaf in leaves if not np.abs(leaf).max() > 0]
    # behind last weights of zero hidden layers have no gradient, yet
    assert not [path for path in untouched if "conditioner" not in path]


def test_coupling_with_zero_kernels_is_the_diagonal_flow(x64):
    coupling = perturbed(flows.coupling_gaussianization(KEY, 3, num_layers=2, hidden=(8,)), scale=0.3)
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
        flows.gaussianization(KEY, 3, num_layers=2),
        (network.biases[-1].reshape(2, 3, 24), rotation, coupling.bijections[1]),
    )
    points = jnp.asarray(3 * np.random.default_rng(0).normal(size=(100, 3)))
    for got, expected in zip(to_base(coupling, points), to_base(diagonal, points)):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rotation", [Householder, Cayley])
def test_cold_start_mixes_coordinates(rotation, x64):
    """Layers look at different directions, and yet their product is the identity."""
    flow = flows.gaussianization(KEY, 4, num_layers=5, rotation=rotation)
    matrices = eqx.filter_vmap(lambda r: r.matrix())(flow.bijections[0].layers.bijections[1])
    np.testing.assert_allclose(np.linalg.multi_dot(matrices[::-1]), np.eye(4), atol=1e-9)
    off_diagonal = np.abs(np.asarray(matrices)[:, ~np.eye(4, dtype=bool)])
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
