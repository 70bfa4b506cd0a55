"""What NumPyro asks of its autoguides, asked of AutoFlow: starts, objectives, optimisers, plates, kinds of sites."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.einstein import RBFKernel, SteinVI
from numpyro.distributions import constraints
from numpyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from numpyro.infer.autoguide import AutoGuideList, AutoNormal
from numpyro.infer.reparam import NeuTraReparam

from numpyro_flows import AutoFlow, PathELBO
from numpyro_flows.bijections import Affine

KEY = jax.random.key(0)
SLOW = pytest.mark.slow


def small(key, dim):
    """A recipe that is quick to compile."""
    return Affine(0.1 * jax.random.normal(key, (dim,)), jnp.ones(dim))


def model(y=1.0):
    loc = jnp.asarray(numpyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1)))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    numpyro.deterministic("shifted", loc + 1.0)
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(loc.sum(), scale), obs=y * jnp.ones(3))


def started(guide, loss=None, optimizer=None, of=model):
    svi = SVI(of, guide, optimizer or numpyro.optim.Adam(1e-2), loss or Trace_ELBO())
    return svi, jax.jit(svi.init)(KEY)  # in one piece: operation by operation it compiles for seconds


@pytest.fixture(scope="module")
def start():
    """One guide, at its start, for all tests of what it does there."""
    strategy: Any = init_to_value(values={"scale": 0.7})
    guide = AutoFlow(model, small, init_loc_fn=strategy, init_scale=1e-4)
    return guide, *started(guide, RenyiELBO(alpha=0.5, num_particles=2), optax.adam(1e-2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(init_to_feasible, id="feasible"),
        pytest.param(init_to_mean, id="mean"),
        pytest.param(init_to_median, id="median"),
        pytest.param(init_to_sample, id="sample"),
        pytest.param(init_to_uniform, id="uniform"),
        pytest.param(init_to_uniform(radius=1), id="small uniform"),
        pytest.param(init_to_value(values={"loc": jnp.array([3.0, -1.0]), "scale": 0.7}), id="values"),
    ],
)
def test_starts(strategy):
    guide = AutoFlow(model, small, init_loc_fn=strategy, init_scale=1e-4)
    svi, state = started(guide)
    draws = guide.sample_posterior(KEY, svi.get_params(state), sample_shape=(3,))
    assert all(np.isfinite(value).all() for value in draws.values())
    assert (draws["scale"] > 0).all()
    np.testing.assert_allclose(np.std(draws["loc"], axis=0), 0.0, atol=1e-2)


def test_starts_at_a_value(start):
    """Where one site of two has one."""
    guide, svi, state = start
    draws = guide.sample_posterior(KEY, svi.get_params(state), sample_shape=(2, 3))
    np.testing.assert_allclose(draws["scale"], 0.7, rtol=1e-2)
    np.testing.assert_allclose(np.std(draws["loc"], axis=(0, 1)), 0.0, atol=1e-2)


def test_updates(start):
    _, svi, state = start
    moves(svi, state)


def moves(svi, state):
    before = svi.get_params(state)
    state, value = jax.jit(svi.update)(state)
    assert np.isfinite(value)
    moved = jax.tree.map(lambda a, b: np.any(a != b), before, svi.get_params(state))
    assert any(jax.tree.leaves(moved))


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(Trace_ELBO(2), id="Trace"),
        pytest.param(TraceMeanField_ELBO(2), id="TraceMeanField"),
        pytest.param(TraceGraph_ELBO(2), id="TraceGraph"),
        pytest.param(PathELBO(2), id="Path"),
    ],
)
def test_objectives(loss):
    moves(*started(AutoFlow(model, small), loss, optax.adam(1e-2)))


@pytest.mark.parametrize("sample_shape", [pytest.param((), marks=SLOW), pytest.param((2,), marks=SLOW), (2, 3)])
def test_shapes_of_draws(start, sample_shape):
    guide, svi, state = start
    params = svi.get_params(state)
    draws = guide.sample_posterior(jax.random.PRNGKey(1), params, sample_shape=sample_shape)
    shapes = {"loc": (2,), "scale": (), "shifted": (2,)}
    assert {name: value.shape for name, value in draws.items()} == {k: (*sample_shape, *v) for k, v in shapes.items()}
    posterior = guide.get_posterior(params)
    assert posterior.shape(sample_shape) == (*sample_shape, 3)
    assert guide.quantiles(params, [0.1, 0.9])["loc"].shape == (2, 2)
    assert guide.median(params)["scale"].shape == ()
    x, transform = jnp.ones(3), guide.get_transform(params)
    np.testing.assert_allclose(jax.jit(lambda x: transform.inv(transform(x)))(x), x, atol=1e-3)


@pytest.mark.slow
def test_runs_and_predicts():
    guide = AutoFlow(model, small)
    result = SVI(model, guide, numpyro.optim.Adam(1e-2), Trace_ELBO()).run(KEY, 3, progress_bar=False)
    assert result.losses.shape == (3,)
    predictive = Predictive(model, guide=guide, params=result.params, num_samples=4)
    assert predictive(KEY, y=1.0)["shifted"].shape == (4, 2)


@pytest.mark.slow
def test_two_guides_of_a_model():
    """As of NumPyro's own, a part of an `AutoGuideList` must hide deterministic sites from its guide."""
    others = numpyro.handlers.block(numpyro.handlers.seed(model, 0), hide=["scale", "shifted"])
    scale = numpyro.handlers.block(numpyro.handlers.seed(model, 1), expose=["scale"])
    guide = AutoGuideList(model)
    guide.append(AutoFlow(others, small, prefix="a"))
    guide.append(AutoNormal(scale))
    svi, state = started(guide)
    params = svi.get_params(state)
    assert any(name.endswith("a_flow$params") for name in params)
    _, loss = jax.jit(svi.update)(state)
    assert np.isfinite(loss)
    draws = guide.sample_posterior(KEY, params, sample_shape=(5,))
    assert (draws["loc"].shape, draws["scale"].shape) == ((5, 2), (5,))


