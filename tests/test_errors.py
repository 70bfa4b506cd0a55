# pyright: reportArgumentType=false, reportCallIssue=false
"""What careless callers are told: one sentence about the object that they passed."""

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr

from numpyro_flows import (
    AutoFlow,
    FlowDistribution,
    FlowVI,
    LatentODE,
    anomaly_scores,
    bijections,
    compare_with_nuts,
    continuous,
    fit_density,
    fit_latent_ode,
    flow_plots,
    flows,
    gaussianization,
    sample_sites,
)
from numpyro_flows.density.observations import observe

pytestmark = pytest.mark.unchecked  # the messages are ours, which arguments of wrong types reach

KEY = jax.random.key(0)
DATA = np.random.default_rng(0).normal(size=(50, 2))
TIMES = np.sort(np.random.default_rng(0).uniform(size=(6, 5)))


def model(y=None):
    with numpyro.plate("people", 3):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)


@cache
def latent_ode():
    return eqx.filter_eval_shape(lambda: LatentODE(KEY, 1, flow=None))  # shapes are enough to be refused


@pytest.fixture(scope="module")
def posterior():
    return FlowVI(model, progress_bar=False).run(KEY, np.array([0.5, 1.0, 1.5]))


RECIPES = {
    name: partial(recipe, dim=2)
    for name, recipe in vars(flows).items()
    if inspect.isfunction(recipe) and "key" in inspect.signature(recipe).parameters
}
AFFINE = bijections.AffineUnivariate()
FIELD = continuous.LinearField(2)
TAKE_A_KEY: dict[str, Callable[[Any], Any]] = {
    **RECIPES,
    "with_tails": lambda key: flows.with_tails(flows.realnvp)(key, 2),
    "Coupling": lambda key: bijections.Coupling(key, 2, AFFINE),
    "masked_autoregressive": lambda key: bijections.masked_autoregressive(key, 2, AFFINE),
    **{
        name: partial(getattr(bijections, name), dim=2)
        for name in (
            *("BlockAutoregressive", "Cayley", "Householder", "LULinear", "MatrixExponential", "Planar", "QRLinear"),
            *("Radial", "Residual", "Sylvester"),
        )
    },
    **{name: partial(getattr(continuous, name), dim=2) for name in ("MLPField", "PotentialField", "OTFlowField")},
    "Hutchinson": continuous.Hutchinson,
    "HutchPlusPlus": continuous.HutchPlusPlus,
    "in_training": lambda key: continuous.in_training(continuous.ContinuousFlow(FIELD), key),
    "FlowMatching": lambda key: continuous.FlowMatching()(
        continuous.ContinuousFlow(FIELD), key, jnp.ones((3, 2)), None, jnp.ones(3)
    ),
    "fit_rbig": lambda key: gaussianization.fit_rbig(key, DATA),
    "entropy": lambda key: gaussianization.entropy(key, DATA),
    "total_correlation": lambda key: gaussianization.total_correlation(key, DATA),
    "negentropy": lambda key: gaussianization.negentropy(key, DATA),
    "mutual_information": lambda key: gaussianization.mutual_information(key, DATA, DATA),
    "kl_divergence": lambda key: gaussianization.kl_divergence(key, DATA, DATA),
    "FlowDistribution.sample": lambda key: FlowDistribution(bijections.Affine(jnp.zeros(2))).sample(key, (3,)),
    "AutoFlow.make_bijection": lambda key: AutoFlow(model).make_bijection(key, jnp.zeros(2), jnp.ones(2)),
    "fit_density": lambda key: fit_density(key, DATA),
    "fit_latent_ode": lambda key: fit_latent_ode(key, TIMES, TIMES[..., None]),
    "LatentODE": lambda key: LatentODE(key, 1),
    "LatentODE.sample": lambda key: latent_ode().sample(key, 3, [0.5]),
    "FlowVI.run": lambda key: FlowVI(model).run(key),
    "plot_trajectories": lambda key: flow_plots.plot_trajectories(continuous.ContinuousFlow(FIELD), key),
    "plot_density_path": lambda key: flow_plots.plot_density_path(continuous.ContinuousFlow(FIELD), key),
    "plot_divergence": lambda key: flow_plots.plot_divergence(continuous.ContinuousFlow(FIELD), key),
}
TAKE_A_POSTERIOR_AND_A_KEY: dict[str, Callable[[Any, Any], Any]] = {
    "sample": lambda posterior, key: posterior.sample(key),
    "sample_weighted": lambda posterior, key: posterior.sample_weighted(key),
    "as_prior": lambda posterior, key: posterior.as_prior(rng_key=key),
    "to_datatree": lambda posterior, key: posterior.to_datatree(rng_key=key),
    "compare_with_nuts": compare_with_nuts,
}
NO_KEYS = {
    "0": 0,
    "the string 'seed'": "seed",
    r"an array of type float32 and shape \(3,\)": jnp.ones(3),  # data, where the key was forgotten
    r"an array of type float64 and shape \(2,\)": np.zeros(2),
    r"a batch of keys of shape \(3,\)": jax.random.split(KEY, 3),
    r"a batch of keys of shape \(1,\)": jax.random.split(jax.random.PRNGKey(0), 1),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("call", TAKE_A_KEY.values(), ids=TAKE_A_KEY)
def test_what_is_no_key(call):
    for got, bad in {"None": None, **NO_KEYS}.items():
        with pytest.raises(TypeError, match=rf"^(rng_)?key expected a JAX random key, got {got}: pass "):
            call(bad)


@pytest.mark.parametrize("call", TAKE_A_POSTERIOR_AND_A_KEY.values(), ids=TAKE_A_POSTERIOR_AND_A_KEY)
def test_what_is_no_key_of_a_posterior(posterior, call):
    for got, bad in NO_KEYS.items():
        with pytest.raises(TypeError, match=rf"^rng_key expected a JAX random key, got {got}: pass "):
            call(posterior, bad)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_keys_of_either_style_and_traced_ones_are_keys(make):
    affine = FlowDistribution(bijections.Affine(jnp.zeros(2)))
    assert affine.sample(np.asarray(make(0)) if make is jax.random.PRNGKey else make(0)).shape == (2,)
    draws = jax.vmap(affine.sample)(jax.random.split(make(0), 3))
    np.testing.assert_array_equal(draws[0], jax.jit(affine.sample)(jax.random.split(make(0), 3)[0]))


FLOW = FlowDistribution(bijections.Affine(jnp.zeros(2)))
CONDITIONAL = FlowDistribution(bijections.Coupling(KEY, 2, AFFINE, cond_dim=1, hidden=(2,)))
TABLE = pd.DataFrame(DATA, columns=["a", "b"])
NO_NUMBERS: dict[str, Any] = {
    "an array of numbers, got the string 'data.csv'": "data.csv",
    "an array of numbers, got None": None,
    r"real numbers, got other values in the columns 'name' \(str\): encode them": TABLE.assign(name="x"),
    r"real numbers, got an array of type object and shape \(50, 2\): convert it": DATA.astype(object),
    "real numbers, got an array of type <U1": np.array([["a", "b"]]),
    "real numbers, got an array of type complex128": DATA + 1j,
    "real numbers, got a function": model,
}
TAKE_DATA: dict[str, Callable[[Any], Any]] = {
    "fit_density": lambda data: fit_density(KEY, data),
    "a site": lambda data: fit_density(KEY, {"a": data}),
    "condition": lambda data: fit_density(KEY, DATA, condition=np.zeros((2, 2)) if data is None else data),
    "fit_rbig": lambda data: gaussianization.fit_rbig(KEY, data),
    "entropy": lambda data: gaussianization.entropy(KEY, data),
    "inspect_layers": lambda data: gaussianization.inspect_layers(FLOW, data),
    "anomaly_scores": lambda data: anomaly_scores(FLOW, data, DATA),
    "reference": lambda data: anomaly_scores(FLOW, DATA, data),
    "log_prob": FLOW.log_prob,
    "given": CONDITIONAL.given,
    "FlowTransform": FLOW.transforms[0],
    "bijection": bijections.Affine(jnp.zeros(2)).transform,
    "times": lambda data: fit_latent_ode(KEY, data, TIMES[..., None]),
    "values": lambda data: fit_latent_ode(KEY, TIMES, data),
    "covariates": lambda data: fit_latent_ode(KEY, TIMES, TIMES[..., None], covariates=data),
}


@pytest.mark.parametrize("call", TAKE_DATA.values(), ids=TAKE_DATA)
def test_what_is_no_data(call):
    for message, bad in NO_NUMBERS.items():
        if bad is None and call in (TAKE_DATA["condition"], TAKE_DATA["given"], TAKE_DATA["covariates"]):
            continue
        with pytest.raises(TypeError, match=f" expected {message}"):
            call(bad)
    with pytest.raises(ValueError, match="expected an array, got a list of parts of different lengths"):
        call([[1.0, 2.0], [3.0]])


def test_a_table_a_list_and_integers_are_data():
    expected = FLOW.log_prob(np.round(DATA))
    for data in (TABLE.round(), np.round(DATA).tolist(), np.round(DATA).astype(int), jnp.round(DATA)):
        np.testing.assert_allclose(FLOW.log_prob(data), expected, rtol=1e-6)
    for data in (TABLE, DATA.tolist(), DATA.astype("float32"), TABLE.convert_dtypes()):
        np.testing.assert_allclose(observe(data).values, DATA, rtol=1e-6)
    scores = anomaly_scores(FLOW, TABLE, DATA.tolist())
    np.testing.assert_array_equal(scores.log_prob, anomaly_scores(FLOW, DATA, TABLE).log_prob)


def test_draws_of_arviz_are_data():
    draws = xr.Dataset({name: (("chain", "draw"), DATA[:, i].reshape(2, 25)) for i, name in enumerate("ab")})
    tree = xr.DataTree.from_dict({"posterior": draws})
    for data in (draws, tree, tree["posterior"]):
        np.testing.assert_array_equal(observe(data).values, DATA)
    for bad in (xr.DataTree(), draws.isel(chain=0)):
        with pytest.raises(ValueError, match=r"data expected (a DataTree with a posterior|draws along the dimensions)"):
            observe(bad)


CARELESS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no rows": (lambda: fit_density(KEY, DATA[:0]), ValueError, r"rows and coordinates, .* of shape \(0, 2\)"),
    "no columns": (lambda: fit_density(KEY, DATA[:, :0]), ValueError, r"rows and coordinates, .* \(50, 0\)"),
    "an empty list": (lambda: fit_density(KEY, []), ValueError, r"data expected rows and .* \(0,\)"),
    "an empty site": (lambda: fit_density(KEY, {"a": []}), ValueError, "data expected rows and coordinates"),
    "a row": (lambda: fit_density(KEY, DATA[:1]), ValueError, "data expected more rows than coordinates, and"),
    "masked": (
        lambda: fit_density(KEY, np.ma.array(DATA, mask=np.arange(100).reshape(50, 2) == 7)),
        ValueError,
        "data expected finite values, got NaN or infinite ones in 1 of 50 rows: 3",
    ),
    "traced": (lambda: jax.jit(partial(fit_density, KEY))(DATA), TypeError, "data expected numbers, .* outside of it"),
    "a vector as condition": (
        lambda: fit_density(KEY, DATA, condition=DATA[:, 0]),
        ValueError,
        r"got \(50,\): write condition\[:, None\]",
    ),
    "a support by name": (
        lambda: fit_density(KEY, DATA, support="positive"),  # pyright: ignore[reportArgumentType]
        TypeError,
        "support expected NumPyro constraints, .* got the string 'positive'",
    ),
    "a site's support by name": (
        lambda: fit_density(KEY, {"a": DATA}, support={"a": "positive"}),  # pyright: ignore[reportArgumentType]
        TypeError,
        "support expected NumPyro constraints",
    ),
    "steps as a float": (lambda: fit_density(KEY, DATA, num_steps=1e3), TypeError, "num_steps .* 1000.0: write 1000"),
    "no rate": (lambda: fit_density(KEY, DATA, learning_rate=np.nan), ValueError, r"learning_rate .* got nan"),
    "misspelt": (lambda: flows.realnvp(KEY, 2, n_layers=3), TypeError, "coupling.* 'n_layers'"),
    "one width": (lambda: flows.realnvp(KEY, 2, hidden=32), TypeError, r"hidden .* got 32: write \(32,\)"),
    "a float as dim": (lambda: flows.realnvp(KEY, 2.0), TypeError, "dim expected an integer, got 2.0: write 2"),
    "key and dim swapped": (lambda: flows.realnvp(2, KEY), TypeError, "key expected a JAX random key, got 2"),
    "a called model": (lambda: FlowVI(None), TypeError, "model expected a NumPyro model, passed without calling it"),
    "a guide's flow by name": (lambda: AutoFlow(model, "realnvp"), TypeError, "flow expected a recipe"),
    "steps as text": (lambda: FlowVI(model, num_steps="10"), TypeError, "num_steps expected an integer"),
    "particles as a boolean": (lambda: FlowVI(model, num_particles=True), TypeError, "num_particles .* got True"),
    "an ESS in percent": (lambda: FlowVI(model, target_ess=95), ValueError, r"target_ess .* in \(0, 1\], got 95"),
    "settings as a dict": (lambda: FlowVI(model, settings={}), TypeError, r"such as FlowVISettings\(num_steps=2000\)"),
    "a rate of NaN": (lambda: FlowVI(model, learning_rate=np.nan), ValueError, "learning_rate .* got nan"),
    "a number as shape": (lambda: FLOW.sample(KEY, 5), TypeError, r"sample_shape .* got 5: write \(5,\)"),
    "a negative shape": (lambda: FLOW.sample(KEY, (-5,)), ValueError, "sample_shape expected at least 0, got -5"),
    "a base by name": (lambda: FlowDistribution(FLOW.bijection, "normal"), TypeError, "base_dist .* 'normal'"),
    "a constraint as transform": (
        lambda: FlowDistribution(FLOW.bijection, constrain=dist.constraints.positive),
        TypeError,
        "constrain expected a NumPyro transform",
    ),
    "name and flow swapped": (lambda: sample_sites(FLOW, "a"), TypeError, "flow expected a FlowDistribution of"),
    "flow and data swapped": (lambda: anomaly_scores(DATA, FLOW, DATA), TypeError, "flow expected a FlowDistribution"),
    "no reference": (lambda: anomaly_scores(FLOW, DATA, DATA[:0]), ValueError, "reference expected at least 2 rows"),
    "NaN to score": (lambda: anomaly_scores(FLOW, DATA * np.nan, DATA), ValueError, "data expected finite values"),
    "a class as univariate": (
        lambda: flows.coupling(KEY, 2, univariate=bijections.AffineUnivariate),
        TypeError,
        r"univariate expected an object such as bijections.AffineUnivariate\(\), got the class AffineUnivariate",
    ),
    "a path by name": (lambda: continuous.FlowMatching("ot"), TypeError, "path expected an object such as .* 'ot'"),
    "a distribution as model": (lambda: FlowVI(dist.Normal(0, 1)), TypeError, "model expected a NumPyro model"),
    "a number as start": (lambda: AutoFlow(model, init_loc_fn=3), TypeError, "init_loc_fn expected .*, got 3"),
    "a condition of a flow that has none": (
        lambda: fit_density(KEY, DATA, flow=FLOW, condition=DATA[:, :1]),
        ValueError,
        "condition expected None because the flow has no condition",
    ),
    "a condition of another length": (
        lambda: fit_density(KEY, DATA, flow=CONDITIONAL, condition=DATA),
        ValueError,
        r"condition expected rows of shape \(1,\), as the flow has, got \(2,\)",
    ),
    "no condition of a flow that has one": (
        lambda: fit_density(KEY, DATA, flow=CONDITIONAL),
        ValueError,
        r"condition expected rows of shape \(1,\), as the flow has, got None",
    ),
    "more data than conditions": (
        lambda: CONDITIONAL.given(DATA[:3, :1]).log_prob(DATA),
        ValueError,
        r"batch shape fits the condition's, \(3,\), got \(50,\)",
    ),
    "a length as window": (lambda: LatentODE(KEY, 1, window=3.0), TypeError, "window expected two times, .* got 3.0"),
    "a length as window of a fit": (
        lambda: fit_latent_ode(KEY, TIMES, TIMES[..., None], window=3.0),
        TypeError,
        "window expected two times",
    ),
    "columns as vectors": (
        lambda: gaussianization.mutual_information(KEY, DATA[:, 0], DATA[:, 1]),
        ValueError,
        r"x of shape \(num, dim\), got \(50,\): write x\[:, None\]",
    ),
    "data and flow swapped": (lambda: gaussianization.inspect_layers(DATA, FLOW), TypeError, "flow expected"),
    "a condition forgotten": (
        lambda: gaussianization.inspect_layers(CONDITIONAL, DATA),
        ValueError,
        "condition expected an array of shape .*, got None",
    ),
    "NaN to inspect": (lambda: gaussianization.inspect_layers(FLOW, DATA * np.nan), ValueError, "data expected finite"),
}


