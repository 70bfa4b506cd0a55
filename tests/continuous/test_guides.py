"""A continuous flow as a guide: SVI, FlowVI and its certificate, NeuTra."""

import pickle
import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI
from numpyro.infer.reparam import NeuTraReparam
from numpyro.infer.util import log_density

from numpyro_flows import AutoFlow, FlowTransform, FlowVI, PathELBO, flows
from numpyro_flows.bijections import Elementwise, SinhArcsinh
from numpyro_flows.bijections.compose import trained_and_fixed
from numpyro_flows.continuous import ContinuousFlow, Exact, Hutchinson, LinearField, MLPField, Training
from numpyro_flows.continuous.training_form import continuous_flows
from numpyro_flows.inference.certificate import certify
from numpyro_flows.inference.compiled import FlowFunctions
from numpyro_flows.inference.flow_training import FlowTask, train_flow
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.stages import Fit
from numpyro_flows.inference.survey import Survey
from numpyro_flows.modeling.guides import affine
from numpyro_flows.training.clock import Clock
from numpyro_flows.training.seeds import Seeds
from numpyro_flows.training.steps import TrainState
from numpyro_flows.training.watch import Watch
from tests.bijections.cases import perturbed
from tests.continuous.common import COARSE, KEY, with_random_parameters
from tests.densities import normals, standard_fit

SETTINGS = FlowVISettings()

FEW = 2  # solver steps


SOLVED: list[int] = []


class Counting(diffrax.Euler):
    """Euler's method, which counts what it is asked to solve."""

    def init(self, terms, t0, t1, y0, args):
        SOLVED.append(1)
        return super().init(terms, t0, t1, y0, args)


def quick(key, dim: int) -> ContinuousFlow:
    """Linear and solved in few steps, quick to compile."""
    options: dict[str, Any] = COARSE | {"solver": Counting()}
    return ContinuousFlow(LinearField(dim), **options)


