# pyright: reportArgumentType=false
"""Models that cannot be fitted are refused with the site, what is wrong and the next step; others are let through."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import eqx_module, random_eqx_module
from numpyro.handlers import substitute
from scipy.stats import norm

from numpyro_flows import FlowDistribution, FlowVI, bijections
from numpyro_flows.inference.target import Target
from tests.example_models import DATA, conjugate

N = DATA.size
COLUMN = DATA[:, None]


def with_param():
    loc = numpyro.param("loc", 1.0)
    numpyro.sample("x", dist.Normal(loc, 1))


def with_module():
    net: Any = eqx_module("net", eqx.nn.Linear(1, 1, key=jax.random.key(0)))
    numpyro.sample("x", dist.Normal(net(jnp.ones(1))[0], 1))


@pytest.mark.parametrize(("model", "name"), [(with_param, "loc"), (with_module, r"net\$params")])
def test_parameters_without_prior(model, name):
    with pytest.raises(ValueError, match=rf"numpyro.param site '{name}' .* prior .*handlers.substitute.*SVI"):
        Target(model, jax.random.key(0))


def with_priors(*names):
    def model():
        linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        net = random_eqx_module("net", linear, prior={name: dist.Normal(0, 2) for name in names})
        numpyro.sample("x", dist.Normal(net(jnp.ones(1))[0], 1))

    return model


def test_parameters_with_priors_are_latent_sites():
    target = Target(with_priors("weight", "bias"), jax.random.key(0))
    assert set(target.shapes) == {"net/weight", "net/bias", "x"}
    expected = 2 * norm.logpdf(0.0, 0.0, 2.0) + norm.logpdf(0.0)
    np.testing.assert_allclose(jax.jit(target.log_density)(np.zeros(3, np.float32)), expected, rtol=1e-5)


def test_a_parameter_whose_prior_is_forgotten():
    with pytest.raises(ValueError, match=r"numpyro.param site 'net\$params'"):
        Target(with_priors("weight"), jax.random.key(0))


def test_a_given_parameter_is_data():
    target = Target(substitute(with_param, data={"loc": jnp.array(3.0)}), jax.random.key(0))
    assert jax.jit(jax.grad(target.log_density))(np.array([3.0], np.float32)) == 0


DISCRETE = [dist.Bernoulli(0.5), dist.Poisson(2.0), dist.Binomial(3, 0.5), dist.Categorical(jnp.ones(2) / 2)]
DISCRETE += [
    dist.NegativeBinomial2(2.0, 1.0),
    dist.Poisson(2.0).expand([3]).to_event(1),
    dist.Geometric(0.5).mask(jnp.array(False)),
]


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")])
@pytest.mark.parametrize("distribution", DISCRETE, ids=lambda d: type(d).__name__)
def test_discrete_sites(distribution, key):
    def model():
        numpyro.sample("x", dist.Normal(0, 1))
        numpyro.sample("k", distribution)

    with pytest.raises(ValueError, match=r"got the discrete 'k' \(.*give its data by obs=, or marginalise it"):
        Target(model, key)


def test_missing_discrete_data():
    def model():
        rate = numpyro.sample("rate", dist.Gamma(2, 1))
        numpyro.sample("y", dist.Poisson(rate).expand([3]), obs=jnp.array([1, 0, 4]), obs_mask=jnp.arange(3) > 0)

    with pytest.raises(ValueError, match=r"discrete 'y_unobserved' .*numpyro.handlers.mask\(mask=observed\)"):
        Target(model, jax.random.key(0))


@pytest.mark.parametrize(
    ("mean", "y"), [(lambda mu: mu * jnp.ones(N), COLUMN), (lambda mu: mu * jnp.ones((N, 1)), DATA)]
)
def test_likelihood_larger_than_its_plate(mean, y):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("n", N):
            numpyro.sample("y", dist.Normal(mean(mu), 1), obs=y)

    with pytest.raises(ValueError, match=r"likelihood 'y' to have .* plates \('n' of size 5 .*got \(5, 5\).*squeeze"):
        Target(model, jax.random.key(0), (y,))


def test_latent_site_larger_than_its_plate():
    def model():
        mu = numpyro.sample("mu", dist.Normal(0, 1).expand([N, 1]).to_event(2))
        with numpyro.plate("n", N):
            numpyro.sample("theta", dist.Normal(mu, 1))

    with pytest.raises(ValueError, match=r"site 'theta' to have the shape of its plates .*got \(5, 5\)"):
        Target(model, jax.random.key(0))


@pytest.mark.parametrize(("mean", "y"), [(jnp.zeros(N), COLUMN), (jnp.zeros((N, 1)), DATA)])
def test_likelihood_with_more_terms_than_data(mean, y):
    def model():
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mean + mu, 1), obs=y)

    with pytest.warns(UserWarning, match=r"likelihood 'y' has more terms, \(5, 5\), than its data"):
        Target(model, jax.random.key(0))


def fine_plates():
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("column", 4, dim=-2), numpyro.plate("row", 3, dim=-1):
        numpyro.sample("scalar", dist.Normal(mu, 1))
        numpyro.sample("by row", dist.Normal(jnp.zeros(3), 1), obs=jnp.zeros(3))  # each column sees the same
        numpyro.sample("by column", dist.Normal(jnp.zeros((4, 1)), 1), obs=jnp.zeros((4, 1)))
        numpyro.sample("one number", dist.Normal(mu, 1), obs=0.0)
        numpyro.sample("vector", dist.Normal(jnp.zeros((4, 1, 2)), 1).to_event(1))
    with numpyro.plate("alone", 4, dim=-2):
        numpyro.sample("outer", dist.Normal(jnp.zeros((4, 1)), 1))
        numpyro.sample("outer y", dist.Normal(mu, 1), obs=jnp.zeros((4, 1)))
    with numpyro.plate("n", 3):
        numpyro.sample("left", dist.Normal(0, 1).expand([2, 3]))  # a batch axis of its own, left of the plate's
        numpyro.sample("left y", dist.Normal(jnp.zeros((2, 3)), 1), obs=jnp.zeros((2, 3)))
        numpyro.factor("penalty", jnp.zeros(()))
    with numpyro.plate("first", 4), numpyro.plate("second", 3):
        numpyro.sample("crossed", dist.Normal(jnp.zeros(4), 1))


def fine_without_plates():
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("many", dist.Normal(mu, 1), obs=DATA)
    numpyro.sample("zero", dist.Normal(mu + jnp.arange(3.0), 1), obs=0.0)
    weights = dist.Categorical(jnp.ones(2) / 2)
    numpyro.sample("mixture", dist.MixtureSameFamily(weights, dist.Normal(mu + jnp.zeros(2), 1)), obs=DATA)
    numpyro.sample("event", dist.MultivariateNormal(mu * jnp.ones(N), jnp.eye(N)), obs=DATA)
    numpyro.factor("terms", mu * jnp.ones((3, 1)))
    with numpyro.handlers.scale(scale=2.0), numpyro.handlers.mask(mask=jnp.ones(N, bool)):
        numpyro.sample("weighted", dist.Normal(mu, 1), obs=DATA)


def fine_scan():
    def step(carry, y):
        with numpyro.plate("series", 2):
            x = numpyro.sample("x", dist.Normal(carry, jnp.ones(1)))
            numpyro.sample("y", dist.Normal(x, 1), obs=y)
        return x, None

    scan(step, jnp.zeros(2), jnp.zeros((3, 2)))


@pytest.mark.parametrize("model", [fine_plates, fine_without_plates, fine_scan])
def test_no_false_alarm(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Target(model, jax.random.key(0))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_data_that_are_not_finite(value):
    with pytest.raises(ValueError, match=r"got 1 of 5 NaN or infinite at 'y'.*obs_mask"):
        Target(conjugate, jax.random.key(0), (np.asarray(DATA.at[1].set(value)),))


def test_nowhere_finite_names_the_data():
    def model(x, y):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(slope * x, 1), obs=jnp.log(y))

    target = Target(model, jax.random.key(0), (DATA.at[0].set(jnp.nan), DATA.at[:2].set(0.0)))
    with pytest.raises(ValueError, match=r"the sites \['y'\].* 2 of 5 in 'y'.*arguments .* 1 of 5 in 'x'"):
        target.require_finite(jnp.ones((2, 1)))


def test_an_infinite_density_is_named():
    """By the whole fit, and without a warning of NumPy's."""

    def model():
        x = jnp.asarray(numpyro.sample("x", dist.Normal(0, 1)))
        numpyro.factor("broken", jnp.where(x > -1e9, jnp.inf, 0.0))

    with pytest.raises(ValueError, match=r"\['broken'\] are \+inf, which is not a valid density"):
        FlowVI(model, num_steps=0, progress_bar=False).run(jax.random.key(0))


