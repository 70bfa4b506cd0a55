"""Marginals and conditionals of flows: closed forms, and estimates against quadrature."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from scipy import stats
from scipy.special import logsumexp

from numpyro_flows import FlowDistribution, fit_density, flows
from numpyro_flows.bijections import Chain, Elementwise, Frozen, Identity, SinhArcsinh, TriangularAffine, YeoJohnson
from numpyro_flows.modeling.sites import Sites
from tests.bijections.common import made

# --- closed forms -----------------------------------------------------------------------------------------------------

SHARES = np.array([0.2, 0.5, 0.3])
LOC = np.array([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5], [-1.0, -2.0, 1.0]])
ROOT = np.array([[0.8, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.3, 0.4, 0.9]])
MATRIX, SHIFT = np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-0.5, 0.3, 1.5]]), np.array([1.0, -1.0, 0.5])


def mixture_flow(constrain=None) -> FlowDistribution:
    roots = jnp.asarray(np.stack([ROOT, 0.5 * ROOT, ROOT @ np.diag([1.0, 2.0, 0.5])]), float)
    normals = dist.MultivariateNormal(jnp.asarray(LOC, float), scale_tril=roots)
    base = dist.MixtureSameFamily(dist.Categorical(jnp.asarray(SHARES, float)), normals)
    power = YeoJohnson(np.array([1.0, 0.3, 1.8]), -3.0, 3.0)
    affine = Frozen(TriangularAffine(SHIFT, MATRIX))
    return FlowDistribution(Chain([Identity((3,)), affine, Frozen(power)]), base, constrain=constrain)


def closed_form(x, columns):
    """Log densities of the mixture before the power transform, of some columns."""
    parts, some = [], np.ix_(columns, columns)
    for share, loc, root in zip(SHARES, LOC, [ROOT, 0.5 * ROOT, ROOT @ np.diag([1.0, 2.0, 0.5])]):
        covariance: Any = (MATRIX @ root @ root.T @ MATRIX.T)[some]
        normal = stats.multivariate_normal((MATRIX @ loc + SHIFT)[columns], covariance)
        parts.append(np.log(share) + normal.logpdf(x))
    return logsumexp(parts, axis=0)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"], indirect=True)
def test_a_mixture_has_closed_forms(dtype):
    flow, rtol = mixture_flow(), 1e-9 if dtype == np.float64 else 2e-4
    y = np.random.default_rng(0).normal(scale=2.0, size=(50, 3)).astype(dtype)
    power = YeoJohnson(np.array([1.8, 1.0]), -3.0, 3.0)  # of columns 2 and 0
    x, log_det = map(np.asarray, jax.vmap(power.inverse_and_log_det)(y[:, [2, 0]]))
    marginal = flow.marginal([-1, 0])
    assert not marginal.log_prob_and_error(y[:, [2, 0]]).error.any()
    expected = closed_form(x.astype(float), [2, 0]) + log_det
    np.testing.assert_allclose(marginal.log_prob(y[:, [2, 0]]), expected, rtol=rtol, atol=rtol)

    conditional = flow.condition_on({2: y[:, 2], 0: y[:, 0]})
    assert (conditional.batch_shape, conditional.event_shape) == ((50,), (1,))
    np.testing.assert_allclose(
        conditional.log_prob(y[:, 1:2]), flow.log_prob(y) - expected, rtol=rtol, atol=rtol if rtol < 1e-6 else 1e-3
    )
    again = flow.condition_on({0: y[:, 0]}).marginal([1]).log_prob(y[:, 2:])
    first = np.asarray(flow.marginal([0]).log_prob(y[:, :1]))
    np.testing.assert_allclose(again, expected - first, rtol=rtol, atol=max(rtol, 1e-9))


def test_a_normal_distribution_has_closed_forms():
    flow = FlowDistribution(TriangularAffine(SHIFT, MATRIX))
    covariance = MATRIX @ MATRIX.T
    given = np.array([0.3, 2.0])
    conditional = flow.condition_on({0: given[0], 1: given[1]}).base_dist
    weights = np.linalg.solve(covariance[:2, :2], covariance[:2, 2])
    np.testing.assert_allclose(conditional.loc, [SHIFT[2] + weights @ (given - SHIFT[:2])], rtol=1e-5)
    variance = covariance[2, 2] - weights @ covariance[:2, 2]
    np.testing.assert_allclose(conditional.covariance_matrix, [[variance]], rtol=1e-5)
    marginal = flow.marginal([2, 0])
    np.testing.assert_allclose(marginal.base_dist.covariance_matrix, covariance[np.ix_([2, 0], [2, 0])], rtol=1e-5)


@pytest.mark.slow
def test_independent_columns_stay_what_they_are():
    base = dist.StudentT(3.0, jnp.arange(3.0), jnp.array([1.0, 2.0, 3.0])).to_event(1)
    tail = eqx.tree_at(lambda b: b.params, Elementwise(3, SinhArcsinh()), jnp.arange(6.0).reshape(3, 2) / 10)
    flow = FlowDistribution(tail, base)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    each = [np.asarray(flow.marginal([i]).log_prob(x[:, i : i + 1])) for i in range(3)]
    np.testing.assert_allclose(sum(each), flow.log_prob(x), rtol=1e-5)
    rest = flow.condition_on({1: np.array([5.0, -5.0])})
    assert rest.batch_shape == (2,)
    np.testing.assert_allclose(rest.log_prob(x[:, None, [0, 2]]), (each[0] + each[2])[:, None].repeat(2, 1), rtol=1e-5)


# --- estimates --------------------------------------------------------------------------------------------------------

CONSTRAIN = biject_to(constraints.cat([constraints.positive, constraints.real], -1))
GRID = np.exp(np.linspace(-4.0, 4.0, 161)), np.linspace(-8.0, 8.0, 321)


@pytest.fixture(scope="module")
def flow():
    """Bent, with a positive column; affine and power maps follow it as those of `fit_density` do."""
    bent = made(lambda: flows.nsf_coupling(jax.random.key(0), 2, num_layers=2, hidden=(8,)), scale=0.1)
    tail = Frozen(TriangularAffine(np.zeros(2), np.array([[0.7, 0.0], [0.3, 1.0]])))
    power = Frozen(YeoJohnson(np.array([1.0, 0.7]), -3.0, 3.0))
    return FlowDistribution(Chain([bent, tail, power]), constrain=CONSTRAIN)


@pytest.fixture(scope="module")
def marginal(flow):
    return flow.marginal([0])


@pytest.fixture(scope="module")
def joint_grid(flow):
    points = np.stack(np.meshgrid(*GRID, indexing="ij"), axis=-1)
    return np.exp(np.asarray(jax.jit(flow.log_prob)(points), float))


def test_marginals_are_those_of_quadrature(marginal, joint_grid):
    found = marginal.log_prob_and_error(GRID[0][:, None])
    expected = np.log(np.trapezoid(joint_grid, GRID[1], axis=1))
    near = expected > -8
    assert near.sum() > 80
    assert np.all(np.abs(found.log_prob - expected)[near] < 4.5 * found.error[near] + 1e-3)
    total = np.trapezoid(np.exp(found.log_prob), GRID[0])
    assert abs(total - 1.0) < 1e-2
    np.testing.assert_allclose(marginal.log_prob(GRID[0][:, None]), found.log_prob, rtol=1e-6)
    outside = marginal.log_prob_and_error(np.array([[-1.0], [np.nan]]))
    np.testing.assert_array_equal(outside.log_prob, [-np.inf, -np.inf])


def test_conditionals_integrate_to_one_and_agree_with_their_draws(flow, joint_grid):
    at = [60, 90]
    conditional = flow.condition_on({0: GRID[0][at]})
    assert (conditional.batch_shape, conditional.event_shape) == ((2,), (1,))
    found = conditional.log_prob_and_error(GRID[1][:, None, None])
    density = joint_grid[at].T
    cdf = np.cumsum(density, axis=0) / density.sum(0)
    density = density / np.trapezoid(density, GRID[1], axis=0)
    error = np.abs(np.exp(found.log_prob) / np.maximum(density, 1e-30) - 1.0)
    assert np.all(error[density > 1e-6] < (4.5 * np.asarray(found.error) + 1e-3)[density > 1e-6])
    draws = np.asarray(conditional.sample(jax.random.key(1), (500,)))
    weighted, log_weights = map(np.asarray, conditional.sample_weighted(jax.random.key(2), 2_000))
    np.testing.assert_allclose(np.exp(log_weights).sum(0), 1.0, rtol=1e-4)
    for column, own in enumerate(cdf.T):
        assert stats.kstest(draws[:, column, 0], lambda x, own=own: np.interp(x, GRID[1], own)).pvalue > 1e-3
        weights, values = np.exp(log_weights[:, column]), np.interp(weighted[:, column, 0], GRID[1], own)
        assert abs(weights @ values - 0.5) < 4.5 * np.sqrt((weights**2 * (values - 0.5) ** 2).sum())


@pytest.mark.slow
def test_draws_of_a_marginal_are_those_of_the_joint(flow, marginal):
    key = jax.random.key(3)
    np.testing.assert_array_equal(marginal.sample(key, (2, 3)), flow.sample(key, (2, 3))[..., :1])


@pytest.mark.slow
def test_the_gradient_is_that_of_the_marginal(marginal, joint_grid):
    log_density = np.log(np.trapezoid(joint_grid, GRID[1], axis=1))
    expected = np.gradient(log_density, GRID[0])[60:100:4]
    found = jax.jit(jax.vmap(jax.grad(lambda x: marginal.log_prob(x[None]))))(GRID[0][60:100:4])
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.fixture(scope="module")
def sites_flow(flow):
    """The same density, of sites of which one is a vector."""
    sites = Sites({"scale": (), "x": (1,)}, {"scale": constraints.positive})
    return FlowDistribution(flow.bijection, constrain=biject_to(sites))


@pytest.mark.slow
def test_sites(sites_flow, marginal, tmp_path):
    scale = sites_flow.marginal(["scale"])
    draws = scale.sample(jax.random.key(0), (7,))
    assert {name: value.shape for name, value in draws.items()} == {"scale": (7,)}
    np.testing.assert_allclose(scale.log_prob(draws), marginal.log_prob(draws["scale"][:, None]), rtol=1e-4)
    rest = sites_flow.condition_on({"scale": draws["scale"]})
    assert rest.sample(jax.random.key(1), (3,))["x"].shape == (3, 7, 1)
    for number, one in enumerate([scale, rest]):
        one.save(tmp_path / str(number))
        value = one.sample(jax.random.key(2))
        again = FlowDistribution.load(tmp_path / str(number))
        np.testing.assert_allclose(again.log_prob(value), one.log_prob(value), rtol=1e-5)


@pytest.mark.slow
def test_a_batch_of_conditions_and_parts_of_parts():
    bijection = made(lambda: flows.realnvp(jax.random.key(0), 3, cond_dim=1, num_layers=3, hidden=(8,)), scale=0.5)
    free = FlowDistribution(bijection)
    with pytest.raises(ValueError, match="given"):
        free.marginal([0])
    conditions = np.array([[-1.0], [2.0]], np.float32)
    both = free.given(conditions)
    x = np.asarray(both.sample(jax.random.key(1), (6,)))
    found = both.marginal([0, 2], num_particles=4_000).log_prob_and_error(x[..., [0, 2]])
    for i in range(2):
        key = jax.random.key(7)
        one = free.given(conditions[i]).marginal([2, 0], num_particles=4_000, rng_key=key)
        alone = one.log_prob_and_error(x[:, i, [2, 0]])
        error = np.hypot(alone.error, found.error[:, i])
        assert np.all(np.abs(alone.log_prob - found.log_prob[:, i]) < 4.5 * error)
        # the chain rule: p(x_0, x_2) = p(x_0) p(x_2 | x_0), each an estimate
        first = one.marginal([1]).log_prob_and_error(x[:, i, :1])
        then = one.condition_on({1: x[:, i, 0]}).log_prob_and_error(x[:, i, 2:])
        error = np.sqrt(first.error**2 + then.error**2 + alone.error**2)
        assert np.all(np.abs(first.log_prob + then.log_prob - alone.log_prob) < 4.5 * error + 1e-4)
        exact = one.condition_on({0: x[:, i, 2]}).sample(jax.random.key(2), (3,))
        assert exact.shape == (3, 6, 1)


@pytest.mark.slow
def test_two_moons_and_honest_errors():
    """z-scores of estimates by 20 keys, at 10 values each, against quadrature."""
    rng = np.random.default_rng(0)
    angle, upper = rng.uniform(0, np.pi, 2_000), rng.integers(0, 2, 2_000)[:, None] == 1
    moons = np.where(upper, np.c_[np.cos(angle), np.sin(angle)], np.c_[1 - np.cos(angle), 0.5 - np.sin(angle)])
    moons = moons + 0.1 * rng.normal(size=(2_000, 2))

    def small(key, dim, **options):
        return flows.nsf_coupling(key, dim, num_layers=4, hidden=(32,), **options)

    flow = fit_density(jax.random.key(0), moons, flow=small, base=dist.Normal(0, 1), num_steps=800, progress_bar=False)
    grid = np.linspace(-2.0, 3.0, 501), np.linspace(-2.0, 2.5, 901)
    points = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1)
    density = np.exp(np.asarray(jax.jit(flow.log_prob)(points), float))
    expected = np.log(np.trapezoid(density, grid[1], axis=1))
    at = np.arange(110, 400, 29)
    z = []
    for seed in range(20):
        found = flow.marginal([0], rng_key=jax.random.key(seed)).log_prob_and_error(grid[0][at, None])
        z.append((found.log_prob - expected[at]) / found.error)
    z = np.stack(z)
    assert z.size == 200
    assert 0.75 < z.std() < 1.25, z.std()
    assert abs(z.mean()) < 0.4
    total = np.trapezoid(np.exp(flow.marginal([0]).log_prob(grid[0][:, None])), grid[0])
    assert abs(total - 1.0) < 1e-2
    conditional = flow.condition_on({0: 0.5})
    values = np.exp(conditional.log_prob(grid[1][:, None]))
    row = np.exp(np.asarray(flow.log_prob(np.c_[np.full(901, 0.5), grid[1]])))
    np.testing.assert_allclose(values, row / np.trapezoid(row, grid[1]), rtol=0.1)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_columns_and_values_are_checked(flow, sites_flow):
    for columns, error, message in [
        ([2], ValueError, "from -2 to 1, got 2"),
        ([0, -2], ValueError, "each once"),
        ([], ValueError, "at least one"),
        (0, TypeError, "expected a list"),
        (["x"], TypeError, "expected an integer"),
    ]:
        with pytest.raises(error, match=message):
            flow.marginal(columns)
    with pytest.raises(ValueError, match=r"sites \['scale', 'x'\], got \['y'\]"):
        sites_flow.marginal(["y"])
    for values, error, message in [
        ({0: 1.0, 1: 0.0}, ValueError, "all of them"),
        ({0: -1.0}, ValueError, "within the support"),
        ({1: np.nan}, ValueError, "finite"),
        ([1.0], TypeError, "expected a dict"),
    ]:
        with pytest.raises(error, match=message):
            flow.condition_on(values)
    with pytest.raises(ValueError, match="expected the shape"):
        sites_flow.condition_on({"x": np.zeros(3)})
    with pytest.raises(ValueError, match="broadcast"):
        mixture_flow().condition_on({0: np.zeros(2), 1: np.zeros(3)})
    bounded = FlowDistribution(Identity((2,)), dist.LogNormal(jnp.zeros(2), 1.0).to_event(1))
    with pytest.raises(ValueError, match="expected a base on all real numbers, got one on"):
        bounded.marginal([1])
    with pytest.raises(ValueError, match="num_particles expected at least 2, got 1"):
        flow.marginal([0], num_particles=1)
    with pytest.raises(ValueError, match="a constraint for each column"):
        FlowDistribution(Identity((2,)), constrain=biject_to(constraints.simplex)).marginal([0])
    with pytest.raises(ValueError, match="flow of vectors"):
        FlowDistribution(Identity((2, 2))).marginal([0])


def test_a_poor_effective_sample_size_is_told(flow):
    with pytest.warns(UserWarning, match="effective sample size of"):
        flow.condition_on({1: 80.0})
