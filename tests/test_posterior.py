"""What a fit gives, on one that needed a flow and whose answer is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

from numpyro_flows import AutoFlow, FlowPosterior, FlowVI, flows
from numpyro_flows.inference.settings import FlowVISettings
from tests.example_models import conjugate

SETTINGS = FlowVISettings()

Z = 0.7


def banana(z=None):
    """What is observed depends on nothing: the posterior is the prior, the evidence the density of `z`."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    y = numpyro.sample("y", dist.Normal(x**2, 0.5))
    numpyro.deterministic("both", jnp.stack([x, y]))
    numpyro.sample("z", dist.Normal(0, 1), obs=z)


MOMENTS = {"x": (0.0, 1.0), "y": (1.0, 1.5)}  # means and standard deviations
LOG_EVIDENCE = -0.5 * Z**2 - 0.5 * np.log(2 * np.pi)


@pytest.fixture(scope="module")
def posterior() -> FlowPosterior:
    small = partial(flows.realnvp, num_layers=4, hidden=(16,))
    return FlowVI(banana, AutoFlow(banana, small), progress_bar=False).run(jax.random.key(0), Z)


def test_the_fit_is_certified_and_right(posterior):
    assert posterior.losses.size > 0  # it was trained
    assert posterior.certified
    assert posterior.why == ""
    assert posterior.ess >= SETTINGS.min_ess
    assert abs(posterior.log_evidence - LOG_EVIDENCE) < 4.5 * posterior.log_evidence_se + 1e-3
    assert posterior.elbo <= posterior.log_evidence
    draws = posterior.sample(jax.random.key(1), 4000)
    assert {name: value.shape for name, value in draws.items()} == {"x": (4000,), "y": (4000,), "both": (4000, 2)}
    np.testing.assert_array_equal(draws["both"], np.stack([draws["x"], draws["y"]], axis=1))
    for name, (mean, sd) in MOMENTS.items():
        assert abs(draws[name].mean() - mean) / sd < 4.5 / np.sqrt(4000)


def test_draws_with_weights_and_without(posterior):
    draws, log_weights = posterior.sample_weighted(jax.random.key(2), 2500)
    assert draws["both"].shape == (2500, 2)
    assert log_weights.shape == (2500,)
    weights = np.exp(log_weights - LOG_EVIDENCE)
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / np.sqrt(2500)
    plain = posterior.sample(jax.random.key(2), 2500, resample=False)
    np.testing.assert_array_equal(plain["x"], draws["x"])
    again = posterior.sample(jax.random.key(3), 50)
    np.testing.assert_array_equal(again["x"], posterior.sample(jax.random.key(3), 50)["x"])


def test_log_prob_is_a_density_of_the_sites(posterior):
    """`E_q[p(sites, data) / q(sites)]` is the evidence: here `p` on the constrained scale."""
    draws = posterior.sample(jax.random.key(2), 2500, resample=False)
    latent = {name: draws[name] for name in MOMENTS}
    log_joint = jax.jit(jax.vmap(lambda sites: log_density(banana, (Z,), {}, sites)[0]))(latent)
    weights = np.exp(log_joint - posterior.log_prob(draws) - LOG_EVIDENCE)
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / np.sqrt(2500)
    single = {name: value[0] for name, value in latent.items()}
    np.testing.assert_allclose(posterior.log_prob(single), posterior.log_prob(draws)[0], rtol=1e-4)


def test_the_guide_is_numpyros(posterior):

    @jax.jit
    def evaluate(key, params):
        guide = posterior.guide
        draws = guide.sample_posterior(key, params, sample_shape=(2000,))
        return draws["y"].mean(), Predictive(banana, guide=guide, params=params, num_samples=4)(key)

    mean, predicted = evaluate(jax.random.key(0), posterior.params)
    assert abs(mean - 1.0) / 1.5 < 4.5 / np.sqrt(2000) + 0.05
    assert predicted["z"].shape == (4,)


def test_save_and_load(posterior, tmp_path):
    posterior.save(tmp_path / "fit")
    again = FlowPosterior.load(tmp_path / "fit", banana, Z)
    # a file keeps the weights, and not what was searched elsewhere
    beside = {"checks": (), "log_evidence_se": again.log_evidence_se}
    assert again.certificate == posterior.certificate._replace(**beside)
    np.testing.assert_array_equal(again.losses, posterior.losses)
    draws = posterior.sample(jax.random.key(3), 50)
    np.testing.assert_allclose(again.sample(jax.random.key(3), 50)["both"], draws["both"], rtol=1e-4)
    with pytest.raises(ValueError, match="expected the model that was fitted, with sites"):
        FlowPosterior.load(tmp_path / "fit", conjugate)
    with pytest.raises(ValueError, match="expected the model and data that were fitted"):
        FlowPosterior.load(tmp_path / "fit", banana, Z + 10)


def test_summary_says_the_verdict_first(posterior, capsys):
    posterior.print_summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "CERTIFIED"
    assert any(line.startswith("both") for line in lines)
    assert any(line.startswith("checked by weights, ") for line in lines)
    assert any("khat" in line for line in lines)
    assert not any("too heavy" in line for line in lines)
    row = posterior.summary().loc["y"]
    assert abs(row["mean"] - MOMENTS["y"][0]) < 4.5 * row["mcse_mean"]
    assert row["sd"] == pytest.approx(MOMENTS["y"][1], rel=0.1)


def test_errors(posterior):
    with pytest.raises(ValueError, match="num_samples expected at least 1, got 0"):
        posterior.sample(jax.random.key(0), 0)
    with pytest.raises(ValueError, match=r"missing \['y'\]"):
        posterior.log_prob({"x": 1.0})
    with pytest.raises(ValueError, match=r"expected 'y' of shape \(\), got \(7,\)"):
        posterior.log_prob({"x": 1.0, "y": jnp.zeros(7)})
