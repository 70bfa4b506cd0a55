"""Flows as priors inside models: gradients through a flow and its condition, posteriors, and NumPyro's model graphs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.contrib.module import eqx_module, random_eqx_module
from numpyro.infer import MCMC, NUTS
from numpyro.infer.inspect import get_dependencies, get_model_relations
from numpyro.infer.util import log_density
from scipy.stats import norm

from numpyro_flows import FlowDistribution, flows
from numpyro_flows.bijections import Affine

GROUPS = 3
Y = np.random.default_rng(0).normal(size=(4, GROUPS))
X = jnp.linspace(-1.0, 1.0, GROUPS)[:, None]


def conditional_flow(dim: int = 2) -> Any:
    """With weights that bend: recipes start near the identity."""
    flow = flows.nsf_coupling(jax.random.key(0), dim, cond_dim=1, num_layers=2, hidden=(4,), num_bins=3)
    arrays, static = eqx.partition(flow, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(arrays)
    return eqx.combine(unravel(flat + 0.5 * jax.random.normal(jax.random.key(1), flat.shape)), static)


def hierarchical(bijection, y=None):
    """Effects of groups in a plate, by a flow whose condition is a latent function of the groups' covariate."""
    flow = eqx_module("flow", bijection)
    slope: Any = numpyro.sample("slope", dist.Normal(1.0, 0.5))
    with numpyro.plate("groups", GROUPS):
        effects: Any = numpyro.sample("effects", FlowDistribution(flow, condition=slope * X))
        with numpyro.plate("observations", 4):
            numpyro.sample("y", dist.Normal(effects[..., 0] + effects[..., 1], 0.5), obs=y)


def test_gradient_equals_finite_differences(x64):
    """Of the joint density in the effects, in what makes the condition, and in the flow's own weights."""
    flow = conditional_flow()
    arrays = eqx.filter(flow, eqx.is_inexact_array)
    rng = np.random.default_rng(1)
    start = {"slope": jnp.asarray(0.7), "effects": jnp.asarray(rng.normal(size=(GROUPS, 2))), "flow$params": arrays}
    flat, unravel = ravel_pytree(start)

    @jax.jit
    def joint(flat):
        return log_density(hierarchical, (flow, Y), {}, unravel(flat))[0]

    gradient = jax.jit(jax.grad(joint))(flat)
    directions = jnp.asarray(rng.normal(size=(20, flat.size)))
    which = np.concatenate([np.full(leaf.size, i) for i, leaf in enumerate(jax.tree.leaves(start))])
    directions = jnp.concatenate([directions, jnp.asarray(which[None] == np.arange(which.max() + 1)[:, None], float)])
    step = 1e-5
    for direction in directions / jnp.linalg.norm(directions, axis=1, keepdims=True):
        difference = (joint(flat + step * direction) - joint(flat - step * direction)) / (2 * step)
        assert float(gradient @ direction) == pytest.approx(float(difference), rel=1e-6, abs=1e-6)


def quadrature(log_joint: Any, lowest: float, highest: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of `(..., grid)` unnormalized log densities."""
    grid = np.linspace(lowest, highest, 4_001)
    density = np.exp(log_joint(grid) - log_joint(grid).max(-1, keepdims=True))
    density /= density.sum(-1, keepdims=True)
    mean = density @ grid
    return mean, np.sqrt(density @ grid**2 - mean**2)


@pytest.mark.slow
def test_nuts_under_a_conditional_flow_prior():
    """Group effects, each with the flow's density at its own covariate; moments by quadrature."""
    prior = FlowDistribution(conditional_flow(1), condition=X)

    def model(y):
        with numpyro.plate("groups", GROUPS):
            effect: Any = numpyro.sample("effect", prior)
            with numpyro.plate("observations", 4):
                numpyro.sample("y", dist.Normal(effect[..., 0], 1.0), obs=y)

    def log_joint(grid):
        values = jnp.broadcast_to(jnp.asarray(grid)[:, None, None], (len(grid), GROUPS, 1))
        likelihood = -0.5 * ((Y[:, :, None] - grid) ** 2).sum(0)
        return np.asarray(jax.jit(prior.log_prob)(values), np.float64).T + likelihood

    mean, sd = quadrature(log_joint, -6.0, 6.0)
    mcmc = MCMC(
        NUTS(model), num_warmup=300, num_samples=1_000, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(0), Y)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["effect"], np.float64)
    summary = numpyro.diagnostics.summary({"effect": draws})["effect"]
    error = draws.reshape(-1, GROUPS).std(0) / np.sqrt(summary["n_eff"][:, 0])
    assert np.all(np.abs(draws.mean((0, 1))[:, 0] - mean) <= 3 * error)
    assert draws.reshape(-1, GROUPS).std(0) == pytest.approx(sd, rel=0.1)


def test_bayesian_flow_in_a_model(x64):
    """`random_eqx_module` gives the location of an affine flow a prior; its scale stays 1."""
    y = np.random.default_rng(3).normal(2.0, 1.0, size=(30, 1))

    def model(y):
        flow = random_eqx_module("flow", Affine(jnp.zeros(1)), prior={"loc": dist.Normal(0.0, 3.0)})
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", FlowDistribution(flow), obs=y)

    for loc in (-1.0, 0.0, 2.5):
        found = log_density(model, (y,), {}, {"flow/loc": jnp.array([loc])})[0]
        assert float(found) == pytest.approx(norm.logpdf(loc, 0, 3) + norm.logpdf(y, loc, 1).sum(), rel=1e-9)


def test_graphs_of_models_with_flows():
    """`render_model` draws these relations; `get_dependencies` finds who depends on whom."""
    arguments = conditional_flow(), Y
    relations = get_model_relations(hierarchical, arguments)
    assert relations["sample_sample"] == {"slope": [], "effects": ["slope"], "y": ["effects"]}
    assert relations["sample_param"]["effects"] == ["flow$params"]
    assert relations["plate_sample"] == {"groups": ["effects", "y"], "observations": ["y"]}
    assert relations["sample_dist"]["effects"] == "FlowDistribution"
    found = get_dependencies(hierarchical, arguments)["posterior_dependencies"]
    assert found == {"slope": {"slope": set(), "effects": set()}, "effects": {"effects": set(), "y": set()}}


def test_parameters_alone_are_no_flow():
    """Without its permutations a flow would be another one, silently."""
    flow = conditional_flow()
    params = eqx.filter(flow, eqx.is_inexact_array)
    with pytest.raises(ValueError, match=r"None for Permutation.permutation.*`equinox.combine\(params, bijection\)"):
        FlowDistribution(params)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, FlowDistribution(eqx.combine(params, flow)).bijection, flow))
