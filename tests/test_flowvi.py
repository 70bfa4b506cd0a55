"""FlowVI end to end, on models whose answer is known."""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from numpyro.infer.autoguide import AutoNormal
from scipy.stats import norm

from numpyro_flows import AutoFlow, FlowPosterior, FlowTraining, FlowVI, GaussianStart, flows
from numpyro_flows.inference.settings import FlowVISettings
from tests.example_models import DATA, conjugate, conjugate_posterior, eight_schools, eight_schools_centred

SETTINGS = FlowVISettings()

TINY = partial(flows.realnvp, num_layers=1, hidden=(4,))  # the quickest to compile


def banana():
    """Of two coordinates, and not Gaussian: it needs a flow."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(x**2, 0.5))


def test_conjugate_model():
    """Exactly Gaussian: no flow step is needed, and the evidence is exact."""
    posterior = FlowVI(conjugate, progress_bar=False).run(jax.random.key(0), DATA)
    mean, sd, log_evidence = conjugate_posterior()
    assert posterior.certified
    assert posterior.ess > 0.99
    assert posterior.losses.size == 0
    assert posterior.gradient_evaluations["flow"] == 0
    assert abs(posterior.log_evidence - log_evidence) < 4.5 * posterior.log_evidence_se + 1e-3  # float32 sums
    mu = np.asarray(posterior.sample(jax.random.key(1), 4000)["mu"])
    assert abs(mu.mean() - mean) < 4.5 * sd / np.sqrt(4000)
    assert abs(mu.std() / sd - 1) < 4.5 / np.sqrt(2 * 4000)
    np.testing.assert_allclose(posterior.log_prob({"mu": mu[:10]}), norm.logpdf(mu[:10], mean, sd), atol=0.05)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("seed", range(3))
def test_centred_eight_schools(seed):
    posterior = FlowVI(eight_schools_centred, progress_bar=False).run(jax.random.key(seed))
    assert posterior.certified
    assert posterior.ess >= SETTINGS.target_ess
    # a certified fit may lack 1% of the posterior, here the bottom of the funnel, and so -log 0.99 of the log evidence
    missing = -np.log1p(-SETTINGS.max_missed)
    assert abs(posterior.log_evidence + 31.311) < 4.5 * posterior.log_evidence_se + missing


@pytest.mark.slow
def test_non_centred_eight_schools(x64):
    posterior = FlowVI(eight_schools, progress_bar=False).run(jax.random.key(0))
    assert posterior.certified
    draws = posterior.sample(jax.random.key(0), 10)
    assert draws["mu"].dtype == np.float64
    np.testing.assert_allclose(draws["theta"], draws["mu"][:, None] + draws["tau"][:, None] * draws["z"], rtol=1e-9)
    assert abs(posterior.log_evidence + 31.311) < 4.5 * posterior.log_evidence_se + 0.002


def test_float64(x64):
    """By a key of the old style."""
    posterior = FlowVI(conjugate, progress_bar=False).run(jax.random.PRNGKey(0), DATA)
    assert posterior.sample(jax.random.PRNGKey(0), 10)["mu"].dtype == np.float64
    assert abs(posterior.log_evidence - conjugate_posterior()[2]) < 1e-9  # weights of an exact fit are constant


@pytest.mark.slow
def test_one_skewed_coordinate():
    """A scale known from two values: the Gaussian fails, and an affine map can do no better."""

    def model(y):
        tau = numpyro.sample("tau", dist.HalfCauchy(1))
        numpyro.sample("y", dist.Normal(0, tau), obs=y)

    y = jnp.array([0.3, -0.2])
    posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0), y)
    assert posterior.certified
    grid = np.linspace(1e-4, 2000, 4_000_001)
    joint = 2 / np.pi / (1 + grid**2) * np.exp(-0.5 * 0.13 / grid**2) / (2 * np.pi * grid**2)
    assert abs(posterior.log_evidence - np.log(np.trapezoid(joint, grid))) < 4.5 * posterior.log_evidence_se + 1e-3


def test_what_is_not_certified_says_so(capsys):
    def heavy():
        numpyro.sample("x", dist.Cauchy().expand([2]).to_event(1))

    def flow(key, dim):
        made.append(dim)
        return TINY(key, dim)

    made: list[int] = []
    fit = FlowVI(heavy, AutoFlow(heavy, flow), num_steps=0, fallback=None, progress_bar=False)
    with pytest.warns(UserWarning, match="the fit is not certified: .*k-hat"):
        posterior = fit.run(jax.random.key(0))
    assert not posterior.certified
    assert not made  # without steps of training there is no flow to compile
    posterior.print_summary()
    assert capsys.readouterr().out.startswith("NOT CERTIFIED: ")
    assert posterior.certificate.tail_index == pytest.approx(1.0, abs=0.01)
    assert "heavy tails, of index 1" in posterior.verdict()


def test_settings_are_those_that_were_given():
    """In every stage: of other thresholds the verdict speaks, and it is on as many draws as were asked for."""
    strict = FlowVISettings(num_steps=0, min_ess=1.0, sufficient_ess=1.0, max_khat=1e-6, certificate_draws=3_000)
    fit = FlowVI(eight_schools, settings=strict, fallback=None, progress_bar=False)
    with pytest.warns(UserWarning, match=r"a certificate needs k-hat < 1e-06 with ESS >= 100%"):
        posterior = fit.run(jax.random.key(0))
    assert posterior.log_weights.shape == (3_000,)


@pytest.mark.parametrize("setting", [{"min_ess": 1e-6, "max_khat": 50.0}, {"max_missed": 1.0, "dispersed_starts": 1}])
def test_a_certificate_by_looser_settings_says_so_and_is_not_in_the_file(setting, tmp_path):
    """Whether or not the weights alone would be certified."""
    model = banana if "max_khat" in setting else conjugate
    data = () if model is banana else (DATA,)
    loose = FlowVISettings(num_steps=0, **setting)
    posterior = FlowVI(model, settings=loose, verify="weights", progress_bar=False).run(jax.random.key(0), *data)
    assert posterior.certified
    assert posterior.verdict().startswith("CERTIFIED, by looser settings than the default: ")
    posterior.save(tmp_path / "fit")
    loaded = FlowPosterior.load(tmp_path / "fit", model, *data)
    assert not loaded.certified
    assert all(f"{name}={value}" in loaded.why for name, value in setting.items())


def test_a_guide_of_ones_own_and_a_progress_bar(capsys):
    guide = AutoFlow(banana, TINY, prefix="mine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # whether so few steps suffice is not the question here
        posterior = FlowVI(banana, guide, num_steps=SETTINGS.chunk, fallback=None).run(jax.random.key(1))
    assert list(posterior.params) == ["mine_flow$params"]
    assert guide.prototype_trace is None  # the caller's object stays as it was
    assert posterior.losses.shape == (SETTINGS.chunk,)
    assert posterior.gradient_evaluations["flow"] == SETTINGS.chunk * SETTINGS.num_particles
    shown = capsys.readouterr().err
    for expected in ("flow stage", "loss=", "ess="):
        assert expected in shown


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_and_counted():
    """A density whose gradient is never finite."""

    @jax.custom_vjp
    def rough(x):
        return -jnp.abs(x).sum()

    rough.defvjp(lambda x: (rough(x), x), lambda x, g: (jnp.nan * x,))

    def model(scale):
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        numpyro.factor("rough", rough(x / scale))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        stages = (GaussianStart(), FlowTraining())  # a mixture would need no gradient
        fit = FlowVI(model, stages=stages, num_steps=SETTINGS.chunk, fallback=None, progress_bar=False)
        posterior = fit.run(jax.random.key(0), 9.0)
    assert posterior.num_skipped == SETTINGS.chunk
    assert f"({SETTINGS.chunk} skipped as not finite)" in posterior.why


def test_a_model_without_second_derivatives():
    """As those with an ODE solver: nothing may differentiate a gradient again."""

    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))

    def model():
        x = numpyro.sample("x", dist.Normal(1, 2))
        numpyro.factor("more", -0.5 * square(x))

    posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0))
    assert posterior.certified
    draws = posterior.sample(jax.random.key(1), 4000)["x"]  # precision 1 + 1/4
    assert abs(draws.mean() - 0.2) < 4.5 * np.sqrt(0.8 / 4000)


def test_a_missed_mode():
    """30% at -4, 70% at 4: weights see nothing, the search elsewhere does."""

    def model():
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        modes = [dist.Normal(place, 1).to_event(1).log_prob(x) for place in (jnp.full(2, -3.0), jnp.full(2, 3.0))]
        numpyro.factor("modes", jnp.logaddexp(jnp.log(0.3) + modes[0], jnp.log(0.7) + modes[1]))

    with pytest.warns(UserWarning, match="a search found elsewhere about (2[6-9]|3[0-4])% of the posterior"):
        posterior = FlowVI(model, fallback=None, progress_bar=False).run(jax.random.key(0))
    assert not posterior.certified
    assert posterior.ess > 0.99
    assert posterior.sample(jax.random.key(0), 100)["x"].min() > -2  # the heavier one


@pytest.mark.slow
def test_a_density_that_is_nan_here_and_there():
    """NaN on a third of the space: training goes on where it can, ends soon, and the verdict is no."""

    def model():
        x = jnp.asarray(numpyro.sample("x", dist.Normal(0, 1)))
        numpyro.factor("broken", jnp.where(x > 0.43, jnp.nan, 0.0))

    with pytest.warns(UserWarning, match="log weights are NaN"):
        posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0))
    assert not posterior.certified
    assert "training was stopped because the density is not finite" in posterior.why
    assert posterior.losses.shape == (SETTINGS.first_round,)
    assert np.isfinite(posterior.losses).all()
    assert np.all(np.isfinite(posterior.sample(jax.random.key(0), 100, resample=False)["x"]))


def test_errors():
    with pytest.raises(TypeError, match="guide expected an AutoFlow or None, got AutoNormal"):
        FlowVI(conjugate, AutoNormal(conjugate))  # pyright: ignore
    with pytest.raises(
        ValueError, match=r"guide expected an AutoFlow of the model .*conjugate.*, got one of .*eight_schools"
    ):
        FlowVI(conjugate, AutoFlow(eight_schools))
    with pytest.raises(ValueError, match="num_steps expected at least 0, got -1"):
        FlowVI(conjugate, num_steps=-1)
    with pytest.raises(ValueError, match=r"learning_rate expected a number in \(0, inf\), got 0.0"):
        FlowVI(conjugate, learning_rate=0.0)
    with pytest.raises(ValueError, match="observed values that are finite, got 1 of 5 NaN or infinite at 'y'"):
        FlowVI(conjugate, progress_bar=False).run(jax.random.key(0), DATA.at[0].set(jnp.nan))

    def nowhere():
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("broken", jnp.log(-1.0 - x**2))

    with pytest.raises(ValueError, match=r"at 16 starts: the log density is not finite at the sites \['broken'\]"):
        FlowVI(nowhere, progress_bar=False).run(jax.random.key(0))


@pytest.mark.unchecked
@pytest.mark.slow
@pytest.mark.optimized
def test_a_flowjax_flow():
    def theirs(key, dim) -> Any:
        return coupling_flow(key, base_dist=Normal(jnp.zeros(dim)), flow_layers=2, nn_width=16).bijection

    bijection = theirs(jax.random.key(0), 10)
    guide = AutoFlow(eight_schools, lambda key, dim: bijection)
    posterior = FlowVI(eight_schools, guide, progress_bar=False).run(jax.random.key(0))
    assert posterior.certified
    with pytest.raises(ValueError, match="make the bijection before"):
        FlowVI(eight_schools, AutoFlow(eight_schools, theirs), progress_bar=False).run(jax.random.key(0))
