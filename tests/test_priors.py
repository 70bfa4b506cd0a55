"""Flows as priors: joint distributions of sites in NumPyro models, from fits and from files."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density

from numpyro_flows import FlowDistribution, FlowVI, sample_sites
from numpyro_flows.bijections import Affine, TriangularAffine
from numpyro_flows.modeling.sites import Sites, SitesTransform
from tests.test_stored import nested, posterior_of

SHAPES = {"mu": (), "tau": (), "weights": (3,)}
SUPPORTS = {"tau": constraints.positive, "weights": constraints.simplex}
TRIL = np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.3, 0.7, 0], [0.2, 0, 0.1, 0.4]])


@pytest.fixture(scope="module")
def joint():
    """A prior with known moments on the unconstrained scale."""
    return FlowDistribution(
        TriangularAffine(jnp.array([1.0, 0.5, 0.0, -0.3]), TRIL), constrain=SitesTransform(Sites(SHAPES, SUPPORTS))
    )


def test_a_joint_event(joint):

    @jax.jit
    def evaluate(key):
        draws, vector = joint.sample(key, (7, 2)), joint.vector.sample(key, (7, 2))
        support = joint.support(vector), joint.support(-vector)
        return draws, vector, joint.sites.pack(draws), support, joint.log_prob(draws), joint.log_prob(vector)

    draws, vector, packed, (inside, outside), of_sites, of_vectors = evaluate(jax.random.key(0))
    assert {name: value.shape for name, value in draws.items()} == {"mu": (7, 2), "tau": (7, 2), "weights": (7, 2, 3)}
    assert (joint.event_shape, joint.batch_shape) == ((5,), ())
    np.testing.assert_array_equal(packed, vector)
    assert np.all(inside)
    assert not np.any(outside)
    np.testing.assert_allclose(of_sites, of_vectors)


def test_the_density_counts_every_constraint(joint, x64):

    @jax.jit
    def evaluate(key):
        draws = joint.sample(key, (5,))
        x = jnp.asarray(SitesTransform(joint.sites).inv(joint.sites.pack(draws)))
        jacobians = jax.vmap(jax.jacfwd(lambda v: dist.transforms.StickBreakingTransform()(v)[:2]))(x[:, 2:])
        return joint.log_prob(draws), FlowDistribution(joint.bijection).log_prob(x) - x[:, 1], jacobians

    log_prob, without_weights, jacobians = evaluate(jax.random.key(0))
    np.testing.assert_allclose(log_prob, without_weights - np.log(abs(np.linalg.det(jacobians))), rtol=1e-6)


def test_gradients_of_a_model_with_a_flow_as_prior(joint, x64):
    """The gradient of a model's joint density equals its finite differences."""

    def model():
        sites = sample_sites("prior", joint)
        numpyro.sample("y", dist.Normal(sites["mu"] + sites["tau"] * sites["weights"][0], 0.5), obs=1.3)

    @jax.jit
    @jax.value_and_grad
    def density(x):  # on the unconstrained scale, as NUTS has it
        return log_density(model, (), {}, {"prior": joint.constrain(x)})[0]

    x, step = np.array([0.3, 0.2, -0.4, 0.7]), 1e-5
    points = [x + sign * step * e for e in np.eye(4) for sign in (1, -1)]
    differences = np.array([density(point)[0] for point in points]).reshape(4, 2)
    np.testing.assert_allclose(density(x)[1], (differences[:, 0] - differences[:, 1]) / (2 * step), rtol=1e-6)


@pytest.mark.slow
def test_nuts_on_a_flow_as_prior(joint, x64):
    """NUTS on the prior alone gives its moments."""

    def model():
        sample_sites("prior", joint)

    mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    samples = mcmc.get_samples()
    assert samples["weights"].shape == (2000, 3)
    x = joint.constrain.inv(samples["prior"])
    covariance = TRIL @ TRIL.T
    for i, (mean, variance) in enumerate(zip([1.0, 0.5, 0.0, -0.3], np.diagonal(covariance))):
        for values, known in ((x[:, i], mean), ((x[:, i] - mean) ** 2, variance)):
            ess = numpyro.diagnostics.effective_sample_size(np.asarray(values)[None])
            assert abs(values.mean() - known) < 3 * values.std() / np.sqrt(ess)


@pytest.fixture(scope="module")
def normal_model(joint):
    """Its posterior is Gaussian: with y = 2 `mu` and `a` are N(1.5, 1/2) and N(1, 1/2)."""

    def model(y=None):
        mu = sample_sites("prior", joint)["mu"]  # N(1, 1) by the flow
        a = numpyro.sample("a", dist.Normal(0, 1))
        with numpyro.plate("two", 2):
            numpyro.sample("y", dist.Normal(jnp.stack([mu, a]), 1.0), obs=y)

    return model


@pytest.fixture(scope="module")
def normal(normal_model):
    return FlowVI(normal_model, progress_bar=False).run(jax.random.key(0), np.full(2, 2.0))


def test_predictive_on_a_flow_as_prior(normal_model):
    predicted = jax.jit(Predictive(normal_model, num_samples=5))(jax.random.key(0))
    assert predicted["weights"].shape == (5, 3)


@pytest.mark.slow
def test_flow_vi_on_a_flow_as_prior(normal):
    assert normal.certified
    mu = normal.sample(jax.random.key(1), 4000)["mu"]
    assert mu.mean() == pytest.approx(1.5, abs=4 * np.sqrt(0.5 / 4000))
    assert mu.std() == pytest.approx(np.sqrt(0.5), rel=4 / np.sqrt(2 * 4000))


def first_model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).normal(1.0, 2.0, size=60)


@pytest.fixture(scope="module")
def yesterday(data):
    return FlowVI(first_model, progress_bar=False).run(jax.random.key(0), data[:30])


