"""Densities that start from a mixture of Gaussians, and flows on other bases."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal
from scipy.stats import t as student_t

from numpyro_flows import FlowDistribution, fit_density, flows
from numpyro_flows.bijections import TriangularAffine
from numpyro_flows.density.base import checked_base, parameters_of, with_parameters
from numpyro_flows.density.mixture import GaussianMixture, clusters
from numpyro_flows.density.stacking import Stack

MEANS = np.array([[-4.0, 0.0], [3.0, 2.0], [3.0, -4.0]])
NORMAL = dist.Normal(0.0, 1.0)
ENTROPY = 1 + np.log(2 * np.pi) + np.log(3)  # of three normals far from each other


def affine(key, dim):
    """The quickest recipe to compile."""
    return TriangularAffine(jnp.zeros(dim), np.eye(dim))


fit = partial(fit_density, flow=affine, num_steps=50, progress_bar=False)


def three_normals(num, seed=0):
    rng = np.random.default_rng(seed)
    return MEANS[rng.integers(3, size=num)] + rng.normal(size=(num, 2))


@pytest.fixture(scope="module")
def three_modes():
    return fit(jax.random.key(0), three_normals(600), test=0.2)


def test_expectation_maximization_finds_the_components():
    x = three_normals(3000)
    mixture = GaussianMixture.of(x, np.ones(3000), clusters(x, 3, np.random.default_rng(0)))
    order = np.argsort(mixture.loc[:, 0] + 0.1 * mixture.loc[:, 1])
    np.testing.assert_allclose(mixture.loc[order], MEANS[[0, 2, 1]], atol=5 / np.sqrt(1000))
    np.testing.assert_allclose(mixture.covariance, [np.eye(2)] * 3, atol=0.2)
    components = [multivariate_normal(loc, cov) for loc, cov in zip(mixture.loc, mixture.covariance)]
    expected = np.log(sum(share * c.pdf(x[:9]) for share, c in zip(mixture.shares, components)))
    np.testing.assert_allclose(mixture.log_prob(x[:9]), expected, rtol=1e-8)
    np.testing.assert_allclose(mixture.distribution.log_prob(x[:9]), expected, rtol=1e-5)


def test_what_is_trained_on_is_the_mixture():
    """Its density by matrix products is NumPyro's, and components without a share change nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)) @ np.array([[1.0, 0.0, 0.0], [2.0, 0.3, 0.0], [-1.0, 0.2, 2.0]]).T
    mixture = GaussianMixture.of(x, np.ones(500), clusters(x, 4, rng))
    exact = mixture.log_prob(x[:50])
    np.testing.assert_allclose(mixture.distribution.log_prob(x[:50]), exact, rtol=1e-4, atol=1e-4)
    for filled in (mixture, mixture.filled(len(mixture.shares)), mixture.filled(9)):
        np.testing.assert_allclose(jax.jit(filled.to_train_on.log_prob)(x[:50]), exact, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(filled.log_prob(x[:50]), exact)
    assert len(mixture.filled(9).shares) == 9


def test_weights_count_as_copies_do():
    x = np.random.default_rng(0).normal(size=(200, 3))
    counts = np.random.default_rng(1).integers(1, 4, size=200)
    labels = np.arange(200) % 2
    weighted = GaussianMixture.of(x, counts.astype(float), labels)
    copied = GaussianMixture.of(np.repeat(x, counts, 0), np.ones(counts.sum()), np.repeat(labels, counts))
    np.testing.assert_allclose(weighted.loc, copied.loc, atol=1e-6)
    np.testing.assert_allclose(weighted.covariance, copied.covariance, atol=1e-6)


def test_a_stack_is_at_least_as_good_as_its_best_member_on_rows_held_out():
    x = np.random.default_rng(0).normal(size=(300, 5))
    stack = Stack.of(x, np.ones(300), np.random.default_rng(0))
    assert stack is not None
    assert stack.shares.sum() == pytest.approx(1.0)
    one = Stack.of(x, np.ones(300), np.random.default_rng(0), counts=(1,))
    assert one is not None
    assert stack.held_out >= one.held_out - 0.01
    assert Stack.of(np.zeros((200, 101)), np.ones(200), np.random.default_rng(0)) is None


@pytest.mark.parametrize(("num", "dim"), [(15, 10), (100, 64)])
def test_few_rows_for_their_columns(num, dim):
    """Uncorrelated columns: as good as a Gaussian of their means and variances, whose rows are few as well."""
    x, fresh = np.random.default_rng(0).normal(size=(num, dim)), np.random.default_rng(1).normal(size=(1000, dim))
    stack = Stack.of(x, np.ones(num), np.random.default_rng(2))
    assert stack is not None
    nll = -stack.fit(x, np.ones(num), np.random.default_rng(3)).log_prob(fresh).mean()
    independent = 0.5 * np.log(2 * np.pi * x.var(0)) + 0.5 * ((fresh - x.mean(0)) ** 2).mean(0) / x.var(0)
    assert nll < independent.sum() + 0.1 * dim


def test_rows_without_weight_count_for_nothing():
    x = np.random.default_rng(0).normal(size=(5_000, 2))
    weights = np.where(np.arange(5_000) < 60, 1.0, 0.0)
    x[60:] += 100.0
    some = Stack.of(x, weights, np.random.default_rng(1))
    assert some is not None
    assert np.abs(some.fit(x, weights, np.random.default_rng(1)).loc).max() < 4.0
    assert Stack.of(x, (np.arange(5_000) < 9).astype(float), np.random.default_rng(1)) is None


def test_scores_do_not_depend_on_the_mean_weight_of_the_rows_held_out():
    """A constant in the log density, by other units, adds as much to a score."""
    x, weights = three_normals(300), np.where(np.random.default_rng(0).uniform(size=300) < 0.1, 1.0, 0.0)
    one, other = (fit(jax.random.key(0), units * x, weights=weights, base=NORMAL, num_steps=1) for units in (1.0, 1e3))
    assert other.fit.held_out.nll - one.fit.held_out.nll == pytest.approx(2 * np.log(1e3), abs=0.01)


def test_a_mixture_is_kept_where_a_flow_wins_nothing(three_modes, tmp_path):
    report = three_modes.fit
    assert report.kept == "mixture"
    assert set(report.baselines) == {"gaussian", "mixture"}
    assert report.held_out == report.baselines["mixture"]
    assert report.test.nll == pytest.approx(ENTROPY, abs=0.05 + 3 * report.test.se)
    assert report.baselines["gaussian"].nll > ENTROPY + 0.3
    path = tmp_path / "density"
    three_modes.save(path)
    again: Any = FlowDistribution.load(path)
    x = three_normals(5, seed=1)
    np.testing.assert_allclose(again.log_prob(x), three_modes.log_prob(x), rtol=1e-6)
    assert (again.fit.kept, again.fit.baselines) == (report.kept, report.baselines)


def test_the_density_integrates_to_1(three_modes):
    grid = np.linspace(-14, 14, 281)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    assert np.exp(jax.jit(three_modes.log_prob)(points)).sum() * 0.1**2 == pytest.approx(1.0, abs=1e-3)


def test_the_summary_says_what_was_kept(three_modes, capsys):
    three_modes.fit.print_summary()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("kept")] == ["mixture"]
    assert any(line.startswith("  flow") for line in lines)
    held_out = three_modes.fit.held_out
    expected = f"FlowDistribution(event_shape=(2,), base=MixtureSameFamily, kept='mixture', held_out={held_out})"
    assert repr(three_modes) == expected


