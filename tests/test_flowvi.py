"""FlowVI end to end, on models whose answer is known."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from numpyro.infer import Predictive
from numpyro.infer.autoguide import AutoNormal

from numpyro_flows import AutoFlow, FlowPosterior, FlowVI
from numpyro_flows.recipe import RECIPE
from numpyro_flows.stages import Ahead
from tests.example_models import DATA, SIGMA, Y, conjugate, conjugate_posterior, eight_schools, eight_schools_centred


@pytest.fixture(scope="module")
def schools():
    return FlowVI(eight_schools, progress_bar=False).run(jax.random.key(0), SIGMA, Y)


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)])
def test_conjugate_model(key):
    """Exactly Gaussian: no flow step is needed, and the evidence is exact."""
    posterior = FlowVI(conjugate, progress_bar=False).run(key, DATA)
    mean, sd, log_evidence = conjugate_posterior()
    assert posterior.certified
    assert posterior.ess > 0.99
    assert posterior.losses.size == 0
    assert posterior.gradient_evaluations["flow"] == 0
    assert abs(posterior.log_evidence - log_evidence) < 4.5 * posterior.log_evidence_se + 1e-3  # float32 sums
    mu = posterior.sample(jax.random.key(1), 4000)["mu"]
    assert abs(mu.mean() - mean) < 4.5 * sd / np.sqrt(4000)
    assert abs(mu.std() / sd - 1) < 4.5 / np.sqrt(2 * 4000)
    np.testing.assert_allclose(posterior.log_prob({"mu": mu[:10]}), dist.Normal(mean, sd).log_prob(mu[:10]), atol=0.05)


def test_eight_schools(schools):
    assert schools.certified
    assert schools.ess >= 0.9
    assert schools.why == ""
    # -31.311 by 10^5 importance weights of a reference fit
    assert abs(schools.log_evidence + 31.311) < 4.5 * schools.log_evidence_se + 0.002
    assert schools.elbo <= schools.log_evidence
    draws = schools.sample(jax.random.key(1), 4000)
    assert {name: value.shape for name, value in draws.items()} == {
        "mu": (4000,),
        "tau": (4000,),
        "z": (4000, 8),
        "theta": (4000, 8),
    }
    # posteriordb's reference: mu has mean 4.41 and sd 3.30, tau mean 3.61 and sd 3.20, each known to 0.02 sd
    assert abs(draws["mu"].mean() - 4.41) / 3.30 < 4.5 / np.sqrt(4000) + 0.02
    assert abs(draws["tau"].mean() - 3.61) / 3.20 < 4.5 / np.sqrt(4000) + 0.02


@pytest.mark.optimized
@pytest.mark.parametrize("seed", range(3))
def test_centred_eight_schools(seed):
    posterior = FlowVI(eight_schools_centred, progress_bar=False).run(jax.random.key(seed))
    assert posterior.certified
    assert posterior.ess >= 0.9
    # a certified fit may lack 1% of the posterior, here the bottom of the funnel, and so -log 0.99 of the log evidence
    missing = -np.log1p(-RECIPE.max_missed)
    assert abs(posterior.log_evidence + 31.311) < 4.5 * posterior.log_evidence_se + missing


def test_float64():
    with jax.enable_x64(True):
        posterior = FlowVI(eight_schools, progress_bar=False).run(jax.random.key(0))
        assert posterior.certified
        assert posterior.sample(jax.random.key(0), 10)["mu"].dtype == np.float64
        assert abs(posterior.log_evidence + 31.311) < 4.5 * posterior.log_evidence_se + 0.002


def test_draws_with_weights_and_without(schools):
    draws, log_weights = schools.sample_weighted(jax.random.key(2), 2500)
    assert draws["theta"].shape == (2500, 8)
    assert log_weights.shape == (2500,)
    weights = np.exp(log_weights - schools.log_evidence)
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / np.sqrt(2500)
    plain = schools.sample(jax.random.key(2), 2500, resample=False)
    np.testing.assert_array_equal(plain["mu"], draws["mu"])
    again = schools.sample(jax.random.key(3), 50)
    np.testing.assert_array_equal(again["tau"], schools.sample(jax.random.key(3), 50)["tau"])


def test_log_prob_is_a_density_of_the_sites(schools):
    """`E_q[p(sites, data) / q(sites)]` is the evidence: here `p` on the constrained scale."""
    draws = schools.sample(jax.random.key(4), 3000, resample=False)

    def log_joint(sites):
        return numpyro.infer.util.log_density(eight_schools, (SIGMA, Y), {}, sites)[0]

    latent = {name: draws[name] for name in ("mu", "tau", "z")}
    log_weights = jax.vmap(log_joint)(latent) - schools.log_prob(draws)
    weights = np.exp(log_weights - schools.log_evidence)
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / np.sqrt(3000) + 4.5 * schools.log_evidence_se
    single = {name: value[0] for name, value in latent.items()}
    np.testing.assert_allclose(schools.log_prob(single), schools.log_prob(draws)[0], rtol=1e-4)


def test_the_guide_is_numpyros(schools):
    guide, params = schools.guide, schools.params
    draws = guide.sample_posterior(jax.random.key(0), params, sample_shape=(2000,))
    assert abs(draws["mu"].mean() - 4.41) / 3.30 < 4.5 / np.sqrt(2000) + 0.05
    predicted = Predictive(eight_schools, guide=guide, params=params, num_samples=4)(jax.random.key(0), y=None)
    assert predicted["y"].shape == (4, 8)


def test_save_and_load(schools, tmp_path):
    schools.save(tmp_path / "fit")
    again = FlowPosterior.load(tmp_path / "fit", eight_schools, SIGMA, Y)
    assert again.certificate == schools.certificate
    np.testing.assert_array_equal(again.losses, schools.losses)
    draws = schools.sample(jax.random.key(0), 20)
    np.testing.assert_allclose(again.sample(jax.random.key(0), 20)["theta"], draws["theta"], rtol=1e-4)
    assert again.guide.median(again.params)["tau"] > 0
    with pytest.raises(ValueError, match="expected the model that was fitted, with sites"):
        FlowPosterior.load(tmp_path / "fit", eight_schools_centred)
    with pytest.raises(ValueError, match="expected the model and data that were fitted"):
        FlowPosterior.load(tmp_path / "fit", eight_schools, SIGMA, Y + 10)


def test_summary_says_the_verdict_first(schools, capsys):
    schools.print_summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "CERTIFIED"
    assert any(line.startswith("tau") for line in lines)
    assert schools.summary().loc["mu", "mean"] == pytest.approx(4.4, abs=0.5)


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


def heavy(dim=5):
    numpyro.sample("x", dist.StudentT(1.2).expand([dim]).to_event(1))


def test_what_is_not_certified_says_so(capsys):
    with pytest.warns(UserWarning, match="the fit is not certified: heavy tails: .* 1.2 degrees of freedom"):
        posterior = FlowVI(heavy, num_steps=50, progress_bar=False).run(jax.random.key(0))
    assert not posterior.certified
    assert "after 50 steps" in posterior.why
    assert posterior.losses.shape == (50,)
    assert posterior.gradient_evaluations["flow"] == 50 * RECIPE.num_particles
    posterior.print_summary()
    assert capsys.readouterr().out.startswith("NOT CERTIFIED: heavy tails")


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
        posterior = FlowVI(model, num_steps=RECIPE.chunk, progress_bar=False).run(jax.random.key(0), 9.0)
    assert posterior.num_skipped == RECIPE.chunk
    assert f"({RECIPE.chunk} skipped as not finite)" in posterior.why


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
    """30% at -4, 70% at 4: weights see nothing, the search from dispersed starts does."""

    def model():
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        modes = [dist.Normal(place, 1).to_event(1).log_prob(x) for place in (jnp.full(2, -3.0), jnp.full(2, 3.0))]
        numpyro.factor("modes", jnp.logaddexp(jnp.log(0.3) + modes[0], jnp.log(0.7) + modes[1]))

    with pytest.warns(UserWarning, match="a mode that the fit lacks holds about 30% of the posterior"):
        posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0))
    assert not posterior.certified
    assert posterior.ess > 0.99
    assert posterior.sample(jax.random.key(0), 100)["x"].min() > -2  # the heavier one


def test_without_a_flow_stage():
    posterior = FlowVI(conjugate, num_steps=0, progress_bar=False).run(jax.random.key(0), DATA)
    assert posterior.certified


def test_a_density_that_is_nan_here_and_there():
    """NaN on a third of the space: training goes on where it can, ends soon, and the verdict is no."""

    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("broken", jnp.where(x > 0.43, jnp.nan, 0.0))

    with pytest.warns(UserWarning, match="log weights are NaN"):
        posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0))
    assert not posterior.certified
    assert "training was stopped because the density is not finite" in posterior.why
    assert posterior.losses.shape == (RECIPE.first_round,)
    assert np.isfinite(posterior.losses).all()
    assert np.all(np.isfinite(posterior.sample(jax.random.key(0), 100, resample=False)["x"]))


def test_ctrl_c_returns_what_was_fitted(monkeypatch):
    calls = []
    call = Ahead.__call__

    def interrupted(self, *args):
        if len(args) == 5:  # a chunk of training
            calls.append(args)
            if len(calls) == 3:
                raise KeyboardInterrupt
        return call(self, *args)

    monkeypatch.setattr(Ahead, "__call__", interrupted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # whether two chunks suffice is not the question here
        posterior = FlowVI(eight_schools_centred, progress_bar=False).run(jax.random.key(0))
    assert posterior.losses.shape == (2 * RECIPE.chunk,)
    assert posterior.sample(jax.random.key(0), 10)["tau"].shape == (10,)
    assert posterior.certified or "training was interrupted" in posterior.why


def test_a_failure_in_training_returns_what_was_fitted(monkeypatch):
    call = Ahead.__call__

    def failing(self, *args):
        if len(args) == 5:
            raise jax.errors.JaxRuntimeError("out of memory")
        return call(self, *args)

    monkeypatch.setattr(Ahead, "__call__", failing)
    with pytest.warns(UserWarning, match="stopped by an error: out of memory"):
        posterior = FlowVI(eight_schools_centred, progress_bar=False).run(jax.random.key(0))
    assert posterior.losses.shape == (0,)
    assert not posterior.certified


def test_progress_bar(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        FlowVI(eight_schools_centred, num_steps=RECIPE.chunk).run(jax.random.key(0))
    shown = capsys.readouterr().err
    assert "flow stage" in shown
    assert "loss=" in shown
    assert "ESS=" in shown


def test_errors():
    with pytest.raises(TypeError, match="guide expected an AutoFlow or None, got AutoNormal"):
        FlowVI(conjugate, AutoNormal(conjugate))  # pyright: ignore
    with pytest.raises(ValueError, match=r"guide expected to be one of .*conjugate.*, got one of .*eight_schools"):
        FlowVI(conjugate, AutoFlow(eight_schools))
    with pytest.raises(ValueError, match="num_steps expected at least 0, got -1"):
        FlowVI(conjugate, num_steps=-1)
    with pytest.raises(ValueError, match=r"learning_rate expected a number in \(0, inf\), got 0.0"):
        FlowVI(conjugate, learning_rate=0.0)
    with pytest.raises(ValueError, match="observed values without NaN, got 1 of 5 at 'y'"):
        FlowVI(conjugate, progress_bar=False).run(jax.random.key(0), DATA.at[0].set(jnp.nan))

    def nowhere():
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("broken", jnp.log(-1.0 - x**2))

    with pytest.raises(ValueError, match=r"at 16 starts: not finite are the sites \['broken'\]"):
        FlowVI(nowhere, progress_bar=False).run(jax.random.key(0))


def test_result_errors(schools):
    with pytest.raises(ValueError, match="num_samples expected at least 1, got 0"):
        schools.sample(jax.random.key(0), 0)
    with pytest.raises(ValueError, match=r"missing \['z'\]"):
        schools.log_prob({"mu": 1.0, "tau": 1.0})
    with pytest.raises(ValueError, match=r"expected 'z' of shape \(\*batch, \*\(8,\)\), got \(7,\)"):
        schools.log_prob({"mu": 1.0, "tau": 1.0, "z": jnp.zeros(7)})


@pytest.mark.optimized
def test_a_flowjax_flow():
    def theirs(key, dim):
        return coupling_flow(key, base_dist=Normal(jnp.zeros(dim)), flow_layers=2, nn_width=16).bijection

    bijection = theirs(jax.random.key(0), 10)
    guide = AutoFlow(eight_schools, lambda key, dim: bijection)
    posterior = FlowVI(eight_schools, guide, progress_bar=False).run(jax.random.key(0))
    assert posterior.certified
    with pytest.raises(ValueError, match="make the bijection before"):
        FlowVI(eight_schools, AutoFlow(eight_schools, theirs), progress_bar=False).run(jax.random.key(0))


def test_a_guide_of_ones_own():
    guide = AutoFlow(eight_schools, prefix="mine")
    posterior = FlowVI(eight_schools, guide, progress_bar=False).run(jax.random.key(1))
    assert list(posterior.params) == ["mine_flow$params"]
    assert guide.prototype_trace is None  # the caller's object stays as it was
