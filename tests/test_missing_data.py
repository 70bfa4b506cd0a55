"""Latent entries that a mask takes out of the density: standard normal in the result, and without influence on it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.stats import multivariate_normal, norm

from numpyro_flows import FlowPosterior, FlowVI, compare_with_nuts
from numpyro_flows.inference.target import Target

Y = np.array([1.0, np.nan, 0.5, 3.0, np.nan], np.float32)
SEEN = ~np.isnan(Y)
NUM = int(SEEN.sum())


def missing(y):
    """Normal mean, prior N(0, 2^2), some values missing: the others have it in closed form."""
    seen = ~jnp.isnan(y)
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    with numpyro.plate("n", y.size):
        numpyro.sample("y", dist.Normal(mu, 1), obs=jnp.where(seen, y, 0.0), obs_mask=seen)


def exact():
    """Mean and sd of `mu`, and the log evidence of what was seen."""
    precision = 1 / 4 + NUM
    log_evidence = multivariate_normal(np.zeros(NUM), (np.eye(NUM) + 4.0).tolist()).logpdf(Y[SEEN])
    return float(Y[SEEN].sum() / precision), precision**-0.5, float(log_evidence)


@pytest.fixture(scope="module")
def posterior():
    return FlowVI(missing, num_steps=0, progress_bar=False).run(jax.random.key(0), Y)


def test_posterior_and_evidence_are_those_of_what_was_seen(posterior):
    mean, sd, log_evidence = exact()
    assert posterior.certified, posterior.why
    assert abs(posterior.log_evidence - log_evidence) < 4.5 * posterior.log_evidence_se + 1e-3
    draws = jax.device_get(posterior.sample(jax.random.key(1), 4000))
    assert abs(draws["mu"].mean() - mean) < 4.5 * sd / np.sqrt(4000)
    assert abs(draws["mu"].std() / sd - 1) < 4.5 / np.sqrt(2 * 4000)
    np.testing.assert_array_equal(draws["y"][:, SEEN], np.broadcast_to(Y[SEEN], (4000, NUM)))
    imputed = draws["y"][:, ~SEEN]  # y | mu ~ N(mu, 1)
    assert (abs(imputed.mean(0) - mean) < 4.5 * np.hypot(sd, 1) / np.sqrt(4000)).all()
    free = draws["y_unobserved"][:, SEEN]
    assert (abs(free.mean(0)) < 4.5 / np.sqrt(4000)).all()
    assert (abs(free.std(0) - 1) < 4.5 / np.sqrt(2 * 4000)).all()


def test_log_prob(posterior):
    """Of all latent sites: the exact posterior, times the normals."""
    mean, sd, _ = exact()
    sites = jax.device_get(posterior.sample(jax.random.key(1), 20))
    expected = norm.logpdf(sites["mu"], mean, sd)
    expected += norm.logpdf(sites["y_unobserved"][:, ~SEEN], sites["mu"][:, None]).sum(1)
    expected += norm.logpdf(sites["y_unobserved"][:, SEEN]).sum(1)
    np.testing.assert_allclose(posterior.log_prob(sites), expected, atol=0.2)  # a fitted Gaussian


def test_the_verdict_names_them(posterior):
    assert "3 entries of 'y_unobserved'" in posterior.verdict()


@pytest.mark.slow
def test_export_and_file(posterior, tmp_path):
    tree = posterior.to_datatree(num_samples=10)
    assert tree.posterior["y_unobserved"].shape == (4, 10, Y.size)
    assert tree.prior["y"].shape == (1, 10, Y.size)
    posterior.save(tmp_path / "fit")
    loaded = FlowPosterior.load(tmp_path / "fit", missing, Y)
    again, draws = (p.sample(jax.random.key(1), 20) for p in (loaded, posterior))
    np.testing.assert_allclose(again["y_unobserved"], draws["y_unobserved"], atol=1e-5)
    lines = [
        line for line in posterior.verdict().splitlines() if "checked by" not in line
    ]  # which a file does not keep
    assert loaded.verdict().splitlines() == lines


@pytest.mark.slow
def test_nuts_agrees(posterior):
    comparison = compare_with_nuts(posterior, jax.random.key(1), num_warmup=200, num_samples=500, progress_bar=False)
    sites = {name: column.to_numpy() for name, column in comparison.sites.items()}
    varying = sites["nuts_sd"] > 0  # not what is observed of `y`
    assert (~varying).sum() == SEEN.sum()
    assert np.abs(sites["difference_in_mcse"][varying]).max() < 5
    assert np.abs(sites["sd_ratio"][varying] - 1).max() < 0.2


@pytest.mark.parametrize(
    ("distribution", "whole_site"),
    [(dist.Gamma(2.0, 1.0), True), (dist.Gamma(2.0, 1.0), False), (dist.Dirichlet(jnp.ones(3)), True)],
)
def test_constrained_sites(distribution, whole_site):
    """Standard normal on the unconstrained scale, whether the Jacobian is masked or not."""
    mask = jnp.array([True, False, False])

    def model():
        if whole_site:
            with numpyro.handlers.mask(mask=mask):
                numpyro.sample("z", distribution.expand([3]))
        else:
            numpyro.sample("z", distribution.expand([3]).mask(mask))

    target = Target(model, jax.random.key(0))
    assert target.free_entries == {"z": 2}
    x = np.random.default_rng(0).normal(size=target.dim).astype(np.float32)
    in_density = Target(lambda: numpyro.sample("z", distribution), jax.random.key(0))
    kept = target.free.size - target.free.sum()

    @jax.jit
    def evaluate(x, kept):
        return target.log_density(x), target.fitted.log_density(kept), in_density.log_density(kept)

    whole, fitted, expected = evaluate(x, x[:kept])
    np.testing.assert_allclose(whole, expected + norm.logpdf(x[kept:]).sum(), rtol=1e-4)
    np.testing.assert_allclose(fitted, expected, rtol=1e-4)


def masked_prior_in_a_likelihood():
    with numpyro.handlers.mask(mask=False):
        x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(x, 1), obs=1.0)


def flat_but_not_masked():
    numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))


def missing_uniform():
    """Kept entries have a density that the Jacobian alone makes, like those left out by a masked distribution."""
    numpyro.sample("x", dist.Uniform(0, 1).expand([2]).mask(jnp.array([True, True])))


def masked_by_a_latent_site():
    """What the mask takes out near the origin, it leaves in elsewhere."""
    x = jnp.asarray(numpyro.sample("x", dist.Normal(0, 1)))
    with numpyro.handlers.mask(mask=x > 2):
        numpyro.sample("z", dist.Normal(0, 1))


@pytest.mark.parametrize(
    "model", [masked_prior_in_a_likelihood, masked_by_a_latent_site, flat_but_not_masked, missing_uniform]
)
def test_what_is_no_missing_value_stays(model):
    assert not Target(model, jax.random.key(0)).free.any()


def test_in_a_scan():
    seen = jnp.array([True, False, True])

    def model():
        def step(x, inputs):
            x = numpyro.sample("x", dist.Normal(x, 1))
            numpyro.sample("y", dist.Normal(x, 1), obs=inputs[0], obs_mask=inputs[1])
            return x, None

        scan(step, 0.0, (jnp.zeros(3), seen))

    target = Target(model, jax.random.key(0))
    assert target.free_entries == {"y_unobserved": 2}
    x = np.arange(1.0, 1 + target.dim, dtype=np.float32)
    gradient = jax.jit(jax.grad(target.log_density))(x)
    np.testing.assert_allclose(gradient[target.free], -x[target.free], rtol=1e-5)


def test_nothing_left():
    def model():
        numpyro.sample("z", dist.Normal(0, 1).mask(False))

    with pytest.raises(ValueError, match=r"a latent site that no mask takes out, got only \['z'\]"):
        Target(model, jax.random.key(0))


@pytest.mark.slow
def test_draws_of_the_fallback_have_them_too():
    """Two modes of one site, and entries of another that a mask takes out."""

    def model(y):
        m = numpyro.sample("m", dist.Normal(0, 3))
        with numpyro.plate("n", 4):
            numpyro.sample("z", dist.Normal(m**2, 0.3), obs=y, obs_mask=jnp.array([True, True, False, False]))

    posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0), jnp.array([4.0, 4.2, 0.0, 0.0]))
    assert posterior.certified
    assert posterior.chains is not None
    draws = posterior.sample(jax.random.key(1), 10_000)
    assert (np.asarray(draws["m"]) > 0).mean() == pytest.approx(0.5, abs=4 * 0.5 / 100)
    np.testing.assert_allclose(np.asarray(draws["z_unobserved"])[:, :2].std(0), 1.0, atol=0.05)