@pytest.mark.slow
def test_training_goes_on_from_a_mixture(three_modes):
    x = three_normals(600)
    with pytest.warns(UserWarning, match="the mixture .* was fitted to all rows of its data"):
        more = fit(jax.random.key(0), x, flow=three_modes)
    assert more.fit.held_out.nll <= more.fit.validation[0] + 1e-4
    assert isinstance(more.base_dist, dist.MixtureSameFamily)


def test_a_student_t_base_learns_its_degrees_of_freedom():
    x = np.random.default_rng(0).standard_t(3.0, size=(5000, 2))
    flow = fit(jax.random.key(0), x, base=dist.StudentT(30.0, jnp.zeros(2)), num_steps=1500, learning_rate=0.03)
    base: Any = flow.base_dist
    assert flow.fit.kept == "flow"
    np.testing.assert_allclose(base.base_dist.df, 3.0, atol=0.6)  # 5 standard errors
    exact = -2 * np.mean(student_t.logpdf(x, 3.0))
    assert flow.fit.held_out.nll == pytest.approx(exact, abs=4 * flow.fit.held_out.se)


@pytest.mark.slow
def test_a_base_made_of_others_is_trained_and_kept(tmp_path):
    mixing, loc = dist.Categorical(probs=jnp.array([0.3, 0.7])), jnp.array([[-1.0, 0.0], [1.0, 0.0]])
    base = dist.MixtureSameFamily(mixing, dist.MultivariateNormal(loc, precision_matrix=jnp.eye(2)))
    x = three_normals(300)
    flow = fit(jax.random.key(0), x, base=base)
    assert flow.fit.held_out.nll < flow.fit.validation[0]
    trained: Any = flow.base_dist
    assert not np.allclose(trained.mixing_distribution.probs, base.mixing_distribution.probs)
    flow.save(tmp_path / "flow")
    np.testing.assert_allclose(FlowDistribution.load(tmp_path / "flow").log_prob(x), flow.log_prob(x), rtol=1e-6)


