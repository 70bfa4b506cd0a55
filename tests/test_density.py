import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.distributions import constraints

from numpyro_flows import FlowDistribution, fit_density, flows
from numpyro_flows.bijections import Affine, Chain, TriangularAffine
from numpyro_flows.gaussianization import fit_rbig
from tests.terminal import CtrlC
from tests.test_trees import Shift

SMALL = partial(flows.realnvp, num_layers=2, hidden=(8,))


def gaussian(key, dim):
    """A recipe of one affine map, the quickest to compile: the fit is the normal of the data's moments."""
    return TriangularAffine(jnp.zeros(dim), np.eye(dim))


def fit(rng_key, data, flow: Any = gaussian, **options) -> Any:
    """A normal base for a new flow, so that the affine map is what is trained."""
    base = {} if isinstance(flow, FlowDistribution) else {"base": dist.Normal(0, 1)}
    few = {"num_steps": 300, "learning_rate": 1e-2, "patience": 300, "progress_bar": False}
    return fit_density(rng_key, data, flow=flow, **(base | few | options))


def normal_data(num=4000, seed=0):
    """Draws of a correlated normal, far from the origin and of unlike scales, and its entropy."""
    rng = np.random.default_rng(seed)
    scale = np.array([[2.0, 0.0], [0.09, 0.01]])
    data = np.array([100.0, -3.0]) + rng.normal(size=(num, 2)) @ scale.T
    return data, 1 + np.log(2 * np.pi) + np.log(np.diagonal(scale)).sum()


def draws_of(flow, num):
    return np.asarray(jax.jit(lambda key: flow.sample(key, (num,)))(jax.random.key(1)))


@pytest.fixture(scope="module")
def normal_fit():
    data, entropy = normal_data()
    return fit(jax.random.key(0), data, test=0.25, patience=1000), entropy


def test_a_density_that_is_known(normal_fit):
    flow, entropy = normal_fit
    # log densities of a 2-D normal have variance 1; beyond their noise the fit may be off by a hundredth of a nat
    assert abs(flow.fit.test.nll - entropy) < 0.01 + 3 * flow.fit.test.se
    assert flow.fit.test.se == pytest.approx(1 / np.sqrt(1000), rel=0.2)
    draws = draws_of(flow, 20_000)
    np.testing.assert_allclose(draws.mean(0), [100.0, -3.0], atol=0.1)
    assert np.corrcoef(draws.T)[0, 1] == pytest.approx(0.09 / np.hypot(0.09, 0.01), abs=0.003)


def test_what_a_fit_reports(normal_fit):
    flow, _ = normal_fit
    report = flow.fit
    assert report.losses.shape == (300,)
    assert len(report.validation) == len(report.steps)
    assert report.steps[0] == 0
    assert report.held_out.nll == pytest.approx(report.validation.min(), abs=1e-4)  # what is kept is the best
    assert report.why == "all 300 steps taken"
    assert report.num_skipped == 0
    assert set(report.seconds) == {"preparation", "compilation", "training"}
    np.testing.assert_allclose(report.losses[-50:].mean(), report.test.nll, atol=0.15)