NUMBERS = [0.5, 1.0, 1.5]
NO_ARRAYS = {
    r"a list: pass jnp.asarray\([xy]\)": NUMBERS,
    r"an array of type object .*: pass [xy].astype\(float\)": np.array(NUMBERS, object),
    r"an array of type >f8 .*: pass [xy].astype\(float\)": np.array(NUMBERS, ">f8"),
    r"an array of type >i2 .*: pass [xy].astype\(int\)": np.array([0, 1, 2], ">i2"),
    r"an array of type \[\('a', '<f8'\)\] .*: pass one of its fields, [xy]\['a'\]": np.zeros(3, [("a", "<f8")]),
    "the string 'data.csv': pass numbers": "data.csv",
    "an array of type <U1 .*: pass numbers": np.array(["a", "b", "c"]),
}


def regression(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    with numpyro.plate("people", 3):
        numpyro.sample("y", dist.Normal(slope * x, 1), obs=y)


@pytest.mark.parametrize(("message", "bad"), NO_ARRAYS.items(), ids=range(len(NO_ARRAYS)))
def test_data_that_are_no_arrays(message, bad):
    with pytest.raises(TypeError, match="^expected an array of numbers as the data of 'y', got " + message):
        Target(regression, jax.random.key(0), (np.ones(3), bad))
    with pytest.raises(
        TypeError, match="^the model expected arrays .* the argument 'x' as " + message + ".*; the model"
    ):
        Target(regression, jax.random.key(0), (bad, np.ones(3)))


MASKED = np.ma.array(NUMBERS, mask=[False, True, False])
MISFITS = {
    "masked data": (np.ones(3), MASKED, TypeError, r"got a masked array .*y.filled\(0.0\), .* obs_mask=~y.mask"),
    "complex data": (np.ones(3), np.ones(3) * 1j, TypeError, "data of 'y', got an array of type complex.* pass real"),
    "a dict": (np.ones(3), {"a": np.ones(3)}, TypeError, r"data of 'y', got a dict of \['a'\]: pass one of its arrays"),
    "too few data": (np.ones(3), np.ones(2), ValueError, r"data of 'y' of shape \(3,\), got shape \(2,\)"),
    "no data": (np.ones(3), np.ones(0), ValueError, r"data of 'y' of shape \(3,\), got shape \(0,\)"),
    "too few inputs": (
        np.ones(2),
        np.ones(3),
        ValueError,
        r"fit each other and its plates, got 'x' \(2,\), 'y' \(3,\)",
    ),
}


@pytest.mark.parametrize(("x", "y", "error", "message"), MISFITS.values(), ids=MISFITS)
def test_arguments_that_do_not_fit(x, y, error, message):
    with pytest.raises(error, match=message):
        Target(regression, jax.random.key(0), (x, y))


def test_a_plate_of_no_rows():
    def model(y):
        with numpyro.plate("people", len(y)):
            numpyro.sample("y", dist.Normal(numpyro.sample("mean", dist.Normal(0, 1)), 1), obs=y)

    with pytest.raises(ValueError, match=r"^the model expected data, got the empty argument 'y'"):
        Target(model, jax.random.key(0), (np.ones(0),))


def test_lists_that_a_model_takes():
    flow = FlowDistribution(bijections.Affine(jnp.zeros(1)))

    def model(x, y):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(slope * jnp.asarray(x), 1), obs=jnp.asarray(y))
        numpyro.sample("z", flow, obs=pd.DataFrame({"a": y}))  # whose density takes tables

    target = Target(model, jax.random.key(0), (NUMBERS, NUMBERS))
    found = jax.jit(target.log_density)(jnp.array([0.3]))
    y = np.array(NUMBERS)
    expected = norm.logpdf(0.3) + norm.logpdf(y, 0.3 * y).sum() + norm.logpdf(y).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_error_that_no_argument_explains_is_the_models_own():
    def model(y, link="logit"):
        numpyro.sample("x", dist.Normal(0, 1))
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        Target(model, jax.random.key(0), (NUMBERS,))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        Target(model, jax.random.key(0))
