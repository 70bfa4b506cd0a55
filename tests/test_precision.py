"""What a value passes through is multiplied at full precision on every device, as the traced programs say."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from jax.extend.core import ClosedJaxpr, Jaxpr  # pyright: ignore[reportPrivateImportUsage]

from numpyro_flows import FlowDistribution, FlowTransform, flows
from numpyro_flows.bijections import transform_with_score
from numpyro_flows.gaussianization import fit_rbig, inspect_layers
from numpyro_flows.inference.losses import path_loss
from numpyro_flows.inference.target import Target

DIM = 3


def products(jaxpr):
    """The precision of every matrix product in a program, those within its loops and calls too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append(equation.params["precision"])
        for parameter in jax.tree.leaves(
            tuple(equation.params.values()), is_leaf=lambda node: isinstance(node, Jaxpr | ClosedJaxpr)
        ):
            if isinstance(parameter, ClosedJaxpr):
                found += products(parameter.jaxpr)
            elif isinstance(parameter, Jaxpr):
                found += products(parameter)
    return found


def assert_full(function, *args):
    found = products(jax.make_jaxpr(function)(*args).jaxpr)
    assert found, "expected matrix products"
    full = (jax.lax.Precision.HIGHEST,) * 2
    assert all(precision == full for precision in found), found


RECIPES = [flows.realnvp, flows.glow, flows.bnaf]
OTHERS = (flows.nsf_autoregressive, flows.ffjord, flows.residual)
RECIPES += [pytest.param(recipe, marks=pytest.mark.slow) for recipe in OTHERS]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_bijections(recipe):
    bijection = recipe(jax.random.key(0), DIM)
    x = jnp.ones(DIM)
    assert_full(lambda x: FlowTransform(bijection)(x), x)
    assert_full(jax.value_and_grad(lambda x: bijection.transform_and_log_det(x)[1]), x)
    assert_full(lambda x: transform_with_score(bijection, x, -x), x)


@pytest.mark.slow
@pytest.mark.unchecked
def test_distributions_also_of_flowjax():
    flow = coupling_flow(jax.random.key(0), base_dist=Normal(jnp.zeros(DIM)), nn_depth=1, nn_width=4, flow_layers=1)
    for bijection in (flow.bijection, flows.realnvp(jax.random.key(0), DIM)):
        distribution = FlowDistribution(bijection)
        assert_full(jax.grad(distribution.log_prob), jnp.ones(DIM))
        assert_full(lambda key, distribution=distribution: distribution.sample(key), jax.random.key(0))


@pytest.mark.parametrize("marginal", ["mixture", "empirical"])
def test_a_greedy_fit_by_which_information_is_measured(marginal):
    data = np.random.default_rng(0).gamma(2.0, size=(50, DIM))
    bijection = fit_rbig(jax.random.key(0), data, marginal=marginal, max_layers=1).bijection
    assert_full(bijection.inverse_and_log_det, jnp.ones(DIM))
    assert_full(bijection.transform_and_log_det, jnp.ones(DIM))


class Asking(eqx.Module):
    """A bijection of others, which takes the precision that it is given; it tells which."""

    shape = (2,)
    cond_shape = None

    def transform_and_log_det(self, x, condition=None):
        return (x @ jnp.eye(2)), jnp.zeros(())

    def inverse_and_log_det(self, y, condition=None):
        ASKED.append(jax.config.jax_default_matmul_precision)
        return (y @ jnp.eye(2)), jnp.zeros(())


ASKED: list[str | None] = []


def test_layers_of_others_that_are_inspected():
    inspect_layers(FlowDistribution(Asking()), np.random.default_rng(0).normal(size=(50, 2)))  # pyright: ignore[reportArgumentType]
    assert set(ASKED) == {"highest"}


def test_a_training_step():
    bijection = flows.realnvp(jax.random.key(0), DIM)
    params, static = eqx.partition(bijection, eqx.is_inexact_array)

    def loss(params, base):
        return path_loss(eqx.combine(params, static), lambda x: -0.5 * jnp.sum(x**2), base)

    assert_full(jax.grad(loss), params, jnp.ones((2, DIM)))


def test_models():
    covariates = jnp.ones((5, DIM))

    def model():
        slopes = numpyro.sample("slopes", dist.Normal(0, 1).expand([DIM]).to_event(1))
        mean = numpyro.deterministic("mean", covariates @ slopes)
        numpyro.sample("y", dist.Normal(mean, 1), obs=jnp.ones(5))

    target = Target(model, jax.random.key(0))
    assert_full(jax.value_and_grad(target.log_density), jnp.ones(DIM))
    assert_full(target.constrain, jnp.ones(DIM))