def banana():
    """Its evidence is 1, and a Gaussian's effective sample size low."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(x**2, 0.5))


@pytest.fixture(scope="module")
def posterior():
    field = partial(MLPField, hidden=(16,), time="concatenated")
    flow = partial(flows.ffjord, field=field, training=Training(num_steps=FEW, solver=diffrax.Euler()))
    return FlowVI(banana, AutoFlow(banana, flow), num_particles=64, target_ess=0.9, progress_bar=False).run(KEY)


@pytest.mark.slow
def test_a_certified_fit(posterior):
    assert posterior.certified
    assert posterior.ess >= 0.9
    assert posterior.losses.size > 0  # it was the flow that was trained
    assert abs(posterior.log_evidence) < 4.5 * posterior.log_evidence_se + 1e-3
    draws = posterior.sample(jax.random.key(1), 4000)
    residual = np.asarray(draws["y"] - draws["x"] ** 2) / 0.5
    assert abs(residual.mean()) < 4.5 / np.sqrt(4000)
    assert abs(residual.std() - 1) < 4.5 / np.sqrt(2 * 4000)


@pytest.mark.slow
def test_solver_steps_are_raised_in_training(posterior):
    """Where the ELBO by training's solver and by the flow's own are apart, as in two steps of Euler."""
    (flow,) = continuous_flows(posterior.bijection)
    assert flow.training.num_steps > FEW


class Scripted:
    """A function that gives what a compiled one would."""

    def __init__(self, result):
        self.result = result

    def __call__(self, *args):
        return self.result

    def wait(self):
        """As a function compiled in the background has it."""


@pytest.mark.parametrize(("divergence", "certified"), [(Exact(), True), (Hutchinson(KEY), False)])
def test_estimated_densities_are_not_certified(divergence, certified):
    """Not even by weights that are all alike; rounds and draws are scripted."""
    arrays, static = eqx.partition(ContinuousFlow(LinearField(2), divergence=divergence), eqx.is_array)
    recipe = replace(SETTINGS, num_steps=SETTINGS.chunk)  # one round
    rng = np.random.default_rng(0)
    block: Any = rng.normal(size=(recipe.block, 2)), np.zeros(recipe.block), np.zeros(recipe.block)
    trained: Any = TrainState(trained_and_fixed(arrays)[0], ()), np.zeros(recipe.chunk), np.zeros(())
    results = {"begin": trained[0], "make": arrays, "train": trained, "draw": block, "log_prob": block[1]}
    scripted: dict[str, Any] = {name: Scripted(result) for name, result in results.items()}
    functions = FlowFunctions(draw_coarsely=None, static=static, **scripted)
    log_weights = rng.normal(scale=3.0, size=2000)
    survey = Survey()
    start = Fit(np.zeros(2), np.eye(2), affine(jnp.zeros(2), jnp.eye(2)), certify(log_weights), log_weights, survey)
    density, gaussian = normals([1.0], [[0.0, 0.0]], [1.0]), standard_fit(2)
    task = FlowTask(recipe, functions, survey, Seeds((0,)), Clock(), density, gaussian)
    fit = train_flow(task, start, Watch())
    assert fit.certificate.certified == certified
    assert ("log densities are random estimates (Hutchinson's" in fit.certificate.why) == (not certified)


@pytest.mark.slow
def test_svi():
    """By path gradients, which go through the flow in both directions."""
    svi = SVI(banana, AutoFlow(banana, quick), numpyro.optim.Adam(3e-2), PathELBO(8))

    @eqx.filter_jit
    def run(key):
        return jax.lax.scan(lambda state, _: svi.update(state), svi.init(key), length=60)[1]

    losses = run(jax.random.key(0))
    assert np.isfinite(losses).all()
    assert losses[-10:].mean() < losses[:10].mean() - 1.0


@pytest.fixture
def neutra():
    guide = AutoFlow(banana, quick)
    bijection = with_random_parameters(lambda key: guide.make_bijection(key, jnp.zeros(2), jnp.ones(2)))
    guide.set_up(bijection)
    return NeuTraReparam(guide, {guide.param_name: guide.parameters(bijection)})


@pytest.mark.slow
def test_neutra_solves_once_for_a_density(neutra):
    model = neutra.reparam(banana)

    @eqx.filter_jit
    def density(z):
        return log_density(numpyro.handlers.seed(model, 0), (), {}, {"auto_shared_latent": z})[0]

    z = jnp.array([0.3, -0.5])
    SOLVED.clear()
    value = density(z)
    assert len(SOLVED) == 1

    @eqx.filter_jit
    def by_its_parts(z):
        x, log_det = neutra.transform(z), neutra.transform.log_abs_det_jacobian(z, None)
        return log_density(banana, (), {}, neutra.guide._unpack_latent(x))[0] + log_det

    np.testing.assert_allclose(value, by_its_parts(z), rtol=1e-5)


def test_the_log_determinant_of_another_value_is_not_reused():
    transform = FlowTransform(perturbed(Elementwise(2, SinhArcsinh()), scale=0.5))
    x, other = jnp.array([0.5, 1.0]), jnp.array([-0.5, 2.0])
    y = transform(x)
    known = transform.log_abs_det_jacobian(x, y)
    np.testing.assert_allclose(known, transform.call_with_intermediates(x)[1])
    y_other = transform.call_with_intermediates(other)[0]
    np.testing.assert_allclose(
        transform.log_abs_det_jacobian(other, y_other), transform.call_with_intermediates(other)[1]
    )
    pickle.loads(pickle.dumps(transform))  # what is remembered holds weak references
    y = weakref.ref(transform(x))
    assert y() is None  # nor does it keep the value
    with jax.checking_leaks():
        jax.jit(lambda x: transform.log_abs_det_jacobian(x, transform(x)))(x)


def test_exact_by_default():
    small, large = (eqx.filter_eval_shape(partial(flows.ffjord, dim=dim), KEY) for dim in (32, 64))
    assert isinstance(large.divergence, Exact)
    assert isinstance(large.training.divergence, Hutchinson)
    assert small.training.divergence is None
