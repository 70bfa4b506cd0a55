from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.initialization import init_to_median
from numpyro.infer.reparam import CircularReparam
from numpyro.infer.util import initialize_model

from numpyro_flows.inference.target import Target
from tests.example_models import DATA, conjugate, eight_schools


def test_agrees_with_numpyro():
    target = Target(eight_schools, jax.random.key(0))
    info = initialize_model(jax.random.key(0), eight_schools)
    order = {name: value.shape for name, value in info.param_info.z.items()}
    assert target.shapes == order
    assert list(target.shapes) == ["mu", "tau", "z"]

    @jax.jit
    def evaluate(x):
        values = {"mu": x[0], "tau": x[1], "z": x[2:]}
        ours, theirs = target.constrain(x), info.postprocess_fn(values)
        return target.log_density(x), -info.potential_fn(values), {name: (ours[name], theirs[name]) for name in theirs}

    log_density, expected, sites = evaluate(np.linspace(-1.0, 1.0, target.dim, dtype=np.float32))
    np.testing.assert_allclose(log_density, expected, rtol=1e-5)
    for name, (ours, theirs) in sites.items():
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=name)


def model_of_many_supports():
    scale = jnp.asarray(numpyro.sample("scale", dist.HalfNormal(1.0)))
    numpyro.sample("inside", dist.Uniform(0.0, 1.0 + scale))  # the support depends on another site
    numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    numpyro.sample("flat", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
    numpyro.factor("extra", -scale)


def test_round_trip_and_jacobian(x64):
    target = Target(model_of_many_supports, jax.random.key(0))
    assert target.dim == 1 + 1 + 2 + 2
    assert target.site_shapes == {"scale": (), "inside": (), "weights": (3,), "flat": (2,)}
    x = np.linspace(-1.0, 1.0, target.dim)

    def free_coordinates(x):
        sites = target.constrain(x)
        return jnp.concatenate([sites["scale"][None], sites["inside"][None], sites["weights"][:2], sites["flat"]])

    @jax.jit
    def evaluate(x):
        return target.unconstrain(target.constrain(x)), jax.jacobian(free_coordinates)(x), target.log_det(x)

    back, jacobian, log_det = evaluate(x)
    np.testing.assert_allclose(back, x, rtol=1e-10)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-8)


def test_what_is_known_of_coordinates():
    """Their names, which are constrained, and which are angles; a matrix has as many as it has free entries."""

    def model():
        numpyro.sample("tau", dist.HalfNormal(1.0))
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("phi", dist.VonMises(0.0, 1.0).expand([2]))

    circular = numpyro.handlers.reparam(model, config={"phi": CircularReparam()})
    coordinates = Target(circular, jax.random.key(0)).coordinates
    angles = ["phi_unwrapped[0]", "phi_unwrapped[1]"]
    assert list(coordinates.names) == ["tau", "x[0]", "x[1]", "weights[0]", "weights[1]", *angles]
    np.testing.assert_array_equal(coordinates.constrained, [True, False, False, True, True, False, False])
    np.testing.assert_array_equal(coordinates.periodic, [False] * 5 + [True] * 2)


def test_draws_of_the_prior(x64):
    """The log density of each is that of the model without data, on the unconstrained scale."""

    def model(y=None):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro.sample("inside", dist.Uniform(0.0, 1.0 + jnp.asarray(scale)))
        numpyro.sample("y", dist.Normal(0.0, scale), obs=y)

    target, alone = Target(model, jax.random.key(0), (3.0,)), Target(model, jax.random.key(0), (None,))
    assert target.has_prior()
    x, log_prob = jax.jit(jax.vmap(target.prior_draw))(jax.random.split(jax.random.key(0), 4))
    y = jnp.zeros((4, 1))
    normal = dist.Normal(0.0, jnp.exp(x[:, 0])).log_prob(0.0)
    expected = jax.jit(jax.vmap(alone.log_density))(jnp.concatenate([x, y], 1)) - normal
    np.testing.assert_allclose(log_prob, expected, rtol=1e-10)


def test_a_prior_that_cannot_be_drawn_from(x64):
    """A flat site is drawn from `(-2, 2)`, where its density is 1/4; where there are no others there is no prior."""

    def model(alone):
        numpyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))
        if not alone:
            numpyro.sample("x", dist.Normal(0.0, 1.0))

    assert not Target(model, jax.random.key(0), (True,)).has_prior()
    target = Target(model, jax.random.key(0), (False,))
    assert target.has_prior()
    x, log_prob = jax.jit(jax.vmap(target.prior_draw))(jax.random.split(jax.random.key(0), 100))
    assert abs(x[:, 0]).max() < 2.0
    np.testing.assert_allclose(log_prob, dist.Normal().log_prob(x[:, 1]) - np.log(4.0), rtol=1e-10)


