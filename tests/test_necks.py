"""The exact answers of `benchmarks.necks`, each computed in another way."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.diagnostics import effective_sample_size
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam
from scipy.special import logsumexp

from benchmarks.necks import cases, models
from benchmarks.necks.case import Marginal, midpoints
from benchmarks.necks.effects import Effects, by_scale, log_integrals, poisson
from benchmarks.necks.normal import Crossed, gamma_truth, pilots_truth
from benchmarks.necks.scoring import Score
from benchmarks.traps import improper, shapes
from benchmarks.traps.cases import CASES
from numpyro_flows import FlowVI

DATABASE = Path(os.environ.get("POSTERIORDB", Path(__file__).parents[2] / "shared" / "posteriordb"))
EFFECTS = {
    "pilots-pilots": ("a", "b"),
    "GLMM_Poisson_data-GLMM_Poisson_model": ("eps",),
    "surgical_data-surgical_model": ("b",),
    "seeds_data-seeds_model": ("b",),
}


def test_a_crossed_table_against_its_covariance():
    table = np.random.default_rng(0).normal(0.5, 1.0, (3, 4))
    of_row, of_column, of_noise, of_mean = 0.7, 1.9, 0.3, 20.0
    same_row, same_column = np.kron(np.eye(3), np.ones((4, 4))), np.kron(np.ones((3, 3)), np.eye(4))
    covariance = of_row * same_row + of_column * same_column + of_noise * np.eye(12) + of_mean
    normal: Any = scipy.stats.multivariate_normal
    expected = normal.logpdf(table.ravel(), np.zeros(12), covariance)
    found = Crossed.of(table).log_likelihood(np.asarray(of_row), np.asarray(of_column), np.asarray(of_noise), of_mean)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_neck_against_the_trap():
    args = CASES["gamma neck, 22 dimensions"].args
    found, expected = gamma_truth(*args), shapes.neck_truth(*args)
    assert found.log_evidence == pytest.approx(expected.log_evidence, abs=1e-5)
    below = [found.marginals["log tau"].below(quartile) for quartile in expected.quantiles["log_tau"]]
    np.testing.assert_allclose(below, [0.25, 0.5, 0.75], atol=1e-3)


@pytest.mark.slow
def test_integrals_over_an_effect_against_a_fine_grid(x64):
    """From a scale near zero, where the integral is the likelihood, to one at which the data alone know the effect."""
    counts, eta = np.array([0.0, 3.0, 250.0]), np.array([-0.5, 2.0, 4.0])
    z = np.linspace(-12.0, 12.0, 100_001)
    sigmas = np.array([1e-6, 0.3, 4.0])
    found = jax.vmap(lambda sigma: log_integrals(poisson(counts), jnp.asarray(eta), sigma))(jnp.asarray(sigmas))
    for integrals, sigma in zip(found, sigmas):
        rate = np.exp(eta[:, None] + sigma * z)
        logs = scipy.stats.poisson.logpmf(counts[:, None], rate) + scipy.stats.norm.logpdf(z)
        np.testing.assert_allclose(integrals, logsumexp(logs, axis=1) + np.log(z[1] - z[0]), atol=1e-3)


def test_a_marginal_and_its_score():
    grid = midpoints(-8.0, 8.0, 800)
    exact = Marginal.on_grid(grid, scipy.stats.norm.pdf(grid))
    found = [exact.mean, exact.sd, exact.below(1.0)]
    np.testing.assert_allclose(found, [0.0, 1.0, float(scipy.stats.norm.cdf(1.0))], atol=1e-4)
    x = np.random.default_rng(0).normal(size=20_000)
    assert Score.of(x, x.size, exact).asked
    cut = Score.of(x[x > -2.0], x.size, exact)
    assert not cut.asked
    np.testing.assert_allclose(cut.below, float(scipy.stats.norm.cdf(-2.0)), rtol=0.02)
    np.testing.assert_allclose(Score.of(x, x.size, exact).sd_error_se, (2 * x.size) ** -0.5, rtol=0.05)


@pytest.mark.slow
def test_pilots_by_importance_sampling(x64):
    """Scales from a proposal around the exact answer's means, all else integrated by the covariance of the data."""
    rng = np.random.default_rng(0)
    table = rng.normal(0.5, 0.4, (5, 8)) + rng.normal(0.0, 0.5, 8)
    truth = pilots_truth(table)
    exact = list(truth.marginals.values())
    loc, scale = np.array([m.mean for m in exact]), 1.2 * np.array([m.sd for m in exact])
    log_scales = loc + scale * rng.standard_t(3.0, (40_000, 3))
    logs = np.full(len(log_scales), -np.inf)
    rows, columns = np.kron(np.eye(5), np.ones((8, 8))), np.kron(np.ones((5, 5)), np.eye(8))
    for i, (a, b, y) in enumerate(np.exp(2.0 * log_scales)):
        if max(a, b, y) < models.LARGEST_SCALE**2:
            factor = np.linalg.cholesky(a * rows + b * columns + y * np.eye(40) + 200.0)
            z = np.linalg.solve(factor, table.ravel())
            logs[i] = -0.5 * (z @ z + 40 * np.log(2.0 * np.pi)) - np.log(np.diag(factor)).sum()
    logs += log_scales.sum(1) - 3.0 * np.log(models.LARGEST_SCALE)
    logs -= (scipy.stats.t.logpdf((log_scales - loc) / scale, 3.0) - np.log(scale)).sum(1)
    weights = np.exp(logs - logs.max())
    num = weights.sum() ** 2 / (weights**2).sum()
    assert num > 2_000
    assert abs(np.log(weights.mean()) + logs.max() - truth.log_evidence) < 5 * num**-0.5
    for x, marginal in zip(log_scales.T, exact):
        mean = np.average(x, weights=weights)
        assert abs(mean - marginal.mean) < 5 * marginal.sd * num**-0.5
        assert abs(np.average((x - mean) ** 2, weights=weights) ** 0.5 / marginal.sd - 1.0) < 10 * num**-0.5


