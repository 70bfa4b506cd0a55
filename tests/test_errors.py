"""What careless callers are told: one sentence about the object that they passed."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_flows import (
    AutoFlow,
    FlowDistribution,
    FlowVI,
    LatentODE,
    bijections,
    compare_with_nuts,
    continuous,
    fit_density,
    fit_latent_ode,
    flow_plots,
    flows,
    gaussianization,
)

KEY = jax.random.key(0)
DATA = np.random.default_rng(0).normal(size=(50, 2))
TIMES = np.sort(np.random.default_rng(0).uniform(size=(6, 5)))


def model(y=None):
    with numpyro.plate("people", 3):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)


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
    "LatentODE.sample": lambda key: LatentODE(KEY, 1, flow=None, width=2).sample(key, 3, [0.5]),
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
