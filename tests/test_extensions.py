"""A new stage, a new objective and a new recipe from outside the package: those that CONTRIBUTING.md shows."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_flows import FlowVI, FlowVISettings
from numpyro_flows.bijections import Affine

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
Y = jnp.array([1.0, 2.0, 4.0])


def example(heading: str) -> dict[str, Any]:
    """What the code below a heading defines."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert code.count("\n") < 40
    namespace: dict[str, Any] = {"__name__": heading}
    exec(code, namespace)
    return namespace


def normal(y):
    """Its posterior is `N(0.8 y, 0.8)`, its evidence `N(y; 0, 5)`."""
    x = numpyro.sample("x", dist.Normal(0.0, 2.0).expand([3]).to_event())
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(), obs=y)


def test_a_new_stage():
    """By itself: what it finds is good enough here."""
    stage = example("A new stage of FlowVI")["AdaptiveImportanceStart"]()
    posterior = FlowVI(normal, stages=(stage,), progress_bar=False).run(jax.random.key(0), Y)
    assert posterior.certified
    draws = np.asarray(posterior.sample(jax.random.key(1), 4000)["x"])
    np.testing.assert_allclose(draws.mean(0), 0.8 * Y, atol=5 * np.sqrt(0.8 / 4000))
    log_evidence = dist.Normal(0.0, np.sqrt(5.0)).log_prob(Y).sum()
    assert abs(posterior.log_evidence - log_evidence) < 5 * posterior.log_evidence_se + 1e-3


def neck():
    """Its evidence is 1, and a Gaussian is not certified."""
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    numpyro.sample("x", dist.Normal(0, scale))


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["A new stage of FlowVI", "A new objective", "A new recipe"])
def test_a_flow_is_trained(heading):
    posterior = example(heading)["run"](neck, jax.random.key(0))
    assert posterior.losses.size > 0
    assert posterior.certified
    assert abs(posterior.log_evidence) < 5 * posterior.log_evidence_se + 1e-3


def test_a_new_objective_is_minimal_at_the_posterior():
    """By the gradient of its value: 0 where the flow is the posterior, within Monte Carlo error."""
    objective = example("A new objective")["ReparameterizedKL"]()
    base = jax.random.normal(jax.random.key(0), (4000, 2))

    def loss(loc):
        return objective(Affine(loc), lambda x: dist.Normal(1.0, 1.0).log_prob(x).sum(), base, 0.0, FlowVISettings())

    np.testing.assert_allclose(jax.grad(loss)(jnp.ones(2)), 0.0, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(2)), -1.0, atol=5 / np.sqrt(4000))


def test_a_new_recipe():
    flow = example("A new recipe")["mixture_coupling"](jax.random.key(0), 3, cond_dim=2, num_layers=2)
    assert (flow.shape, flow.cond_shape) == ((3,), (2,))
    y, log_det = flow.transform_and_log_det(jnp.ones(3), jnp.ones(2))
    x, inverse_log_det = flow.inverse_and_log_det(y, jnp.ones(2))
    np.testing.assert_allclose(x, jnp.ones(3), atol=1e-4)
    np.testing.assert_allclose(log_det, -inverse_log_det, atol=1e-4)