@pytest.mark.slow
def test_particles_of_guides():
    """`SteinVI` moves a mixture of guides: every parameter is an array with an axis in front."""

    def normal():
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    guide = AutoFlow(normal, small)
    stein = SteinVI(normal, guide, numpyro.optim.Adagrad(0.1), RBFKernel(), num_stein_particles=3, num_elbo_particles=1)
    state = jax.jit(stein.init)(KEY)
    with pytest.warns(UserWarning, match="auxiliary vars"):  # as with any AutoContinuous guide
        moved, force = jax.jit(stein.update)(state)
    assert np.isfinite(force)
    before, after = stein.get_params(state), stein.get_params(moved)
    assert before.keys() == after.keys() == {guide.param_name}
    shapes = [leaf.shape for leaf in guide.parameters(guide.make_bijection(KEY, jnp.zeros(2), jnp.eye(2)))]
    for params in before, after:
        assert [leaf.shape for leaf in params[guide.param_name]] == [(3, *shape) for shape in shapes]
    locs = jax.jit(jax.vmap(lambda params: guide.get_posterior(params).sample(KEY)))(after)
    assert len(np.unique(locs, axis=0)) == 3


def subsampled(data):
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 10, subsample_size=4):
        batch = numpyro.subsample(data, event_dim=0)
        numpyro.sample("y", dist.Normal(loc, 1.0), obs=batch)


@pytest.mark.slow
def test_subsampled_data_in_one_dimension():
    guide = AutoFlow(subsampled, small)
    svi = SVI(subsampled, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    state = jax.jit(svi.init)(KEY, jnp.arange(10.0))
    _, loss = jax.jit(svi.update)(state, jnp.arange(10.0))
    assert np.isfinite(loss)
    assert guide.latent_dim == 1


@pytest.mark.slow
def test_sites_of_every_kind():
    def kinds():
        numpyro.sample("improper", dist.ImproperUniform(constraints.positive, (), event_shape=(2,)))
        numpyro.sample("simplex", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("lkj", dist.LKJCholesky(2, 1.0))
        with numpyro.plate("outer", 2, dim=-2), numpyro.plate("inner", 3, dim=-1):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.handlers.scale(scale=0.5), numpyro.handlers.mask(mask=True):
            numpyro.factor("f", -jnp.square(z).sum())

    guide = AutoFlow(kinds, small)
    svi, state = started(guide, of=kinds)
    draws = guide.sample_posterior(KEY, svi.get_params(state), sample_shape=(5,))
    assert {name: value.shape[1:] for name, value in draws.items()} == {
        "improper": (2,),
        "simplex": (3,),
        "lkj": (2, 2),
        "z": (2, 3),
    }
    assert (draws["improper"] > 0).all()
    assert np.all(constraints.corr_cholesky(draws["lkj"]))


@pytest.mark.slow
def test_neutra_in_mcmc():
    guide = AutoFlow(model, small)
    svi, state = started(guide)
    neutra = NeuTraReparam(guide, svi.get_params(state))
    mcmc = MCMC(NUTS(neutra.reparam(model)), num_warmup=3, num_samples=4, progress_bar=False)
    mcmc.run(KEY)
    sites = neutra.transform_sample(mcmc.get_samples()["auto_shared_latent"])
    assert sites["loc"].shape == (4, 2)
    assert (sites["scale"] > 0).all()


def test_sites_that_no_guide_takes():
    def local():
        with numpyro.plate("rows", 10, subsample_size=4):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    def point():
        numpyro.sample("point", dist.Delta(3.0))
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(RuntimeError, match="no latent variables"):
        started(AutoFlow(lambda: None, small), of=lambda: None)
    with pytest.raises(ValueError, match="local latent variables"):
        started(AutoFlow(local, small), of=local)
    with pytest.raises(ValueError, match="delta distribution"):
        started(AutoFlow(point, small), of=point)
