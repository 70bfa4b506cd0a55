"""`benchmarks.traps`: what default FlowVI says of some, and the exact answers of all, each computed in another way."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.handlers import seed, trace
from numpyro.infer.util import log_density
from scipy.special import logsumexp

from benchmarks.traps import improper, modes, shapes, tails, variations
from benchmarks.traps.case import Case, Truth, normals
from benchmarks.traps.cases import CASES
from benchmarks.traps.scoring import score
from benchmarks.traps.truth import PROBABILITIES, by_grid, by_importance, in_chunks, weighted_moments
from numpyro_flows import FlowPosterior, FlowVI

KEY = jax.random.key(0)
QUICK_PRIORS = {"crossed bars": 50_000, "HalfCauchy, no data": 50_000}  # moments, and quantiles
SLOW_PRIORS = {
    "spike-and-slab prior, 2 dimensions, spike 0.001": 50_000,
    "half-normal funnel, 10 dimensions": 50_000,
    "spike-and-slab prior, 20 dimensions, spike 0.2": 100_000,
    "120 small modes": 100_000,
    "two modes, 300 dimensions": 10_000,
    "spike-and-slab prior by MixtureGeneral, 7 dimensions": 100_000,
    "three crossed bars": 100_000,
    "40 small modes on a sphere": 100_000,
    "InverseGamma(0.7, 1), no data": 200_000,
}
PRIORS = [*QUICK_PRIORS.items(), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW_PRIORS.items())]
SLOW_GRIDS = ["kink", "kink, other data", "distance of two sites", "product of two sites"]
GRIDS = ["angle at the seam", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_GRIDS)]


def prior_draws(case, num):
    """Independent draws of all latent sites."""

    def draw(key):
        sites = trace(seed(case.model, key)).get_trace(*case.args)
        samples = [site for site in sites.values() if site["type"] == "sample"]
        return {site["name"]: site["value"] for site in samples if not site["is_observed"]}

    return in_chunks(draw, jax.random.split(jax.random.key(0), num))


def weighted(case, num):
    """Draws of the prior with the likelihood as weights, and the log evidence."""
    draws = prior_draws(case, num)
    logs = in_chunks(lambda sites: log_likelihood(case, sites), draws)
    weights = np.exp(logs - logs.max())
    return draws, weights / weights.sum(), np.log(weights.mean()) + logs.max()


def log_likelihood(case, sites):
    substituted = log_density(case.model, case.args, {}, sites)[1]
    return sum(
        site["fn"].log_prob(site["value"]).sum()
        for site in substituted.values()
        if site["type"] == "sample" and site["is_observed"]
    )


def exact_answer(case: Case) -> Any:
    assert case.truth is not None
    return case.truth()


def density(case, sites):
    return jax.jit(jax.vmap(lambda sites: log_density(case.model, case.args, {}, sites)[0]))(sites)


def assert_close(moments, truth, num_effective):
    """Means within 5 standard errors, standard deviations within 5 of a distribution with kurtosis 9."""
    for name, (mean, sd) in truth.items():
        np.testing.assert_array_less(abs(moments[name][0] - mean) / sd, 5 * num_effective**-0.5)
        np.testing.assert_array_less(abs(moments[name][1] / sd - 1), 5 * (2 / num_effective) ** 0.5)


@pytest.mark.parametrize(("name", "num"), PRIORS)
def test_priors_alone(x64, name, num):
    case = CASES[name]
    draws = prior_draws(case, num)
    draws |= case.derived(draws)
    truth = exact_answer(case)
    assert truth.log_evidence == 0.0
    assert_close(weighted_moments(draws, np.full(num, 1 / num)), truth.moments, num)
    for site, exact in truth.quantiles.items():
        np.testing.assert_allclose((draws[site] < exact[:, None]).mean(1), PROBABILITIES, atol=2.5 * num**-0.5)


@pytest.mark.parametrize("name", GRIDS)
def test_quadrature_against_draws_of_the_prior(x64, name):
    case = CASES[name]
    draws, weights, log_evidence = weighted(case, 100_000)
    num_effective = 1 / (weights**2).sum()
    assert num_effective > 500
    truth = exact_answer(case)
    assert abs(log_evidence - truth.log_evidence) < 5 * num_effective**-0.5
    assert_close(weighted_moments(draws | case.derived(draws), weights), truth.moments, num_effective)


@pytest.mark.slow
def test_the_spike_of_the_regression_has_the_weight_of_the_table(x64):
    case = CASES["spike-and-slab regression"]
    draws, weights, log_evidence = weighted(case, 100_000)
    spike = np.abs(draws["b"]).max(1) < 0.2
    assert abs(weights[spike].sum() - 0.77) < 0.02
    truth = exact_answer(case)
    num_effective = 1 / (weights**2).sum()
    assert abs(log_evidence - truth.log_evidence) < 5 * num_effective**-0.5
    assert_close(weighted_moments(draws, weights), truth.moments, num_effective)


def test_a_factor_writes_the_same_mixture(x64):
    """Pointwise the prior of the regression, by its definition."""
    case = CASES["spike-and-slab regression by a factor"]
    b = np.random.default_rng(0).normal(size=(20, 8)) * np.where(np.arange(20) < 10, 0.02, 1.0)[:, None]
    x, y = case.args
    parts = [scipy.stats.norm.logpdf(b, 0, sd).sum(1) + np.log(weight) for sd, weight in ((0.02, 0.4), (1.0, 0.6))]
    expected = np.logaddexp(*parts) + scipy.stats.norm.logpdf(y, b @ x.T, 0.8).sum(1)
    np.testing.assert_allclose(density(case, {"b": b}), expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["half-width bump, 5 dimensions", "third-width bump, 4 dimensions"])
def test_bumps_are_the_mixture(x64, name):
    case = CASES[name]
    mixtures = {"half": modes.half_width_bump(5), "thir": normals([0.7, 0.3], [0, [-6, 6, 0, 0]], [1, 1 / 3], 4)}
    mixture = mixtures[name[:4]]
    x = np.random.default_rng(0).normal(size=(20, mixture.means.shape[1])) * 4
    parts = [
        np.log(weight) + scipy.stats.norm.logpdf(x, mean, sd).sum(1)
        for weight, mean, sd in zip(mixture.probs, mixture.means, mixture.sds)
    ]
    np.testing.assert_allclose(density(case, {"x": x}), logsumexp(parts, axis=0), rtol=1e-10)


def test_tails_along_no_axis_against_draws(x64):
    """The density is that of `x = q z`, and the quartiles are those of its draws."""
    case, q = CASES["Student-t(1.5) along no axis, 5 dimensions"], tails.rotation(11, 5)
    z = np.random.default_rng(0).normal(size=(400_000, 5))
    z[:, 0] = scipy.stats.t.rvs(1.5, size=400_000, random_state=1)
    quartiles = np.quantile(z @ q.T, PROBABILITIES, axis=0)
    np.testing.assert_allclose(quartiles, exact_answer(case).quantiles["x"], atol=0.01)
    expected = scipy.stats.t.logpdf(z[:20, 0], 1.5) + scipy.stats.norm.logpdf(z[:20, 1:]).sum(1)
    np.testing.assert_allclose(density(case, {"x": z[:20] @ q.T}), expected, rtol=1e-10)


def test_an_intercept_behind_dummies_has_its_prior(x64):
    """Given the intercept, the effects' integral is the same; checked by the density at the effects' means."""
    case = CASES["Cauchy intercept behind dummies"]
    truth, (level, y) = exact_answer(case), case.args
    mean, sd = truth.moments["level_mean"]
    intercept = np.array([-30.0, 0.0, 4.0])
    logs = density(case, {"intercept": intercept, "effect": mean - intercept[:, None]})
    laplace = logs - scipy.stats.cauchy.logpdf(intercept, 0, 2.5) + np.log(sd * np.sqrt(2 * np.pi)).sum()
    np.testing.assert_allclose(laplace, truth.log_evidence, rtol=1e-10)
    rng = np.random.default_rng(0)
    draws = rng.normal(mean[0], sd[0], 400_000) - 2.5 * rng.standard_cauchy(400_000)
    np.testing.assert_allclose(np.quantile(draws, PROBABILITIES), truth.quantiles["effect"][:, 0], atol=0.05)
    assert np.isclose(mean[1], y[level == 1].mean())


@pytest.mark.slow
def test_a_horseshoe_against_draws_of_the_prior(x64):
    case = CASES["horseshoe regression"]
    draws, weights, log_evidence = weighted(case, 1_000_000)
    truth, num_effective = exact_answer(case), 1 / (weights**2).sum()
    assert num_effective > 3_000
    assert abs(log_evidence - truth.log_evidence) < 5 * num_effective**-0.5
    beta = {"beta": draws["z"] * draws["local"] * draws["tau"][:, None]}
    assert_close(weighted_moments(beta, weights), truth.moments, num_effective)
    for site, exact in truth.quantiles.items():
        for k in range(3):
            below = np.tensordot(weights, draws[site] < exact[k], 1)
            np.testing.assert_allclose(below, PROBABILITIES[k], atol=2.5 * num_effective**-0.5)


@pytest.mark.slow
def test_a_neck_against_draws_of_the_hyperparameters(x64):
    """Groups integrated by hand, mean and scale by importance sampling from their priors."""
    y, shape, noise = CASES["gamma neck, 22 dimensions"].args
    rng = np.random.default_rng(0)
    tau, mu = rng.gamma(shape, 1 / shape, 400_000), rng.normal(0, 5, 400_000)
    sd = np.hypot(tau, noise)
    logs = scipy.stats.norm.logpdf(y[:, None], mu, sd).sum(0)
    weights = np.exp(logs - logs.max())
    truth, num_effective = shapes.neck_truth(y, shape, noise), weights.sum() ** 2 / (weights**2).sum()
    assert abs(np.log(weights.mean()) + logs.max() - truth.log_evidence) < 5 * num_effective**-0.5
    weights /= weights.sum()
    theta = mu + (y[:, None] - mu) * (tau / sd) ** 2 + rng.normal(size=(20, 400_000)) * noise * tau / sd
    moments = weighted_moments({"mu": mu, "tau": tau, "theta": theta.T}, weights)
    assert_close(moments, truth.moments, num_effective)
    below = weights @ (np.log(tau)[:, None] < truth.quantiles["log_tau"])
    np.testing.assert_allclose(below, PROBABILITIES, atol=2.5 * num_effective**-0.5)


def two_means(y):
    """The model of the case, with a scalar site for each mean."""
    means = [jnp.asarray(numpyro.sample(name, dist.Normal(0, 5))) for name in ("first", "second")]
    densities = [dist.Normal(mean, 1.0).log_prob(y) for mean in means]
    numpyro.factor("likelihood", (jnp.logaddexp(*densities) - jnp.log(2.0)).sum())


@pytest.mark.slow
def test_both_labellings_count_alike(x64):
    """Two means on a grid, on which both labellings lie, against one labelling and its mirror image."""
    case, grid = CASES["label switching, 2 dimensions"], np.linspace(-4, 4, 161)
    exact, truth = by_grid(two_means, case.args, {"first": grid, "second": grid}), exact_answer(case)
    assert abs(truth.log_evidence - exact.log_evidence) < 0.02
    for k, name in enumerate(("first", "second")):
        assert abs(truth.moments["mean"][0][k] - exact.moments[name][0]) < 0.02
        np.testing.assert_allclose(truth.moments["mean"][1][k], exact.moments[name][1], rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["label switching, 5 dimensions", "label switching, 10 dimensions"])
def test_a_labelling_by_importance_sampling_is_resolved(x64, name):
    truth = CASES[name].truth
    assert isinstance(truth, partial)
    model, args, start = truth.args
    _, weights, _ = by_importance(model, args, start)
    assert 1 / (weights**2).sum() > 20_000


def test_improper_densities_do_not_fall(x64):
    """Along one direction each density, with the other sites integrated where it matters, never approaches zero."""
    far = np.array([10.0, 100.0, 1000.0])
    rising = {"logit": far}
    logs = density(improper.CASES["improper: flat logit, five ones"], rising)
    np.testing.assert_allclose(logs, 0.0, atol=1e-3)
    logs = density(improper.VARIATIONS["improper: separated classes"], {"a": 0 * far, "b": far})
    assert np.all(np.diff(logs) >= 0)
    y = improper.VARIATIONS["improper: flat scale, two groups"].args[0]
    # given sigma, groups and mean integrate to this: sigma times it stays constant
    marginal = scipy.stats.norm.pdf(y[0] - y[1], 0, np.sqrt(2 * (1 + far**2)))
    np.testing.assert_allclose(far * marginal, 1 / np.sqrt(4 * np.pi), rtol=0.02)
    assert not any(case.proper for case in (*improper.CASES.values(), *improper.VARIATIONS.values()))


def test_scores_see_errors_and_allow_for_monte_carlo():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_000)
    truth = Truth(1.0, {"x": (np.zeros(()), np.ones(()))})
    quartiles = Truth(None, {}, {"x": scipy.stats.norm.ppf(PROBABILITIES)})
    assert not score({"x": x}, 20_000, 1.04, truth).wrong
    assert not score({"x": x + 0.11}, 20_000, 1.0, truth).wrong
    assert score({"x": x + 0.14}, 20_000, 1.0, truth).wrong
    assert score({"x": 1.14 * x}, 20_000, 1.0, truth).wrong
    assert score({"x": x}, 20_000, 0.94, truth).wrong
    assert score({"x": x * np.nan}, 20_000, 1.0, truth).wrong
    assert score({"x": x}, 20_000, float("nan"), truth).wrong
    assert not score({"x": x}, 20_000, float("nan"), quartiles).wrong
    assert score({"x": x + 0.2}, 20_000, 0.0, quartiles).wrong
    assert score({"x": 1.5 * x}, 20_000, 0.0, quartiles).wrong
    assert score({"x": x * np.nan}, 20_000, 0.0, quartiles).wrong


def test_every_case_has_a_name_of_its_own():
    parts = (modes.CASES, improper.CASES, tails.CASES, shapes.CASES, variations.CASES)
    assert len(CASES) == sum(map(len, parts))
    assert sum(case.kind == "variation" for case in CASES.values()) >= 12


def missing(percent, by="draws around other modes"):
    """The text for about so much that a fit lacks, by these probes among others."""
    near = "|".join(str(near) for near in range(percent - 2, percent + 3))
    return rf"a search found elsewhere about ({near})% of the posterior, which the fit lacks \(.*{by}"


CAUSES = {
    "half-width bump, 5 dimensions": missing(40),
    "kink": missing(42),
    "120 small modes": missing(50, "draws of the prior"),  # 49% are right
    "two modes, 300 dimensions": missing(30),
    "improper: flat logit, five ones": "the posterior is improper: far out its density falls too slowly",
    "improper: 20 groups, prior 1/tau": "the marginal density of tau does not fall towards its lower end",
}
SLOW_CAUSES = [pytest.param(*pair, marks=[pytest.mark.slow, pytest.mark.optimized]) for pair in CAUSES.items()]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cause"), [("spike-and-slab regression", missing(23)), *SLOW_CAUSES])
def test_a_trap_is_not_certified_and_the_cause_is_named(x64, name, cause):
    case = CASES[name]
    with pytest.warns(UserWarning, match="not certified"):
        posterior = FlowVI(case.model, fallback=None, progress_bar=False, **case.settings).run(KEY, *case.args)
    assert not posterior.certified
    assert re.search(cause, posterior.why)


RESCUED = ["half-width bump, 5 dimensions", "kink", "120 small modes", "two modes, 300 dimensions"]
SLOW_RESCUED = [pytest.param(name, marks=[pytest.mark.slow, pytest.mark.optimized]) for name in RESCUED]


@pytest.mark.parametrize("name", ["spike-and-slab regression", *SLOW_RESCUED])
def test_a_trap_ends_with_right_draws(x64, name):
    """By the fallback, which is the default."""
    case = CASES[name]
    posterior = FlowVI(case.model, progress_bar=False, **case.settings).run(KEY, *case.args)
    assert posterior.certified
    assert posterior.chains is not None
    draws = {name: np.asarray(x) for name, x in posterior.sample(jax.random.key(1), 20_000).items()}
    assert not score(draws | case.derived(draws), 10_000, posterior.log_evidence, exact_answer(case)).wrong


def standard_normal():
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def verified(verify: Any) -> FlowPosterior:
    posterior = FlowVI(standard_normal, verify=verify, progress_bar=False).run(jax.random.key(0))
    assert posterior.certified
    return posterior


def cost_of_search(posterior: FlowPosterior) -> int:
    return sum(check.cost for check in posterior.certificate.checks[1:])


def test_a_verdict_by_weights_says_that_nothing_was_searched(tmp_path):
    posterior = verified("weights")
    assert "not checked by a search elsewhere" in posterior.verdict()
    assert [check.name for check in posterior.certificate.checks if check.run] == ["weights"]
    assert cost_of_search(posterior) == 0
    posterior.save(tmp_path / "fit")
    assert "by its weights alone" in FlowPosterior.load(tmp_path / "fit", standard_normal).why
    with pytest.raises(ValueError, match="verify expected"):
        verified("none")


@pytest.mark.slow
def test_a_thorough_search_costs_more_than_the_default():
    auto, thorough = verified("auto"), verified("thorough")
    assert "checked by weights, draws of the prior" in auto.verdict()
    assert 0 < 5 * cost_of_search(auto) < cost_of_search(thorough)