@pytest.mark.slow
def test_the_report_is_the_distribution_s_own_score():
    data, _ = normal_data(600)
    flow = fit(jax.random.PRNGKey(0), data, validation=0.5)
    # the mean over all rows is that of the two halves: the score of the validation rows is on the data's own scale
    assert -flow.log_prob(data).mean() == pytest.approx(flow.fit.held_out.nll, abs=4 * flow.fit.held_out.se)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("support", "make", "grid"),
    [
        (constraints.positive, lambda rng: rng.gamma(3.0, size=20_000), (1e-6, 60.0)),  # events are numbers
        (constraints.unit_interval, lambda rng: rng.beta(2.0, 3.0, size=(1000, 1)), (1e-6, 1 - 1e-6)),
        (constraints.interval(-2.0, 5.0), lambda rng: rng.uniform(-2.0, 5.0, size=(1000, 1)), (-2 + 1e-6, 5 - 1e-6)),
    ],
    ids=["positive", "unit_interval", "interval"],
)
def test_bounded_supports(support, make, grid, x64):
    data = make(np.random.default_rng(0))
    flow = fit(jax.random.key(0), data, support=support)
    draws = draws_of(flow, 5000)
    assert flow.event_shape == data.shape[1:]
    assert draws.shape == (5000, *flow.event_shape)
    assert np.all(support(draws))
    x = np.linspace(grid[0], grid[1], 200_001)
    log_prob = jax.jit(flow.log_prob)(x.reshape(-1, *flow.event_shape))
    assert np.trapezoid(np.exp(log_prob), x) == pytest.approx(1.0, abs=1e-3)
    checking = FlowDistribution(flow.bijection, constrain=flow.constrain, validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert checking.log_prob(np.full(flow.event_shape, -3.0)) == -np.inf


@pytest.mark.slow
def test_a_simplex(x64):
    data = np.random.default_rng(0).dirichlet([2.0, 3.0, 4.0], size=2000)
    flow = fit(jax.random.key(0), data, support=constraints.simplex, flow=SMALL)
    draws = flow.sample(jax.random.key(1), (2000,))
    np.testing.assert_allclose(draws.sum(1), 1.0, atol=1e-6)
    exact = -dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])).log_prob(data).mean()
    assert -flow.log_prob(data).mean() == pytest.approx(float(exact), abs=0.03)
    # a density of the first two coordinates: on the triangle below their sum of 1
    side = (np.arange(600) + 0.5) / 600
    a, b = (grid.ravel() for grid in np.meshgrid(side, side))
    inside = a + b < 1
    points = np.stack([a, b, 1 - a - b], axis=1)[inside]
    assert np.exp(flow.log_prob(points)).sum() / 600**2 == pytest.approx(1.0, abs=1e-3)


@pytest.mark.slow
def test_matrices():
    factors = dist.LKJCholesky(3, 2.0).sample(jax.random.key(0), (500,))
    matrices = fit(jax.random.key(0), factors, support=constraints.corr_cholesky)
    assert matrices.event_shape == (3, 3)
    assert np.all(constraints.corr_cholesky(matrices.sample(jax.random.key(1), (7,))))


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(0)
    mu = rng.normal(size=1000)
    return {"mu": mu, "tau": np.exp(mu + rng.normal(size=1000)), "theta": mu[:, None] + rng.normal(size=(1000, 2))}


SUPPORTS = {"tau": constraints.positive}


@pytest.fixture(scope="module")
def sites_fit(draws):
    return fit(jax.random.key(0), as_datatree(draws), support=SUPPORTS, num_restarts=3)


def test_sites_come_back_as_sites(draws, sites_fit):
    flow: Any = sites_fit

    @jax.jit
    def evaluate(draws):
        again = flow.sample(jax.random.key(1), (50,))
        scores = flow.log_prob(flow.sites.pack(again)), flow.log_prob(again), sum(flow.log_prob_parts(again))
        return again, scores, flow.log_prob(draws).mean()

    again, (of_vectors, of_sites, of_parts), mean = evaluate(draws)
    assert {name: value.shape for name, value in again.items()} == {"mu": (50,), "tau": (50,), "theta": (50, 2)}
    assert (again["tau"] > 0).all()
    assert of_sites.shape == (50,)
    np.testing.assert_allclose(of_vectors, of_sites)
    np.testing.assert_allclose(of_parts, of_sites, rtol=1e-5)
    assert -mean == pytest.approx(flow.fit.held_out.nll, abs=4 * flow.fit.held_out.se + 0.05)
    with pytest.raises(ValueError, match="missing \\['tau'\\]"):
        flow.log_prob({"mu": again["mu"], "theta": again["theta"]})
    with pytest.raises(ValueError, match=r"expected 'theta' of shape \(50, 2\), got \(50, 3\)"):
        flow.log_prob(again | {"theta": jnp.ones((50, 3))})


