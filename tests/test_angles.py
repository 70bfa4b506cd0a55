"""Angles on the real line: the posterior repeats itself, and a fit counts one period of it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
from numpyro.handlers import reparam
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.reparam import CircularReparam

from numpyro_flows import FlowVI, verify_fit
from numpyro_flows.inference.gaussian import GaussianFit, no_climbs
from numpyro_flows.inference.one_period import narrowed, within_period

GRID = np.linspace(-np.pi, np.pi, 20_001)


def angle(concentration, axis):
    """A von Mises distribution times a likelihood that knows only the axis: two modes where it is strong."""
    with reparam(config={"phi": CircularReparam()}):
        phi = numpyro.sample("phi", dist.VonMises(0.5, concentration))
    numpyro.factor("axis", axis * jnp.cos(2 * phi))


def exact(concentration, axis):
    """Log evidence, and the mean cosine."""
    joint = np.exp(concentration * np.cos(GRID - 0.5) + axis * np.cos(2 * GRID))
    joint /= 2 * np.pi * scipy.special.i0(concentration)
    evidence = np.trapezoid(joint, GRID)
    return np.log(evidence), np.trapezoid(joint * np.cos(GRID), GRID) / evidence


SHAPES = [(3.0, 0.0), (0.01, 3.0), (0.3, 0.0), (1.0, 0.0), (0.5, 1.0)]


@pytest.mark.parametrize("shape", [pytest.param(s, marks=[pytest.mark.slow] * (s not in SHAPES[:2])) for s in SHAPES])
def test_wide_and_bimodal_angles(x64, shape):
    """Wide enough to reach the next period, or nearly uniform."""
    posterior = FlowVI(angle, progress_bar=False).run(jax.random.key(0), *shape)
    log_evidence, cosine = exact(*shape)
    assert posterior.certified, posterior.why
    assert posterior.log_evidence == pytest.approx(log_evidence, abs=4 * posterior.log_evidence_se + 1e-3)
    drawn = np.cos(posterior.sample(jax.random.key(1), 20_000)["phi"])
    assert drawn.mean() == pytest.approx(cosine, abs=5 * drawn.std() / np.sqrt(10_000))


def test_a_guide_over_several_periods_counts_one(x64):
    """A normal distribution with a standard deviation of four turns."""
    guide = AutoNormal(angle)
    svi = SVI(guide.model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    params = svi.get_params(svi.init(jax.random.key(0), 1.0, 0.0))
    params |= {name: jnp.full_like(value, 8 * np.pi) for name, value in params.items() if name.endswith("scale")}
    certificate = verify_fit(angle, guide, jax.random.key(1), 1.0, 0.0, params=params, verify="weights")
    assert not certificate.certified
    assert certificate.log_evidence == pytest.approx(exact(1.0, 0.0)[0], abs=5 * certificate.log_evidence_se)


def test_within_period():
    x, periodic = np.array([[3.0, 50.0], [3.2, 0.0], [-4.0, 0.0]]), np.array([True, False])
    np.testing.assert_array_equal(within_period(x, np.zeros(2), periodic), [True, False, False])
    np.testing.assert_array_equal(within_period(jnp.asarray(x), jnp.zeros(2), periodic), [True, False, False])


@pytest.mark.parametrize("full", [True, False])
def test_only_wide_angles_are_narrowed(full):
    loc, sds = np.zeros(3), np.array([9.0, 0.5, 9.0])
    scale = np.linalg.cholesky(np.outer(sds, sds) * (0.5 + 0.5 * np.eye(3))) if full else sds
    fit = narrowed(GaussianFit(loc, scale, 0.0, no_climbs(loc)), np.array([True, True, False]))
    factor = fit.scale if full else np.diag(fit.scale)
    covariance = factor @ factor.T
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [np.pi / np.sqrt(3), 0.5, 9.0])
    np.testing.assert_allclose(covariance[1, 2], 0.25 * 9.0 if full else 0.0, atol=1e-12)
    np.testing.assert_allclose(covariance[0, 1:], 0.0, atol=1e-12)


@pytest.mark.parametrize("seed", [1, 7])
def test_a_nearly_uniform_angle_in_single_precision(seed):
    """Fits at -7e10, where neighbouring numbers are 4,096 apart, were certified with a log evidence of -0.5."""

    def model():
        numpyro.sample("t", dist.VonMises(2.5, 0.5))

    angle = reparam(model, config={"t": CircularReparam()})
    posterior = FlowVI(angle, progress_bar=False).run(jax.random.key(seed))
    assert posterior.certified
    assert posterior.log_evidence == pytest.approx(0.0, abs=5 * posterior.log_evidence_se)
