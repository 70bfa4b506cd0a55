"""Every recipe learns a density that is not Gaussian, keeps it one, and is the same after a file.

One of them is trained in the quick suite. That densities integrate to 1 is also one of the laws, without a training.
"""

from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from benchmarks.flows.zoo import standardised
from numpyro_flows import FlowDistribution, flows
from numpyro_flows.bijections import AbstractBijection, initialize_from_data
from numpyro_flows.files.tree import load_tree, save_tree
from numpyro_flows.training.steps import TrainState, cosine_schedule, train_chunk

STEPS, BATCH, RATE = 500, 256, 1e-2
FEW_LAYERS = {"num_layers": 4, "hidden": (16, 16)}
RECIPES = {
    "nice": partial(flows.nice, num_layers=6, hidden=(32, 32)),
    "realnvp": partial(flows.realnvp, **FEW_LAYERS),
    "glow": partial(flows.glow, **FEW_LAYERS),
    "multiscale": partial(flows.multiscale, flow=partial(flows.realnvp, **FEW_LAYERS)),
    "nsf_coupling": partial(flows.nsf_coupling, **FEW_LAYERS),
    "maf": partial(flows.maf, **FEW_LAYERS),
    "iaf": partial(flows.iaf, **FEW_LAYERS),
    "nsf_autoregressive": partial(flows.nsf_autoregressive, num_layers=2, hidden=(16, 16)),
    "naf": partial(flows.naf, num_layers=2, hidden=(16, 16), fast="density"),
    "bnaf": partial(flows.bnaf, fast="density"),
    "bernstein": partial(flows.bernstein, num_layers=2, hidden=(16, 16)),
    "tarflow": partial(flows.tarflow, num_layers=4, width=16, num_blocks=1),
    "gaussianization": partial(flows.gaussianization, num_layers=4),
    "coupling_gaussianization": partial(flows.coupling_gaussianization, num_layers=2, hidden=(16, 16)),
    "planar": partial(flows.planar, num_layers=16),
    "radial": partial(flows.radial, num_layers=16),
    "sylvester": partial(flows.sylvester, num_layers=8),
    "residual": partial(flows.residual, num_layers=4, hidden=(16, 16)),
}


over_recipes = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "realnvp")) for name in RECIPES]
)
TRAIN, TEST = (np.float32(points) for points in standardised("moons"))


@cache
def fitted(name: str):
    """The recipe's bijection after a short training on two moons by maximum likelihood."""
    data = jnp.asarray(TRAIN)
    flow = RECIPES[name](jax.random.key(0), 2)
    if name == "glow":
        flow = initialize_from_data(flow, data[:BATCH])
    params, static = eqx.partition(flow, eqx.is_inexact_array)

    def loss(params, key):
        batch = data[jax.random.randint(key, (BATCH,), 0, len(data))]
        return -FlowDistribution(eqx.combine(params, static)).log_prob(batch).mean()

    train = jax.jit(lambda *args: train_chunk(loss, *args))
    keys = jax.random.split(jax.random.key(1), STEPS)
    state, losses, skipped = train(TrainState.init(params), keys, jnp.float32(cosine_schedule(STEPS, RATE)))
    assert np.isfinite(losses).all()
    assert skipped == 0
    return eqx.combine(state.params, static)


@eqx.filter_jit
def log_prob(bijection, x):
    return FlowDistribution(bijection).log_prob(x)


@over_recipes
def test_two_moons(name):
    """Better than the best Gaussian of the points that it is tested on."""
    gaussian = multivariate_normal(TEST.mean(0), np.cov(TEST.T).tolist()).logpdf(TEST)
    gain = np.float64(log_prob(fitted(name), TEST)) - gaussian
    assert gain.mean() > 10 * gain.std() / np.sqrt(gain.size)


@over_recipes
def test_density_integrates_to_one(name):
    side = np.linspace(-5.0, 5.0, 301, dtype="float32")
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    values = np.concatenate([log_prob(fitted(name), block) for block in np.array_split(grid, 7)])
    assert np.isfinite(values).all()
    cell = (side[1] - side[0]) ** 2
    assert abs(np.exp(np.float64(values)).sum() * cell - 1) < 1e-3


@over_recipes
def test_a_trained_flow_of_a_file_has_the_same_density(name, tmp_path):
    flow = FlowDistribution(fitted(name))
    flow.save(tmp_path / "flow")
    again = FlowDistribution.load(tmp_path / "flow")
    np.testing.assert_array_equal(log_prob(again.bijection, TEST), log_prob(flow.bijection, TEST))


@pytest.mark.parametrize("name", RECIPES)
def test_file(name, tmp_path):
    """The same arrays at the same places, with any numbers here: nothing is compiled.

    That `FlowDistribution.load` finds their shapes coherent, the slow tests of trained flows show: it traces the flow.
    """
    rng = np.random.default_rng(0)

    def any_numbers(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(rng.integers(0, 100, leaf.shape).astype(leaf.dtype))

    flow = jax.tree.map(any_numbers, eqx.filter_eval_shape(lambda: RECIPES[name](jax.random.PRNGKey(0), 2)))
    save_tree(tmp_path / "flow", "test", flow)
    again = load_tree(tmp_path / "flow", "test", AbstractBijection)
    found, saved = (jax.tree_util.tree_leaves_with_path(tree) for tree in (again, flow))
    assert [path for path, _ in found] == [path for path, _ in saved]
    for (_, got), (_, expected) in zip(found, saved):
        assert np.asarray(got).dtype == np.asarray(expected).dtype
        np.testing.assert_array_equal(got, expected)
