"""The verdict on guides and draws that others made."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, autoguide
from numpyro.infer.initialization import init_to_value

from numpyro_flows import AutoFlow, verify_fit
from tests.example_models import DATA, conjugate, conjugate_posterior, eight_schools, eight_schools_centred

KEY = jax.random.key(0)
MEAN, SD, LOG_EVIDENCE = conjugate_posterior()


def guide_of_conjugate(kind, shift=0.0) -> tuple[Any, dict[str, Any]]:
    """A guide with the exact posterior as its parameters, shifted by so many standard deviations."""
    guide = kind(conjugate)
    names = ("mu_auto_loc", "mu_auto_scale") if kind is autoguide.AutoNormal else ("auto_loc", "auto_scale")
    loc: Any = MEAN + shift * SD
    scale: Any = SD
    if kind is autoguide.AutoDiagonalNormal:
        loc, scale = jnp.array([loc]), jnp.array([scale])
    return guide, dict(zip(names, (loc, scale)))


def trained(guide, num_steps=1_000, *args):
    svi = SVI(guide.model, guide, numpyro.optim.Adam(1e-2), Trace_ELBO(num_particles=8))
    return svi.run(jax.random.key(0), num_steps, *args, progress_bar=False).params


def by_nuts(model, num=1_000, seed=0, **options):
    kernel = NUTS(model, **options)
    mcmc = MCMC(kernel, num_warmup=1_000, num_samples=num, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(seed))
    return mcmc


@pytest.mark.slow
def test_an_exact_guide_is_certified_with_the_exact_evidence():
    guide, params = guide_of_conjugate(autoguide.AutoDiagonalNormal)
    certificate = verify_fit(conjugate, guide, KEY, DATA, params=params)
    assert certificate.certified, certificate.why
    assert certificate.by == "weights"
    assert certificate.ess > 0.999
    assert certificate.log_evidence == pytest.approx(LOG_EVIDENCE, abs=1e-3)
    assert {"weights", "draws of the prior", "tempered particles"} <= {check.name for check in certificate.checks}


def test_draws_of_the_posterior_are_certified_and_others_not():
    draws = MEAN + SD * np.random.default_rng(0).standard_normal((4, 1_000))
    certificate = verify_fit(conjugate, {"mu": draws, "not a site": draws}, KEY, DATA)
    assert certificate.certified, certificate.why
    assert certificate.by == "mcmc"
    assert certificate.log_evidence == pytest.approx(LOG_EVIDENCE, abs=0.02)


def test_what_is_neither_a_guide_nor_draws():
    with pytest.raises(TypeError, match="guide_or_draws expected a NumPyro guide"):
        verify_fit(conjugate, conjugate, KEY, DATA)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="params expected the guide's parameters"):
        verify_fit(conjugate, autoguide.AutoNormal(conjugate), KEY, DATA)
    with pytest.raises(ValueError, match="got an AutoDelta"):
        verify_fit(conjugate, autoguide.AutoDelta(conjugate), KEY, DATA, params={})
    with pytest.raises(TypeError, match="guide expected a density of all latent sites"):
        verify_fit(conjugate, autoguide.AutoGuideList(conjugate), KEY, DATA, params={})
    with pytest.raises(ValueError, match="missing \\['mu_auto_loc'\\]"):
        verify_fit(conjugate, autoguide.AutoNormal(conjugate), KEY, DATA, params={})


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({"tau": np.ones((4, 100))}, "missing"),
        ({"mu": np.ones((2, 3, 4, 5))}, "expected draws of shape \\(chains, draws, \\*site\\)"),
        ({"mu": np.ones((4, 2))}, "at least 4 for each chain"),
        ({"mu": np.full((4, 100), np.nan)}, "inside the sites' supports"),
    ],
)
def test_draws_of_the_wrong_shape(draws, message):
    with pytest.raises(ValueError, match=message):
        verify_fit(conjugate, draws, KEY, DATA)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [autoguide.AutoNormal, autoguide.AutoDiagonalNormal])
def test_a_shifted_guide_is_refused(kind):
    guide, params = guide_of_conjugate(kind, shift=3.0)
    certificate = verify_fit(conjugate, guide, KEY, DATA, params=params)
    assert not certificate.certified
    unsearched = verify_fit(conjugate, guide, KEY, DATA, params=params, verify="weights")
    assert not unsearched.certified
    assert not unsearched.checks[1].run
    guide, params = guide_of_conjugate(kind)
    assert verify_fit(conjugate, guide, KEY, DATA, params=params).certified


GUIDES = [
    *(autoguide.AutoDiagonalNormal, autoguide.AutoNormal, autoguide.AutoMultivariateNormal),
    *(autoguide.AutoLowRankMultivariateNormal, autoguide.AutoLaplaceApproximation, autoguide.AutoIAFNormal),
    *(autoguide.AutoBNAFNormal, autoguide.AutoBatchedMultivariateNormal, AutoFlow),
]


def correlated():
    x: Any = numpyro.sample("x", dist.Normal(0, 1).expand([2]))
    numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=jnp.array(1.0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", GUIDES)
def test_every_guide_with_a_density(kind):
    """Of a correlated Gaussian. An evidence of 20,000 weights is within four standard errors."""
    guide = kind(correlated)
    certificate = verify_fit(correlated, guide, KEY, params=trained(guide, 3_000))
    exact = float(dist.Normal(0, np.sqrt(2.25)).log_prob(1.0))
    mean_field = kind in (autoguide.AutoDiagonalNormal, autoguide.AutoNormal, autoguide.AutoBatchedMultivariateNormal)
    assert certificate.log_evidence == pytest.approx(exact, abs=4 * certificate.log_evidence_se + 1e-3)
    assert certificate.certified == (certificate.ess >= 0.5)
    assert (certificate.ess > 0.8) == (not mean_field)


@pytest.mark.slow
def test_a_guide_without_density_and_one_of_another_model():
    guide = autoguide.AutoDAIS(conjugate)
    params = trained(guide, 10, DATA)
    with pytest.raises(ValueError, match="got AutoDAIS, which has none"):
        verify_fit(conjugate, guide, KEY, DATA, params=params)
    guide = autoguide.AutoDiagonalNormal(correlated)
    with pytest.raises(ValueError, match="guide expected to be of this model"):
        verify_fit(conjugate, guide, KEY, DATA, params=trained(guide, 10))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_right_draws_of_eight_schools_are_certified(seed):
    """By NUTS in the non-centred form, which in the centred one are draws of a funnel."""
    mcmc = by_nuts(eight_schools, 2_000, seed, target_accept_prob=0.95)
    assert verify_fit(eight_schools, mcmc, KEY).certified
    certificate = verify_fit(eight_schools_centred, mcmc.get_samples(group_by_chain=True), KEY)
    assert certificate.certified, certificate.why


def two_modes():
    x: Any = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (5,)))
    near, far = (dist.Normal(mode, 1).log_prob(x).sum() for mode in (0.0, 9.0 / 5**0.5))
    numpyro.factor("modes", jnp.logaddexp(near + jnp.log(0.6), far + jnp.log(0.4)))


@pytest.mark.slow
def test_a_mode_that_nuts_missed_is_found():
    start = init_to_value(values={"x": jnp.zeros(5)})
    certificate = verify_fit(two_modes, by_nuts(two_modes, init_strategy=start), KEY)
    assert certificate.rhat < 1.01
    assert not certificate.certified
    assert certificate.why.startswith("a search found elsewhere about 40% of the posterior, which the draws lack")


@pytest.mark.slow
def test_masked_entries():
    """Draws lose them; a guide of them has no density to judge."""

    def model():
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("n", 3):
            mask = jnp.array([True, False, True])
            numpyro.sample("y", dist.Normal(mu, 1), obs=jnp.array([1.0, 0.0, 2.0]), obs_mask=mask)

    draws = by_nuts(model).get_samples(group_by_chain=True)
    assert verify_fit(model, draws, KEY).certified
    guide = autoguide.AutoDiagonalNormal(model)
    with pytest.raises(ValueError, match="without masked entries"):
        verify_fit(model, guide, KEY, params=trained(guide, 10))
