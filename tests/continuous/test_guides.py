"""A continuous flow as a guide: SVI, FlowVI and its certificate, NeuTra."""

import pickle
from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.reparam import NeuTraReparam
from numpyro.infer.util import log_density

from numpyro_flows import AutoFlow, FlowTransform, FlowVI, PathELBO, flows
from numpyro_flows.bijections import Elementwise, SinhArcsinh
from numpyro_flows.continuous import ContinuousFlow, Exact, Hutchinson, LinearField, MLPField, Training
from tests.bijections.cases import perturbed
from tests.continuous.common import KEY, quick_to_compile

SMALL = partial(flows.ffjord, field=partial(MLPField, hidden=(16, 16)))


def quick(key, dim: int, field=LinearField, divergence=None) -> ContinuousFlow:
    """A flow of few steps of Euler, quick to compile, for what is the same for all flows."""
    return ContinuousFlow(
        field(dim),
        divergence=divergence,
        solver=diffrax.Euler(),
        stepsize_controller=diffrax.ConstantStepSize(),
        num_steps=8,
        training=Training(num_steps=8, solver=diffrax.Euler()),
    )


def quick_with_network(key, dim: int) -> ContinuousFlow:
    return quick(key, dim, field=partial(MLPField, key, hidden=(16,)))


def banana():
    """Its evidence is 1, and a Gaussian's effective sample size low."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(x**2, 0.5))


@pytest.fixture(scope="module")
def posterior():
    return FlowVI(banana, AutoFlow(banana, SMALL), progress_bar=False).run(KEY)


def test_a_certified_fit(posterior):
    assert posterior.certified
    assert posterior.ess >= 0.9
    assert posterior.losses.size > 0  # it was the flow that was trained
    assert abs(posterior.log_evidence) < 4.5 * posterior.log_evidence_se + 1e-3
    draws = posterior.sample(jax.random.key(1), 4000)
    residual = np.asarray(draws["y"] - draws["x"] ** 2) / 0.5
    assert abs(residual.mean()) < 4.5 / np.sqrt(4000)
    assert abs(residual.std() - 1) < 4.5 / np.sqrt(2 * 4000)


def test_estimated_densities_are_not_certified():
    flow = partial(quick, divergence=Hutchinson(KEY))
    with pytest.warns(UserWarning, match="not certified: log densities are random estimates, by Hutchinson's"):
        fit = FlowVI(banana, AutoFlow(banana, flow), num_steps=1, progress_bar=False).run(KEY)
    assert not fit.certified


def test_solver_steps_are_raised_in_training(monkeypatch):
    """From the first round on, where the ELBO by training's solver and by the flow's own are apart."""
    from numpyro_flows import flow_stage

    checks = []
    original = flow_stage.FlowStage._solver_is_too_coarse

    def check(self, arrays):
        checks.append(original(self, arrays))
        return checks[-1] or len(checks) == 1

    monkeypatch.setattr(flow_stage.FlowStage, "_solver_is_too_coarse", check)
    with pytest.warns(UserWarning, match="not certified"):
        fit = FlowVI(banana, AutoFlow(banana, quick), num_steps=1, progress_bar=False).run(KEY)
    steps = [node.training.num_steps for node in jax.tree.leaves(fit.bijection, is_leaf=_is_flow) if _is_flow(node)]
    assert [int(n) for n in steps] == [16]


def _is_flow(node):
    return isinstance(node, ContinuousFlow)


@pytest.mark.parametrize("loss", [Trace_ELBO(8), PathELBO(8)], ids=["total gradient", "path gradient"])
def test_svi(loss):
    svi = SVI(banana, AutoFlow(banana, quick_with_network), numpyro.optim.Adam(1e-2), loss)
    result = svi.run(jax.random.key(0), 60, progress_bar=False)
    assert np.isfinite(result.losses).all()
    assert result.losses[-10:].mean() < result.losses[:10].mean() - 1.0


@pytest.fixture
def neutra():
    guide = AutoFlow(banana, quick_with_network)
    svi = SVI(banana, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    params = svi.get_params(svi.init(jax.random.key(0)))
    return NeuTraReparam(guide, perturbed(params))


def test_neutra_solves_once_for_a_density(neutra, monkeypatch):
    calls = []
    solve = ContinuousFlow.solve
    monkeypatch.setattr(ContinuousFlow, "solve", lambda *args, **kwargs: calls.append(1) or solve(*args, **kwargs))
    model = neutra.reparam(banana)

    @quick_to_compile
    def density(z):
        return log_density(numpyro.handlers.seed(model, 0), (), {}, {"auto_shared_latent": z})[0]

    z = jnp.array([0.3, -0.5])
    value = density(z)
    assert len(calls) == 1
    x, log_det = quick_to_compile(neutra.transform.call_with_intermediates)(z)
    sites = neutra.guide._unpack_latent(x)
    expected = log_density(banana, (), {}, sites)[0] + log_det
    np.testing.assert_allclose(value, expected, rtol=1e-5)


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
    transform(x)
    assert transform._last_call is None  # its value has gone
    with jax.checking_leaks():
        jax.jit(lambda x: transform.log_abs_det_jacobian(x, transform(x)))(x)


def test_exact_by_default():
    small, large = (eqx.filter_eval_shape(partial(flows.ffjord, dim=dim), KEY) for dim in (32, 64))
    assert isinstance(large.divergence, Exact)
    assert isinstance(large.training.divergence, Hutchinson)
    assert small.training.divergence is None