@pytest.mark.parametrize(("call", "error", "message"), CARELESS.values(), ids=CARELESS)
def test_careless_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("count", [2.5, True, "10", (10,), None])
@pytest.mark.parametrize("method", ["sample", "sample_weighted"])
def test_numbers_of_draws(posterior, method, count):
    with pytest.raises(TypeError, match="num_samples expected an integer, got "):
        getattr(posterior, method)(KEY, count)


CARELESS_OF_A_POSTERIOR: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "key and number swapped": (lambda p: p.sample(100, KEY), TypeError, "rng_key expected a JAX random key, got 100"),
    "an array of sites": (lambda p: p.log_prob(np.ones(3)), TypeError, "sites expected a dict of sites' values"),
    "a site as text": (lambda p: p.log_prob({"mu": "a"}), TypeError, "site 'mu' expected an array of numbers"),
    "a name alone": (lambda p: p.as_prior("mu"), TypeError, r"list of names, for example \['mu'\], got the string"),
    "a key as names": (lambda p: p.as_prior(KEY), TypeError, "sites expected a list of names"),
    "an unknown dimension": (
        lambda p: p.to_datatree(coords={"persons": [1, 2, 3]}),
        ValueError,
        r"coords expected dimensions of the model, \['people'\], got 'persons'",
    ),
    "too few labels": (lambda p: p.to_datatree(coords={"people": [1]}), ValueError, "3 labels of 'people', got 1"),
    "labels as text": (lambda p: p.to_datatree(coords={"people": "abc"}), TypeError, "a list of labels of 'people'"),
    "coords as a list": (lambda p: p.to_datatree(coords=[1, 2, 3]), TypeError, "coords expected a dict"),
    "unknown coords beside NUTS": (
        lambda p: compare_with_nuts(p, KEY, coords={"persons": [1, 2, 3]}),
        ValueError,
        "coords expected dimensions of the model",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CARELESS_OF_A_POSTERIOR.values(), ids=CARELESS_OF_A_POSTERIOR)
def test_careless_calls_of_a_posterior(posterior, call, error, message):
    with pytest.raises(error, match=message):
        call(posterior)


@pytest.mark.slow  # ArviZ takes 10 s to import
def test_keywords_of_a_summary_go_to_arviz(posterior):
    assert "ess_bulk" in posterior.summary(kind="all", round_to=2)