def as_datatree(draws, group="posterior"):
    """1,000 draws as two chains."""
    chains = {
        name: (["chain", "draw", "k"][: value.ndim + 1], value.reshape(2, 500, *value.shape[1:]))
        for name, value in draws.items()
    }
    return xr.DataTree.from_dict({group: xr.Dataset(chains)})


@pytest.mark.slow
def test_a_datatree_is_its_posterior_s_draws(draws):
    from_tree = fit(jax.random.key(0), as_datatree(draws), support=SUPPORTS)
    from_dict = fit(jax.random.key(0), draws, support=SUPPORTS)
    some = from_dict.sample(jax.random.key(1), (20,))
    np.testing.assert_allclose(from_tree.log_prob(some), from_dict.log_prob(some), rtol=1e-5)


def test_a_datatree_without_a_posterior(draws):
    with pytest.raises(ValueError, match="expected a DataTree with a posterior"):
        fit(jax.random.key(0), as_datatree(draws, "prior"))


def test_weights(x64):
    """Draws of N(0, 1) with weights that make them draws of N(1, 1)."""
    data = np.random.default_rng(0).normal(size=(20_000, 1))
    flow = fit(jax.random.key(0), data, weights=np.exp(data[:, 0] - 0.5) / 20_000)
    draws = draws_of(flow, 20_000)
    error = np.sqrt(np.exp(1.0) / 20_000)  # importance sampling's own, its weights having variance e - 1
    assert draws.mean() == pytest.approx(1.0, abs=4 * error)
    assert draws.std() == pytest.approx(1.0, abs=4 * error)


@pytest.mark.slow
def test_integers():
    counts = np.random.default_rng(0).binomial(10, 0.4, size=(3000, 1))
    flow = fit(
        jax.random.key(0), counts, dequantize=True, support=constraints.interval(0.0, 11.0), flow=flows.nsf_coupling
    )
    fine = (np.arange(1100) + 0.5)[:, None] / 100
    mass = np.exp(flow.log_prob(fine)).reshape(11, 100).mean(1)
    assert mass.sum() == pytest.approx(1.0, abs=2e-3)
    exact = np.exp(dist.Binomial(10, 0.4).log_prob(np.arange(11)))
    np.testing.assert_allclose(mass, exact, atol=0.03)


def conditional_gaussian(key, dim, *, cond_dim):
    return Chain([Shift(jnp.zeros((dim, cond_dim)), lambda shift: shift), gaussian(key, dim)])  # pyright: ignore[reportCallIssue]


def test_conditions_and_columns_with_supports_of_their_own():
    rng = np.random.default_rng(0)
    condition = 100 + 20 * rng.normal(size=(4000, 1))
    data = 0.1 * condition + rng.normal(size=(4000, 2))
    entropy = np.log(2 * np.pi) + 1 + data[:, 1].mean()  # y = exp(x): log |dy/dx| = x
    data[:, 1] = np.exp(data[:, 1])
    supports = [constraints.real, constraints.positive]
    flow = fit(jax.random.key(0), data, condition=condition, support=supports, flow=conditional_gaussian)
    assert flow.fit.held_out.nll == pytest.approx(entropy, abs=0.05 + 3 * flow.fit.held_out.se)
    batch = flow.given(jnp.array([[70.0], [130.0]]))
    assert batch.batch_shape == (2,)
    draws = draws_of(batch, 4000)
    np.testing.assert_allclose(draws[..., 0].mean(0), [7.0, 13.0], atol=0.3)
    np.testing.assert_allclose(np.log(draws[..., 1]).mean(0), [7.0, 13.0], atol=0.3)
    assert batch.given(jnp.array([100.0])).batch_shape == ()
    with pytest.raises(ValueError, match="`FlowDistribution"):
        flow.sample(jax.random.key(0))
    with pytest.raises(ValueError, match="expected a conditional flow"):
        FlowDistribution(Affine(jnp.zeros(2))).given(jnp.ones(1))