def test_starts_follow_the_strategy():
    target = Target(eight_schools, jax.random.key(0))
    at_median: Any = init_to_median(num_samples=200)
    start = target.start(jax.random.key(1), at_median)
    sites = target.constrain(start)
    assert abs(sites["mu"]) < 4.5 * 1.25 * 5 / np.sqrt(200)  # the standard error of a median
    assert not np.array_equal(start, target.start(jax.random.key(2), at_median))


def test_random_models():
    def model():
        loc = jax.random.normal(jnp.asarray(numpyro.prng_key()))
        numpyro.sample("x", dist.Normal(loc, 1))

    target = Target(model, jax.random.key(0))
    assert target.log_density(jnp.zeros(1)) == target.log_density(jnp.zeros(1))


def discrete():
    numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Normal(0, 1))


def nothing(y=None):
    numpyro.sample("y", dist.Normal(0, 1), obs=jnp.zeros(3))


def local():
    with numpyro.plate("n", 100, subsample_size=10):
        numpyro.sample("x", dist.Normal(0, 1))


def masked(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.handlers.mask(mask=~jnp.isnan(y)):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (discrete, (), "continuous latent sites, got the discrete 'k'"),
        (nothing, (), "at least one continuous latent site, got none"),
        (local, (), "latent sites outside of the subsampled plate 'n', got ..x"),
        (conjugate, (DATA.at[1].set(jnp.nan),), "observed values that are finite, got 1 of 5 NaN or infinite at 'y'"),
    ],
)
def test_unfit_models(model, args, message):
    with pytest.raises(ValueError, match=message):
        Target(model, jax.random.key(0), args)


def test_masked_nan_is_no_error():
    assert Target(masked, jax.random.key(0), (DATA.at[1].set(jnp.nan),)).dim == 1


def test_nowhere_finite_names_the_site():
    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("broken", jnp.log(-1.0 - x**2))

    target = Target(model, jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"got none at 3 starts: the log density is not finite at the sites \['broken'\]"
    ):
        target.require_finite(jnp.ones((3, 1)))


def test_missing_site():
    with pytest.raises(ValueError, match=r"missing \['tau', 'z'\]"):
        Target(eight_schools, jax.random.key(0)).unconstrain({"mu": 1.0})


@pytest.mark.slow
def test_a_probability_above_one_is_no_density(x64):
    """Of a negative binomial distribution with a concentration of e^50 differences of log-gamma have no digits left."""

    def model(y):
        concentration = numpyro.sample("concentration", dist.HalfCauchy(1.0))
        with numpyro.plate("row", y.shape[0]):
            numpyro.sample("y", dist.NegativeBinomial2(3.0, concentration), obs=y)

    target = Target(model, jax.random.key(0), (jnp.array([0.0, 3, 1, 7, 2, 4]),))
    usable = np.isfinite(jax.vmap(target.log_density)(jnp.array([[0.0], [10.0], [20.0], [30.0], [50.0]])))
    np.testing.assert_array_equal(usable[:4], True)
    assert not usable[4]


@pytest.mark.slow
def test_where_log_gamma_has_no_digits_left_there_is_no_density(x64):
    """A beta distribution of concentrations of e^230 had a log density of 1e86: plates and events are no disguise."""

    def model():
        size = numpyro.sample("size", dist.HalfCauchy(1.0))
        with numpyro.plate("group", 3):
            numpyro.sample("rate", dist.Beta(0.3 * size, 0.7 * size).expand([3, 2]).to_event(1))

    target = Target(model, jax.random.key(0))
    x = jnp.zeros((4, target.dim)).at[:, 0].set(jnp.array([0.0, 20.0, 50.0, 230.0]))
    np.testing.assert_array_equal(np.isfinite(jax.vmap(target.log_density)(x)), [True, True, False, False])


def test_a_concentration_without_log_gamma_may_be_large():
    def model():
        numpyro.sample("x", dist.VonMises(0.0, numpyro.sample("concentration", dist.HalfNormal(1e8))), obs=0.0)

    assert np.isfinite(Target(model, jax.random.key(0)).log_density(jnp.full(1, 18.0)))


def test_a_delta_may_have_any_density():
    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Delta(jnp.array(1), log_density=5.0), obs=jnp.array(1))

    target = Target(model, jax.random.key(0))
    assert target.log_density(jnp.zeros(1)) == pytest.approx(5.0 - 0.5 * np.log(2 * np.pi))
