"""Angles on the real line: the posterior repeats itself, and a fit counts one period of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
from numpyro.distributions import biject_to, constraints
from numpyro.handlers import reparam
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_value
from numpyro.infer.reparam import CircularReparam

from numpyro_flows import AutoFlow, FlowDistribution, FlowPosterior, FlowVI, PathELBO, flows, verify_fit
from numpyro_flows.bijections import Identity
from numpyro_flows.inference.gaussian import GaussianFit, no_climbs
from numpyro_flows.inference.one_period import narrowed, one_copy
from numpyro_flows.modeling.angles import log_share

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


@pytest.mark.parametrize("shape", [pytest.param(s, marks=[pytest.mark.slow] * (s != SHAPES[1])) for s in SHAPES])
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


def test_shares_of_all_copies_sum_to_one(x64):
    x = jnp.linspace(-9.0, 9.0, 41)
    copies = x[:, None] + 2 * np.pi * np.arange(-6, 7)
    np.testing.assert_allclose(jnp.exp(log_share(copies, jnp.full(copies.shape, 0.7))[0]).sum(1), 1.0, rtol=1e-10)
    np.testing.assert_allclose(jnp.exp(log_share(x, x)[0]), 1.0, atol=1e-10)
    derivative = jax.vmap(jax.grad(lambda x: log_share(x, jnp.array(0.7))[0]))(x)
    np.testing.assert_allclose(log_share(x, jnp.array(0.7))[1], derivative, rtol=1e-8, atol=1e-10)
    value, slope = log_share(np.asarray(x), np.array(0.7))
    np.testing.assert_allclose(value, log_share(x, jnp.array(0.7))[0])
    np.testing.assert_allclose(slope, derivative, rtol=1e-8, atol=1e-10)


def test_one_copy_of_draws():
    rng = np.random.default_rng(0)
    angle, real = rng.normal(np.pi, 0.1, (3, 50)), rng.normal(9.0, 1.0, (3, 50))
    draws = np.stack([angle + 2 * np.pi * rng.integers(-3, 4, angle.shape), real], -1)
    folded, centre = one_copy(draws, np.array([True, False]))
    np.testing.assert_allclose(np.cos(folded[..., 0]), np.cos(angle), atol=1e-9)
    assert np.ptp(folded[..., 0]) < 1.0
    np.testing.assert_array_equal(folded[..., 1], real)
    assert np.cos(centre[0]) < -0.999


def circle(centre, concentration):
    numpyro.sample("phi", dist.VonMises(centre, concentration))


def identity(key, dim):
    return Identity((dim,))


AT_SEAM: Any = init_to_value(values={"phi": 3.1})


def untrained(model, *args, scale):
    guide = AutoFlow(model, identity, init_scale=scale, init_loc_fn=AT_SEAM)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    return guide, svi.get_params(svi.init(jax.random.key(0), *args))


@pytest.mark.parametrize("scale", [pytest.param(0.3, marks=pytest.mark.slow), 4.0])
def test_weights_of_a_guide_give_the_evidence(scale):
    """Also of one that goes several times round the circle; the two ELBOs have the same value."""
    guide, params = untrained(circle, np.pi, 2.0, scale=scale)
    flow = guide.get_posterior(params)
    vector, intermediates = flow.sample_with_intermediates(jax.random.key(1), (20_000,))
    phi = 2 * np.pi * jax.nn.sigmoid(vector[:, 0]) - np.pi
    to_circle = biject_to(constraints.circular)
    log_p = dist.VonMises(np.pi, 2.0).log_prob(phi) + to_circle.log_abs_det_jacobian(vector[:, 0], phi)
    log_weight = np.asarray(log_p - flow.log_prob(vector, intermediates), float)
    weight = np.exp(log_weight)
    if scale > 1.0:  # the narrow one has no draws in the tails
        assert weight.mean() == pytest.approx(1.0, abs=5 * weight.std() / np.sqrt(weight.size))
    for loss in (Trace_ELBO(num_particles=4_000), PathELBO(num_particles=4_000)):
        elbo = -jax.jit(lambda key, loss=loss: loss.loss(key, params, circle, guide, np.pi, 2.0))(jax.random.key(2))
        assert elbo == pytest.approx(log_weight.mean(), abs=5 * log_weight.std() / np.sqrt(4_000))


def test_a_guide_of_angles_in_a_file(tmp_path):
    guide, params = untrained(circle, np.pi, 2.0, scale=0.3)
    flow = guide.get_posterior(params)
    flow.save(tmp_path / "flow")
    vector = flow.sample(jax.random.key(0), (5,))
    np.testing.assert_array_equal(FlowDistribution.load(tmp_path / "flow").log_prob(vector), flow.log_prob(vector))
    phi = guide.sample_posterior(jax.random.key(0), params, sample_shape=(1_000,))["phi"]
    assert (abs(phi) <= np.pi).all()
    assert 0.0 < np.mean(phi > 0) < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("concentration", [20.0, 0.3])
def test_svi_has_no_seam(concentration):
    """Concentrated at the seam, and nearly uniform."""
    guide = AutoFlow(circle, flows.nsf_coupling)
    svi: Any = SVI(circle, guide, numpyro.optim.Adam(1e-2), Trace_ELBO(num_particles=32))
    params = svi.run(jax.random.key(0), 1_000, np.pi, concentration, progress_bar=False).params
    many: Any = Trace_ELBO(num_particles=4_000)
    elbo = -many.loss(jax.random.key(1), params, circle, guide, np.pi, concentration)
    assert elbo == pytest.approx(0.0, abs=0.03)
    phi = guide.sample_posterior(jax.random.key(2), params, sample_shape=(20_000,))["phi"]
    resultant = scipy.special.i1(concentration) / scipy.special.i0(concentration)
    np.testing.assert_allclose([np.cos(phi).mean(), np.sin(phi).mean()], [-resultant, 0.0], atol=0.04)


@pytest.fixture(scope="module")
def seam():
    return FlowVI(circle, progress_bar=False).run(jax.random.key(0), np.pi, 20.0)


def test_a_posterior_at_the_seam(seam):
    assert seam.certified, seam.why
    assert seam.log_evidence == pytest.approx(0.0, abs=5 * seam.log_evidence_se + 1e-3)
    phi = np.asarray(seam.sample(jax.random.key(1), 4_000)["phi"])
    assert np.cos(phi).mean() == pytest.approx(-scipy.special.i1(20.0) / scipy.special.i0(20.0), abs=0.003)
    assert (abs(phi) <= np.pi).all()
    assert np.mean(phi > 0) == pytest.approx(0.5, abs=0.05)


def test_its_density_and_file(seam, tmp_path):
    phi = np.array([3.1, -3.1, 2.9])
    np.testing.assert_allclose(seam.log_prob({"phi": phi}), dist.VonMises(np.pi, 20.0).log_prob(phi), atol=0.2)
    seam.save(tmp_path / "fit")
    again = FlowPosterior.load(tmp_path / "fit", circle, np.pi, 20.0)
    alone = FlowPosterior.load(tmp_path / "fit")
    for loaded in (again, alone):
        np.testing.assert_allclose(loaded.log_prob({"phi": phi}), seam.log_prob({"phi": phi}), rtol=1e-4)
        drawn = np.cos(loaded.sample(jax.random.key(1), 2_000)["phi"])
        assert drawn.mean() == pytest.approx(-0.975, abs=0.01)


def band():
    """Two angles whose difference is known: a band that goes round the torus."""
    a, b = numpyro.sample("a", dist.VonMises(0.0, 0.1)), numpyro.sample("b", dist.VonMises(1.0, 0.1))
    numpyro.factor("difference", 5.0 * jnp.cos(jnp.asarray(a) - jnp.asarray(b) - 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_band_round_the_torus(seed):
    a, b = np.meshgrid(GRID[::50], GRID[::50])
    joint = np.exp(0.1 * np.cos(a) + 0.1 * np.cos(b - 1.0) + 5.0 * np.cos(a - b - 0.5))
    joint /= (2 * np.pi * scipy.special.i0(0.1)) ** 2
    evidence = np.trapezoid(np.trapezoid(joint, GRID[::50]), GRID[::50])
    cosine = np.trapezoid(np.trapezoid(joint * np.cos(a - b), GRID[::50]), GRID[::50]) / evidence
    posterior = FlowVI(band, progress_bar=False).run(jax.random.key(seed))
    assert posterior.certified, posterior.why
    assert posterior.log_evidence == pytest.approx(np.log(evidence), abs=5 * posterior.log_evidence_se)
    draws = posterior.sample(jax.random.key(1), 10_000)
    assert np.cos(draws["a"] - draws["b"]).mean() == pytest.approx(cosine, abs=0.02)


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