@pytest.mark.slow
def test_integrated_effects_by_draws_of_the_prior(x64):
    """Coefficient, log scale and effects from their priors, with the likelihood as weights."""
    counts, num = np.array([0.0, 2.0, 5.0]), 400_000
    effects = Effects(
        np.ones((3, 1)),
        poisson(counts),
        lambda x: dist.Normal(0.5, 1.0).log_prob(x).sum(),
        dist.Normal(-1.0, 1.0).log_prob,
        np.array([0.5]),
    )
    exact = by_scale(effects, midpoints(-8.0, 5.0, 130), "log sigma")
    rng = np.random.default_rng(0)
    coefficient, log_sigma = rng.normal(0.5, 1.0, num), rng.normal(-1.0, 1.0, num)
    eta = coefficient + np.exp(log_sigma) * rng.normal(size=(3, num))
    weights = np.exp(scipy.stats.poisson.logpmf(counts[:, None], np.exp(eta)).sum(0))
    effective = weights.sum() ** 2 / (weights**2).sum()
    assert exact.log_evidence_se < 1e-3
    assert abs(np.log(weights.mean()) - exact.log_evidence) < 5 * effective**-0.5
    marginal = exact.marginals["log sigma"]
    mean = np.average(log_sigma, weights=weights)
    sd = np.average((log_sigma - mean) ** 2, weights=weights) ** 0.5
    assert abs(mean - marginal.mean) < 5 * marginal.sd * effective**-0.5
    assert abs(sd / marginal.sd - 1.0) < 5 * effective**-0.5


@pytest.mark.slow
@pytest.mark.skipif(not DATABASE.exists(), reason="no clone of posteriordb")
@pytest.mark.parametrize("name", EFFECTS)
def test_exact_marginals_by_nuts(name, x64):
    """Of the NumPyro models themselves, non-centred, so that NUTS reaches into the necks."""
    case = cases.cases(DATABASE)[name]
    exact = case.truth()
    model = reparam(case.model, config=dict.fromkeys(EFFECTS[name], LocScaleReparam(0.0)))
    mcmc = MCMC(
        NUTS(model, target_accept_prob=0.9),
        num_warmup=1_000,
        num_samples=2_000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), *case.args)
    draws = {site: np.asarray(x) for site, x in mcmc.get_samples(group_by_chain=True).items()}
    for scale, x in case.log_scales(draws).items():
        marginal, num = exact.marginals[scale], effective_sample_size(x)
        assert num > 400
        assert abs(x.mean() - marginal.mean) < 5 * marginal.sd * num**-0.5
        for probability in (0.05, 0.25, 0.5, 0.75, 0.95):
            below = (x < np.interp(probability, marginal.cdf, marginal.values)).mean()
            assert abs(below - probability) < 5 * (probability * (1.0 - probability) / num) ** 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the fit is not certified")
@pytest.mark.parametrize("number", [0, 1])
def test_single_precision_does_not_hide_an_improper_end(number):
    """Its arithmetic ends where the marginal of log(tau) is still high; all draws lie before."""
    case = improper.VARIATIONS["improper: 12 groups that are alike, prior 1/tau"]
    fit = FlowVI(case.model, fallback=None, progress_bar=False).run(jax.random.key(number), *case.args)
    assert not fit.certified
    assert "tau" in fit.why
