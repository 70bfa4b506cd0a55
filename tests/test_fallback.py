"""What follows where a fit is refused: draws of a mixture, or of Markov chains, with the same results as any other."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_flows import FlowPosterior, FlowVI
from numpyro_flows.inference.chains import Sampler
from numpyro_flows.inference.settings import FlowVISettings


def two_modes():
    """30% at -3, 70% at 3."""
    x = jnp.asarray(numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,))))
    modes = [dist.Normal(place, 1).to_event(1).log_prob(x) for place in (jnp.full(2, -3.0), jnp.full(2, 3.0))]
    numpyro.factor("modes", jnp.logaddexp(jnp.log(0.3) + modes[0], jnp.log(0.7) + modes[1]))
    numpyro.deterministic("first", x[..., 0])


@pytest.fixture(scope="module")
def by_mixture() -> Any:
    return FlowVI(two_modes, progress_bar=False).run(jax.random.key(0))


@pytest.fixture(scope="module")
def by_chains() -> Any:
    """By Markov chains, as no weights are good enough for these settings."""
    strict = FlowVISettings(num_steps=0, min_ess=1.0, sufficient_ess=1.0, max_khat=1e-6)
    return FlowVI(two_modes, settings=strict, progress_bar=False).run(jax.random.key(0))


def test_a_mixture_has_draws_in_both_modes(by_mixture):
    assert by_mixture.certified
    assert by_mixture.certificate.by == "weights"
    assert by_mixture.losses.size == 0  # the mixture comes before a flow
    assert by_mixture.log_evidence == pytest.approx(0.0, abs=0.01)
    x = by_mixture.sample(jax.random.key(1), 4_000)["x"]
    share = (x[:, 0] < 0).mean()
    assert share == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 4_000))
    assert "by a mixture" in by_mixture.verdict()


def test_markov_chains_where_the_mixture_is_refused(by_chains, capsys):
    certificate = by_chains.certificate
    assert certificate.certified
    assert certificate.by == "mcmc"
    assert certificate.rhat < 1.01
    assert by_chains.log_evidence == pytest.approx(0.0, abs=4 * by_chains.log_evidence_se)
    x, _ = by_chains.chains.flat
    assert (x[:, 0] < 0).mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / certificate.ess_bulk))
    by_chains.print_summary()
    shown = capsys.readouterr().out
    assert shown.startswith("CERTIFIED")
    for word in ("Markov chains", "r_hat", "ess_bulk", "mcse_mean"):
        assert word in shown


@pytest.mark.slow
def test_ctrl_c_ends_the_chains_and_keeps_them(monkeypatch):
    """Where they do not agree after their first sweeps."""
    sweeps, calls = Sampler.sweeps, []

    def once(self, num, every):
        calls.append(num)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sweeps(self, num, every)

    monkeypatch.setattr(Sampler, "sweeps", once)

    def heavy():
        numpyro.sample("x", dist.StudentT(1.5, 0.0, 1.0).expand([20]).to_event(1))

    strict = FlowVISettings(num_steps=0, min_ess=1.0, sufficient_ess=1.0, max_khat=1e-6, first_sweeps=16)
    with pytest.warns(UserWarning, match="not certified"):
        posterior = FlowVI(heavy, settings=strict, progress_bar=False).run(jax.random.key(0))
    assert posterior.reason == "interrupted"
    assert "the chains do not agree" in posterior.why or "the chains are too short" in posterior.why
    assert posterior.chains is not None
    assert abs(np.median(posterior.chains.flat[0])) < 0.3


def test_draws_of_chains_are_without_replacement_and_by_key(by_chains):
    num = by_chains.chains.log_density.size
    first = np.asarray(by_chains.sample(jax.random.key(0), num)["first"])
    np.testing.assert_array_equal(np.sort(first), np.sort(by_chains.chains.flat[0][:, 0].astype(first.dtype)))
    assert not np.array_equal(first, by_chains.sample(jax.random.key(1), num)["first"])
    more = by_chains.sample(jax.random.key(0), 2 * num)["first"]
    assert len(np.unique(more)) == len(np.unique(first))


def test_weights_of_chains_are_the_evidence(by_chains):
    sites, log_weights = by_chains.sample_weighted(jax.random.key(0), 100)
    assert sites["x"].shape == (100, 2)
    np.testing.assert_allclose(log_weights, by_chains.log_evidence)
    own = by_chains.sample(jax.random.key(0), 500, resample=False)["first"]  # the Gaussian's, of one mode
    assert min((own < 0).mean(), (own > 0).mean()) < 0.02


def test_a_datatree_has_the_chains_as_they_are(by_chains, by_mixture):
    tree = by_chains.to_datatree()
    assert tree["posterior"]["x"].shape == by_chains.chains.x.shape
    np.testing.assert_allclose(tree["posterior"]["x"], by_chains.chains.x, rtol=1e-6)
    assert tree["posterior"].attrs["by"] == "mcmc"
    assert "log_weight" not in tree["sample_stats"]
    assert by_mixture.to_datatree(num_samples=50)["posterior"]["x"].shape == (4, 50, 2)


@pytest.mark.parametrize("name", ["by_mixture", "by_chains"])
@pytest.mark.parametrize("with_model", [True, False])
def test_files_have_the_draws(name, with_model, request, tmp_path):
    """By the default settings: the weights of the mixture and the agreement of chains are judged anew."""
    posterior = request.getfixturevalue(name)
    posterior.save(tmp_path / "fit")
    loaded: Any = FlowPosterior.load(tmp_path / "fit", *([two_modes] if with_model else []))
    assert loaded.certified == (not posterior._settings.loosened())
    assert loaded.certificate.by == posterior.certificate.by
    np.testing.assert_array_equal(loaded.chains.x, posterior.chains.x)
    key = jax.random.key(3)
    ours, theirs = np.asarray(posterior.sample(key, 100)["x"]), np.asarray(loaded.sample(key, 100)["x"])
    if with_model or name == "by_chains":
        np.testing.assert_allclose(theirs, ours, rtol=1e-6)
    else:  # without weights, those of the mixture's draws that the file has
        assert np.isin(theirs, np.asarray(posterior.chains.x, np.float32)).all()


def test_without_a_fallback_the_fit_is_refused():
    with pytest.warns(UserWarning, match="a search found elsewhere"):
        posterior = FlowVI(two_modes, fallback=None, progress_bar=False).run(jax.random.key(0))
    assert not posterior.certified
    assert posterior.chains is None


@pytest.mark.parametrize("fallback", ["nuts", 3])
def test_wrong_fallbacks_raise(fallback):
    with pytest.raises(ValueError, match="fallback expected"):
        FlowVI(two_modes, fallback=fallback)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("seed", range(3))
def test_an_improper_posterior_has_no_fallback(seed):
    """In single precision, too, where a Gaussian that grows without end soon overflows."""

    def flat():
        numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))

    with pytest.warns(UserWarning, match="improper"):
        posterior = FlowVI(flat, progress_bar=False).run(jax.random.key(seed))
    assert not posterior.certified
    assert posterior.chains is None


@pytest.mark.slow
def test_where_all_is_refused_every_reason_is_said():
    """A neck so deep that no arithmetic reaches its end."""

    def model():
        tau = numpyro.sample("tau", dist.Gamma(0.05, 0.05))
        numpyro.sample("theta", dist.Normal(0, tau).expand([8]).to_event(1))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = FlowVI(model, num_steps=400, progress_bar=False).run(jax.random.key(0))
    assert not posterior.certified
    assert any("What to try" in str(warning.message) for warning in caught)
    assert "by a mixture as well: " in posterior.why
    assert posterior.chains is not None


@pytest.mark.slow
def test_a_certified_fit_gets_what_it_cuts_off_of_a_neck(x64):
    """The centred eight schools, against a grid of the two hyperparameters with the schools integrated out."""
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    s = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def schools():
        mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("tau", dist.HalfCauchy(5))
        theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([8]).to_event(1))
        numpyro.sample("y", dist.Normal(theta, s), obs=y)

    mu, log_tau = jnp.linspace(-30.0, 40.0, 1_401), jnp.linspace(-15.0, 8.0, 2_301)
    tau = jnp.exp(log_tau)[:, None]
    log_p = dist.Normal(0, 5).log_prob(mu) + dist.HalfCauchy(5).log_prob(tau) + log_tau[:, None]
    log_p += sum(dist.Normal(mu, jnp.sqrt(tau**2 + s[j] ** 2)).log_prob(y[j]) for j in range(8))
    mass = np.asarray(jnp.exp(jax.nn.logsumexp(log_p, axis=1)) * (mu[1] - mu[0]) * (log_tau[1] - log_tau[0]))
    marginal = mass / mass.sum()
    sd = np.sqrt(marginal @ np.asarray(log_tau) ** 2 - (marginal @ np.asarray(log_tau)) ** 2)
    posterior = FlowVI(schools, progress_bar=False).run(jax.random.key(0))
    assert posterior.certified
    assert posterior.chains is not None
    assert posterior.log_evidence == pytest.approx(np.log(mass.sum()), abs=4 * posterior.log_evidence_se)
    assert posterior.log_evidence_se < 0.005  # of 20,000 draws at an ESS of 60% and more
    drawn = np.log(np.asarray(posterior.sample(jax.random.key(1), 20_000)["tau"]))
    assert drawn.std() == pytest.approx(sd, rel=0.03)
    assert marginal[np.asarray(log_tau) < drawn.min()].sum() < 0.001


def test_a_flat_direction_along_no_axis_is_refused(x64):
    """By the tails, or as the Gaussian itself becomes infinitely wide."""

    def flat():
        x = jnp.asarray(numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (3,))))
        sides = [dist.Normal(side, sd).log_prob(x[0] + x[1]) for side, sd in ((-4.0, 0.5), (4.0, 1.0))]
        numpyro.factor("sides", jnp.logaddexp(*sides) + dist.Normal(0, 1).log_prob(x[2]))

    with pytest.warns(UserWarning, match="improper"):
        posterior = FlowVI(flat, num_steps=0, progress_bar=False).run(jax.random.key(0))
    assert not posterior.certified
    assert posterior.chains is None


@pytest.mark.parametrize("seed", range(3))
def test_a_mode_far_off_is_not_forgotten(seed):
    """Two, 16,000 of their standard deviations apart: only the first climbs know both."""

    def model():
        b = numpyro.sample("b", dist.Normal(0, 2))
        numpyro.sample("y", dist.Normal(b * b, 1e-3), obs=4.0)

    posterior = FlowVI(model, progress_bar=False).run(jax.random.key(seed + 4))
    assert posterior.certified
    b = np.asarray(posterior.sample(jax.random.key(0), 2_000)["b"])
    assert (b > 0).mean() == pytest.approx(0.5, abs=0.06)