def test_restarts_keep_the_best_and_training_goes_on(draws, sites_fit):
    """On the same sites in another order."""
    entropy = 2 * (1 + np.log(2 * np.pi)) + np.log(draws["tau"]).mean()  # of normals, and tau = exp(x)
    several = sites_fit.fit
    assert several.held_out.nll == pytest.approx(several.validation.min(), abs=1e-4)
    assert several.held_out.nll < entropy + 0.05 + 4 * several.held_out.se
    reordered = dict(reversed(draws.items()))
    more: Any = fit(jax.random.key(0), reordered, flow=sites_fit, support=SUPPORTS)
    assert list(more.sites.shapes) == list(draws)
    assert jax.tree.structure(more.bijection) == jax.tree.structure(sites_fit.bijection)
    # the same key makes the same split
    assert more.fit.validation[0] == pytest.approx(several.held_out.nll, abs=1e-3)
    assert more.fit.held_out.nll <= more.fit.validation[0]
    log_prob = jax.jit(more.log_prob)(draws)
    assert -log_prob.mean() == pytest.approx(more.fit.held_out.nll, abs=5 * more.fit.held_out.se)


@pytest.mark.slow
def test_training_ends_early_and_keeps_the_best():
    data = np.random.default_rng(0).normal(size=(60, 4))  # a flow of so many numbers learns 54 rows by heart
    flow = fit(jax.random.key(0), data, flow=flows.nsf_coupling, num_steps=2000, patience=200)
    assert flow.fit.why == "stopped because validation did not improve in 200 steps"
    assert flow.fit.held_out.nll == pytest.approx(flow.fit.validation.min(), abs=1e-4)
    assert flow.fit.validation[-1] > flow.fit.validation.min()


def test_an_interrupted_training_returns_what_was_fitted(monkeypatch):
    monkeypatch.setattr(sys, "stderr", CtrlC("nll="))
    data, _ = normal_data()
    flow = fit(jax.random.key(0), data, test=0.25, num_steps=1000, progress_bar=True)
    assert flow.fit.why == "interrupted"
    assert 0 < len(flow.fit.losses) < 1000
    assert np.isfinite(flow.fit.held_out.nll)


@pytest.mark.slow
def test_a_flow_that_is_initialised_by_data():
    data, entropy = normal_data(1000)
    flow = fit(jax.random.key(0), data, flow=partial(flows.glow, num_layers=2, hidden=(8,)), num_steps=100)
    assert flow.fit.held_out.nll < entropy + 0.05 + 4 * flow.fit.held_out.se


def test_the_parts_of_a_log_density(normal_fit):
    flow, _ = normal_fit

    @jax.jit
    def evaluate(key):
        x = flow.sample(key, (5,))
        base, _ = jax.vmap(flow.bijection.inverse_and_log_det)(x)
        return flow.log_prob_parts(x), flow.log_prob(x), dist.Normal(0, 1).log_prob(base).sum(1)

    parts, log_prob, of_base = evaluate(jax.random.key(0))
    np.testing.assert_allclose(parts.base + parts.log_det, log_prob, rtol=1e-6)
    np.testing.assert_allclose(parts.base, of_base, rtol=1e-5)


@pytest.mark.slow
def test_training_goes_on_from_a_greedy_fit():
    """XLA's optimisation level 1 made LLVM abort the process on this flow's training loop."""
    data = np.random.default_rng(0).gamma(2.0, size=(1000, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    greedy = fit_rbig(jax.random.key(0), data)
    start = FlowDistribution(flows.gaussianization(jax.random.key(1), 2, init=greedy))
    flow = fit(jax.random.key(0), data, flow=start, num_steps=100)
    np.testing.assert_allclose(start.log_prob(data), FlowDistribution(greedy.bijection).log_prob(data), atol=1e-4)
    assert flow.fit.held_out.nll == pytest.approx(flow.fit.validation.min(), abs=1e-4)
    assert abs(flow.fit.validation[-1] - flow.fit.validation[0]) > 1e-4  # it was trained
