"""Results survive `pickle` and `cloudpickle`: the same draws by the same key."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro.distributions import constraints

from numpyro_flows import (
    FlowDistribution,
    FlowVI,
    ManyFits,
    SeveralFits,
    anomaly_scores,
    bijections,
    compare_with_nuts,
    fit_density,
    gaussianization,
)
from tests.example_models import DATA, conjugate, posterior_of

KEY = jax.random.key(0)
ROWS = np.random.default_rng(0).normal(size=(60, 2))
NORMAL = FlowDistribution(bijections.Affine(jnp.zeros(2)))


def again(value: Any) -> list[Any]:
    """The value from a pickle, and from one of cloudpickle if it is installed."""
    copies = [pickle.loads(pickle.dumps(value))]
    try:
        import cloudpickle
    except ImportError:
        return copies
    return [*copies, cloudpickle.loads(cloudpickle.dumps(value))]


def same(first: Any, second: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def posterior():
    return posterior_of(conjugate, DATA)


def test_posteriors(posterior):
    many = ManyFits((posterior, None), pd.DataFrame({"certified": [True, False], "why": ["", "no data"]}))
    evidence = np.array([-1.0, -1.1])
    several = SeveralFits((posterior, posterior), pd.Series({"mu": 1.0}), evidence, evidence, 0.5, True)
    draws = posterior.sample(KEY, 20)
    for alone, of_many, of_several in again((posterior, many, several)):
        same(alone.sample(KEY, 20), draws)
        same(of_many.posteriors[0].sample(KEY, 20), draws)
        same(of_several.posteriors[1].sample(KEY, 20), draws)
        assert of_many.posteriors[1] is None
        assert (repr(of_many), repr(of_several)) == (repr(many), repr(several))
        assert alone.certificate == posterior.certificate


def test_densities_and_what_looks_at_them():
    rbig = gaussianization.fit_rbig(KEY, ROWS, max_layers=2)
    scores = anomaly_scores(NORMAL, ROWS[:5], ROWS)
    whole = NORMAL, rbig, scores
    for normal, flow, found in again(whole):
        same(normal.sample(KEY, (5,)), NORMAL.sample(KEY, (5,)))
        same(jax.tree.leaves(flow), jax.tree.leaves(rbig))
        same(found.p_density, scores.p_density)


@pytest.mark.slow
def test_fitted_densities():
    options: dict[str, Any] = {"num_steps": 20, "progress_bar": False}
    table: Any = pd.DataFrame({"positive": np.exp(ROWS[:, 0]), "count": np.arange(60) % 3})
    support = {"positive": constraints.positive, "count": constraints.integer_interval(0, 2)}
    mixed = fit_density(KEY, table, support=support, **options)
    conditional = fit_density(KEY, ROWS[:, :1], condition=ROWS[:, 1:], **options)
    for one, of_condition in again((mixed, conditional)):
        same(one.sample(KEY, (5,)), mixed.sample(KEY, (5,)))
        same(one.log_prob(table), mixed.log_prob(table))
        given = of_condition.given(jnp.ones(1)), conditional.given(jnp.ones(1))
        same(*(flow.sample(KEY, (5,)) for flow in given))
        assert of_condition.fit == conditional.fit


@pytest.mark.slow
def test_a_comparison():
    posterior = FlowVI(conjugate, progress_bar=False).run(KEY, DATA)
    comparison = compare_with_nuts(posterior, KEY, num_warmup=100, num_samples=100, progress_bar=False)
    for copied in again(comparison):
        assert copied.verdict() == comparison.verdict()
        pd.testing.assert_frame_equal(copied.sites, comparison.sites)


def test_a_model_without_a_name():
    """Python pickles no local function, and its error names it. Copies, and cloudpickle, take it."""

    def local(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 2)), 1), obs=y)

    posterior = posterior_of(local, DATA)
    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(posterior)
    same(copy.deepcopy(posterior).sample(KEY, 5), posterior.sample(KEY, 5))
    cloudpickle = pytest.importorskip("cloudpickle")
    same(cloudpickle.loads(cloudpickle.dumps(posterior)).sample(KEY, 5), posterior.sample(KEY, 5))