def gaussian(key, dim):
    """A recipe of one affine map, the quickest to compile."""
    return TriangularAffine(jnp.zeros(dim), np.eye(dim))


CHEAP = {"flow": gaussian, "num_samples": 4000, "num_steps": 300, "learning_rate": 1e-2, "progress_bar": False}


@pytest.mark.slow
def test_a_site_of_a_posterior_as_prior(normal):
    prior = normal.as_prior(["a"], **CHEAP)
    draws = np.asarray(jax.jit(lambda key: prior.sample(key, (4000,))["a"])(jax.random.key(2)))
    # of 4,000 draws fitted to 4,000 draws
    assert draws.mean() == pytest.approx(1.0, abs=4.5 * np.sqrt(0.5 * 2 / 4000))
    assert draws.std() == pytest.approx(np.sqrt(0.5), rel=4.5 * np.sqrt(2 / (2 * 4000)))


@pytest.mark.slow
def test_a_posterior_is_the_next_prior(yesterday, data):
    prior = yesterday.as_prior(num_steps=1000, progress_bar=False)

    def second_model(y):
        sites = sample_sites("prior", prior)
        numpyro.sample("y", dist.Normal(sites["mu"], sites["sigma"]), obs=y)

    updated = FlowVI(second_model, progress_bar=False).run(jax.random.key(2), data[30:])
    at_once = FlowVI(first_model, progress_bar=False).run(jax.random.key(3), data)
    for name in ("mu", "sigma"):
        a, b = (posterior.sample(jax.random.key(4), 4000)[name] for posterior in (updated, at_once))
        assert abs(a.mean() - b.mean()) < 0.1 * b.std()
        assert a.std() == pytest.approx(float(b.std()), rel=0.1)


@pytest.mark.slow
def test_some_sites_of_a_posterior(yesterday):
    prior = yesterday.as_prior(["sigma"], num_samples=4000, num_steps=500, progress_bar=False)
    draws = np.asarray(yesterday.sample(jax.random.key(1), 4000)["sigma"])
    again = np.asarray(prior.sample(jax.random.key(2), (4000,))["sigma"])
    assert (again > 0).all()
    assert again.mean() == pytest.approx(draws.mean(), abs=0.1 * float(draws.std()))
    assert again.std() == pytest.approx(float(draws.std()), rel=0.1)


def test_what_cannot_be_a_prior():
    posterior = posterior_of(nested, np.ones(3))
    with pytest.raises(ValueError, match=r"sites expected some of \['top', 'below'\], got \['nu'\]"):
        posterior.as_prior(["nu"])
    with pytest.raises(ValueError, match=r"got \[\]"):
        posterior.as_prior([])
    with pytest.raises(ValueError, match=r"depend on other sites, got supports that do for \['below'\]"):
        posterior.as_prior()
    with pytest.raises(TypeError, match="use sample_sites"):
        numpyro.sample(
            "x",
            FlowDistribution(Affine(jnp.zeros(1)), constrain=SitesTransform(Sites({"a": ()}))),
            rng_key=jax.random.key(0),
        )
    with pytest.raises(ValueError, match="expected a flow of several sites"):
        sample_sites("x", FlowDistribution(Affine(jnp.zeros(2))))
    with pytest.raises(ValueError, match="expected an array of shape"):
        FlowDistribution(Affine(jnp.zeros(2))).log_prob({"x": 1.0})
    with pytest.raises(ValueError, match="got discrete ones of"):
        Sites({"k": ()}, {"k": constraints.nonnegative_integer})


def test_a_prior_from_a_fit_that_is_not_certified():
    """A warning, and then the marginal of one of two sites."""

    def model():  # the very normals that `posterior_of` has for a fit
        numpyro.sample("b", dist.Normal(0.5, 0.5))
        numpyro.sample("a", dist.Normal(0.5, 0.5))

    posterior = posterior_of(model, why="a mode that the fit lacks holds about 40%")
    with pytest.warns(UserWarning, match="not certified: a mode that the fit lacks holds about 40%"):
        prior = posterior.as_prior(["a"], **CHEAP)
    assert prior.sites is not None
    assert prior.sites.shapes == {"a": ()}
    draws = np.asarray(jax.jit(lambda key: prior.sample(key, (4000,))["a"])(jax.random.key(2)))
    # of 4,000 draws fitted to 4,000 draws
    assert draws.mean() == pytest.approx(0.5, abs=4.5 * 0.5 * np.sqrt(2 / 4000))
    assert draws.std() == pytest.approx(0.5, rel=4.5 * np.sqrt(2 / (2 * 4000)))


LOADING = """
import sys
import numpy as np
from numpyro_flows import FlowDistribution
x = np.load(sys.argv[2])
np.save(sys.argv[3], FlowDistribution.load(sys.argv[1]).log_prob(x))
"""


@pytest.mark.slow
@pytest.mark.optimized  # as the new process is
def test_a_saved_prior_in_a_new_process(yesterday, tmp_path):
    prior = yesterday.as_prior(num_steps=50, progress_bar=False)
    prior.save(tmp_path / "prior")
    x = np.asarray(prior.vector.sample(jax.random.key(0), (20,)))
    np.save(tmp_path / "x.npy", x)
    arguments = [str(tmp_path / name) for name in ("prior", "x.npy", "scores.npy")]
    subprocess.run([sys.executable, "-c", LOADING, *arguments], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), prior.log_prob(x))
    again = FlowDistribution.load(tmp_path / "prior")
    assert again.sites == prior.sites
    yesterday.save(tmp_path / "posterior")
    with pytest.raises(ValueError, match="expected a file with a FlowDistribution, got one with a FlowPosterior"):
        FlowDistribution.load(tmp_path / "posterior")