def test_a_distribution_of_one_number_is_a_base_of_all():
    base = checked_base(dist.StudentT(5.0), 3)
    assert base is not None
    assert base.event_shape == (3,)
    again = with_parameters(base, parameters_of(base))
    assert again is not None
    np.testing.assert_allclose(again.log_prob(np.ones(3)), base.log_prob(np.ones(3)), rtol=1e-6)


def test_errors_of_bases():
    x = three_normals(100)
    with pytest.raises(TypeError, match=r"base expected a NumPyro distribution, for example dist.StudentT\(5.0\)"):
        fit(jax.random.key(0), x, base="normal")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"base expected events of shape \(2,\) and no batch"):
        fit(jax.random.key(0), x, base=dist.Normal(jnp.zeros(3)).to_event(1))
    with pytest.raises(ValueError, match="flow_matching expected a standard normal base"):
        fit(jax.random.key(0), x, flow=flows.ffjord, objective="flow_matching", base=dist.StudentT(5.0))
    with pytest.raises(ValueError, match="base expected None because flow is a distribution"):
        fit(jax.random.key(0), x, flow=FlowDistribution(affine(None, 2)), base=NORMAL)
    for base in (dist.HalfNormal(1.0), dist.Poisson(3.0), dist.Uniform(-1.0, 1.0)):
        with pytest.raises(ValueError, match="base expected a distribution of all real numbers"):
            fit(jax.random.key(0), x, base=base)


def test_columns_that_are_functions_of_others():
    x = three_normals(100)
    with pytest.warns(UserWarning, match="1 of 3 columns are linear functions of others"):
        fit(jax.random.key(0), np.c_[x, x.sum(1)], base=NORMAL, num_steps=1)
    with pytest.raises(ValueError, match="more rows than coordinates, and at least 3, got 2 rows of 1"):
        fit(jax.random.key(0), np.array([0.1, 0.7]))


def test_conditions_that_are_alike_but_for_rounding():
    flow = fit_density(
        jax.random.key(0),
        np.random.default_rng(0).normal(size=300),
        condition=np.full((300, 1), 0.3),
        flow=partial(flows.realnvp, num_layers=1, hidden=(4,)),
        num_steps=20,
        progress_bar=False,
    )
    near = np.asarray(flow.given(jnp.array([[0.3], [0.301]])).log_prob(np.zeros(2)))
    assert abs(near[1] - near[0]) < 0.1
