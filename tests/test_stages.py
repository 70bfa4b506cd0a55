"""The stages of FlowVI: what they are given, what they may return, and what is never certified without them."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from numpyro_flows import FlowTraining, FlowVI, ForwardKL, GaussianStart

KEY = jax.random.key(0)


def normal():
    numpyro.sample("x", dist.Normal(1.0, 2.0))


def skewed():
    numpyro.sample("x", dist.Gamma(0.5, 1.0))


def run(*stages, model=normal, **options):
    return FlowVI(model, stages=stages, progress_bar=False, **options).run(KEY)


def test_without_stages_nothing_is_certified():
    with pytest.warns(UserWarning, match="not certified: nothing was fitted"):
        posterior = run()
    assert (posterior.certified, posterior.ess) == (False, 0.0)


def test_a_stage_sees_the_fit_before():
    """And may return it."""
    seen = []

    def look(context, fit):
        seen.append((fit.judged, context.target.dim, context.density(np.zeros((3, 1)))[0].shape))
        return fit

    posterior = run(look, GaussianStart(), look)
    assert seen == [(False, 1, (3,)), (True, 1, (3,))]
    assert posterior.certified
    assert posterior.reason == "good enough"


def test_ctrl_c_in_a_later_stage_keeps_the_fit_before():
    def interrupted(context, fit):
        raise KeyboardInterrupt

    posterior = run(GaussianStart(), interrupted)
    assert posterior.certified
    assert posterior.reason == "interrupted"
    with pytest.raises(KeyboardInterrupt):
        run(interrupted)


@pytest.mark.parametrize("stages", [("GaussianStart",), (None,)])
def test_stages_that_cannot_be_called(stages):
    with pytest.raises(TypeError, match="each stage, number 1 expected a function"):
        FlowVI(normal, stages=stages)
    with pytest.raises(TypeError, match=r"number 1 expected an object .* got the class GaussianStart: write Gauss"):
        FlowVI(normal, stages=(GaussianStart,))  # pyright: ignore[reportArgumentType]


def test_a_stage_that_forgets_to_return():
    with pytest.raises(TypeError, match="expected to return a Fit, got None"):
        run(GaussianStart(), lambda context, fit: None)


def test_an_optimizer_is_a_function_of_the_learning_rate():
    with pytest.raises(TypeError, match=r"optimizer expected a function such as optax\.adam"):
        FlowTraining(optimizer=optax.adam(1e-3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"objective expected a function such as PathKL\(\)"):
        FlowTraining("KL")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_a_flow_without_a_search_is_not_certified():
    """However good its weights are."""
    with pytest.warns(UserWarning, match="no stage searched for what the fit lacks"):
        posterior = run(FlowTraining(), fallback=None)
    assert posterior.ess > 0.95
    assert not posterior.certified


@pytest.mark.slow
@pytest.mark.parametrize("training", [FlowTraining(ForwardKL()), FlowTraining(optimizer=optax.lion)])
def test_another_objective_or_optimizer(training):
    posterior = run(GaussianStart(), training, model=skewed, learning_rate=3e-3)
    assert posterior.losses.size > 0
    assert posterior.certified
