"""Amortised posteriors of a conjugate model, whose posterior and evidence are known."""

import copy
import pickle
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from numpyro_flows import AmortizedFlow, flows
from numpyro_flows.amortized.adapted import Base, Weighted
from numpyro_flows.modeling.simulation import Simulator

MOST = 12
KEY = jax.random.key(0)


def model(num=MOST, y=None):
    mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
    with numpyro.plate("observations", num):
        numpyro.sample("y", dist.Normal(mu, 1.5), obs=y)


def truth(y):
    """Mean and standard deviation of `mu`, and the log evidence."""
    precision = 1 / 4 + len(y) / 2.25
    mean = (1 / 4 + y.sum() / 2.25) / precision
    covariance: Any = 4.0 + 2.25 * np.eye(len(y))
    evidence = stats.multivariate_normal.logpdf(y, np.full(len(y), 1.0), covariance)
    return mean, precision**-0.5, evidence


@pytest.fixture(scope="module")
def amortized() -> Any:
    """For sets of 2 to 12 observations."""
    made = AmortizedFlow(
        model, observed=["y"], sizes=(2, MOST), num_simulations=5_000, num_steps=600, progress_bar=False
    )
    return made.fit(jax.random.key(0))


@pytest.mark.parametrize("num", [2, MOST])
def test_a_posterior_of_any_size_is_certified_and_right(amortized, num):
    y = np.random.default_rng(num).normal(2.0, 1.5, num)
    posterior = amortized.posterior({"y": y}, num, rng_key=jax.random.key(1))
    mean, sd, evidence = truth(y)
    assert posterior.certified
    assert posterior.losses.size == 0  # by the flow as it is
    assert posterior.log_evidence == pytest.approx(evidence, abs=4 * posterior.log_evidence_se + 1e-3)
    mu = posterior.sample(jax.random.key(2), 4_000)["mu"]
    assert mu.mean() == pytest.approx(mean, abs=4 * sd / 4_000**0.5)
    assert mu.std() == pytest.approx(sd, rel=4 / 8_000**0.5)


def test_many_data_sets_at_once(amortized):
    y = np.random.default_rng(0).normal(0.0, 1.5, (20, 5))
    many = amortized.posteriors(jax.random.key(1), {"y": y}, 5)
    assert many.draws["mu"].shape == many.log_weights.shape == (20, 4_000)
    assert many.certified.mean() >= 0.9
    assert len(amortized.verdicts) == 200
    assert f"{amortized.verdicts['certified'].sum()} of 200 fresh data sets certified" in repr(amortized)
    assert repr(many) == f"ManyPosteriors({many.certified.sum()} of 20 certified)"
    for i in np.flatnonzero(many.certified):
        mean, sd, evidence = truth(y[i])
        row = many.table.iloc[i]
        assert row["log_evidence"] == pytest.approx(evidence, abs=5 * row["log_evidence_se"] + 1e-3)
        weights = np.exp(many.log_weights[i] - many.log_weights[i].max())
        got = np.average(many.draws["mu"][i], weights=weights)
        assert got == pytest.approx(mean, abs=5 * sd / (4_000 * row["ess"]) ** 0.5)
    assert many.sample(jax.random.key(2), 50)["mu"].shape == (20, 50)


def test_the_base_moves_to_rare_data(amortized):
    """Three standard deviations off the prior the flow is a little wrong; weights move it, and do not make it wrong."""
    y = 7.0 + 1.5 * np.random.default_rng(1).normal(size=(20, MOST))
    many = amortized.posteriors(jax.random.key(1), {"y": y})
    assert many.certified.all()
    for i in range(20):
        mean, sd, evidence = truth(y[i])
        row = many.table.iloc[i]
        assert row["log_evidence"] == pytest.approx(evidence, abs=5 * row["log_evidence_se"] + 1e-3)
        weights = np.exp(many.log_weights[i] - many.log_weights[i].max())
        assert np.average(many.draws["mu"][i], weights=weights) == pytest.approx(mean, abs=5 * sd / 500**0.5)


@pytest.mark.parametrize("rounds", [1, 4])
def test_a_moved_base_has_the_moments_of_its_target(rounds):
    """A Gaussian target in two dimensions: the moments, but for the pull towards the last ones."""
    mean, tril = np.array([2.0, -1.0]), np.array([[0.5, 0.0], [0.3, 0.8]])
    target = dist.MultivariateNormal(mean, scale_tril=tril)
    base = Base(jnp.ones(()), jnp.zeros(2), jnp.eye(2))
    for i in range(rounds):
        z = base.draw(jax.random.key(i), 4_000)
        base = base.moved(z, target.log_prob(z) - base.log_prob(z))
    np.testing.assert_allclose(base.loc, mean, atol=0.3 if rounds == 1 else 0.05)
    if rounds == 4:
        np.testing.assert_allclose(base.tril @ base.tril.T, tril @ tril.T, rtol=0.15, atol=0.03)


def test_a_moved_base_is_a_density_of_its_draws():
    base = Base(jnp.array(0.2), jnp.array([1.0, -2.0]), jnp.array([[0.5, 0.0], [0.3, 0.8]]))
    z = base.draw(jax.random.key(0), 40_000)
    log_weights = dist.Normal().expand([2]).to_event(1).log_prob(z) - base.log_prob(z)
    weights = np.exp(np.asarray(log_weights, float))  # at most 5, as 20% of the draws are of the standard normal
    assert weights.max() <= 5.0001
    assert weights.mean() == pytest.approx(1.0, abs=4 * weights.std() / 200)


@pytest.mark.parametrize("broken", [False, True])
def test_a_moved_base_knows_what_it_lacks(broken):
    """A quarter of the weight of the flow's own draws lies 20 standard deviations off; one of them may be NaN."""
    base = Base(jnp.array(0.2), jnp.zeros(1), 0.1 * jnp.eye(1))
    z = jnp.concatenate([0.1 * jax.random.normal(KEY, (300, 1)), jnp.full((100, 1), 2.0)])
    log_weights = jnp.zeros(400).at[0].set(jnp.nan if broken else 0.0)
    assert float(base.lacks(Weighted(z, log_weights - 3.0), jnp.array(-1.0))) == pytest.approx(0.0)
    far = jnp.where(z[:, 0] == 2.0, 0.0, log_weights)
    assert float(base.lacks(Weighted(z, far), jnp.array(-1.0))) == pytest.approx(0.25, abs=0.002)


def test_a_base_without_weights_stays():
    base = Base(jnp.ones(()), jnp.ones(2), 2.0 * jnp.eye(2)).moved(jnp.ones((100, 2)), jnp.full(100, -jnp.inf))
    assert np.isfinite(base.loc).all()
    assert np.isfinite(base.tril).all()


def test_what_the_flow_has_not_seen_is_fitted_anew(amortized):
    """40 standard deviations off the prior."""
    y = np.full(5, 80.0) + np.random.default_rng(0).normal(size=5)
    with pytest.warns(UserWarning, match="not certified"):
        refused = amortized.posterior({"y": y}, 5, refit=False)
    assert not refused.certified
    posterior = amortized.posterior({"y": y}, 5)
    mean, sd, evidence = truth(y)
    assert posterior.certified
    assert posterior.sample(jax.random.key(2), 4_000)["mu"].mean() == pytest.approx(mean, abs=4 * sd / 4_000**0.5)
    assert posterior.log_evidence == pytest.approx(evidence, abs=4 * posterior.log_evidence_se + 1e-2)


def test_the_arguments_must_be_those_of_the_data(amortized):
    """One observation would broadcast over the plate, and count twelve times."""
    for data in (np.ones(2), np.ones(3)):
        with pytest.raises(ValueError, match=rf"expected the shape \(12,\), .* these arguments, got \({len(data)},\)"):
            amortized.posterior({"y": data})
        with pytest.raises(ValueError, match="as the model draws it"):
            amortized.posteriors(jax.random.key(0), {"y": data[None]})


def test_arguments_that_change_the_prior_are_refused(amortized):
    def with_scale(num=MOST, scale=2.0, y=None):
        mu = numpyro.sample("mu", dist.Normal(1.0, scale))
        with numpyro.plate("observations", num):
            numpyro.sample("y", dist.Normal(mu, 1.5), obs=y)

    other = copy.copy(amortized)
    other._whole_model = with_scale  # the same, with an argument
    for method in (partial(other.posterior, {"y": np.ones(3)}), partial(other.posteriors, KEY, {"y": np.ones((2, 3))})):
        with pytest.raises(ValueError, match="the prior of the training, got others"):
            method(3, 0.1)


def test_a_trained_flow_is_pickled(amortized):
    loaded = pickle.loads(pickle.dumps(amortized))
    assert repr(loaded) == repr(amortized)


def test_a_saved_posterior(amortized, tmp_path):
    y = np.array([1.0, 2.5, 0.3])
    posterior = amortized.posterior({"y": y}, 3)
    posterior.save(tmp_path / "fit")
    loaded = type(posterior).load(tmp_path / "fit", amortized.model, {"y": jnp.asarray(y)}, 3)
    assert loaded.log_evidence == pytest.approx(posterior.log_evidence, abs=5 * posterior.log_evidence_se)


def test_errors_of_data(amortized):
    for data, message in [
        ({"x": np.ones(3)}, r"observed sites \['y'\], got \['x'\]"),
        (np.ones(3), "a dict of the observed sites"),
        ({"y": np.ones(1)}, "2 to 12 observations"),
        ({"y": np.ones(13)}, "2 to 12 observations"),
        ({"y": np.ones((3, 2))}, r"the shape \(num, \*\(\)\), got \(3, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            amortized.posterior(data, 3)
    with pytest.raises(ValueError, match="one number of data sets"):
        amortized.posteriors(jax.random.key(0), {"y": np.ones((0, 3))}, 3)
    with pytest.raises(ValueError, match="finite numbers, got others in 1 of 2 data sets: 1"):
        amortized.posteriors(jax.random.key(0), {"y": np.array([[1.0] * 3, [np.nan] * 3])}, 3)
    with pytest.raises(ValueError, match="parts of different lengths"):
        amortized.posteriors(jax.random.key(0), {"y": [[1.0, 2.0], [1.0]]}, 3)
    with pytest.raises(ValueError, match="num_draws expected at least 1000"):
        amortized.posteriors(jax.random.key(0), {"y": np.ones((2, 3))}, 3, num_draws=10)


def with_factor(y=None):
    numpyro.factor("f", -(jnp.asarray(numpyro.sample("mu", dist.Normal())) ** 2))
    numpyro.sample("y", dist.Normal(), obs=y)


def improper(y=None):
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def with_angle(y=None):
    numpyro.sample("y", dist.Normal(numpyro.sample("phi", dist.VonMises(0.0, 1.0)), 1.0), obs=y)


@pytest.mark.parametrize(
    ("options", "args", "message"),
    [
        ({"observed": ["z"]}, (), r"some of the model's sites \['mu', 'y'\], got \['z'\]"),
        ({"observed": ["y"]}, (3, np.ones(3)), r"got values or factors for \['y'\]"),
        ({"observed": ["y"], "model": with_factor}, (), r"got values or factors for \['f'\]"),
        ({"observed": ["y"], "model": improper}, (), "can all be drawn from, got one with an improper prior"),
        ({"observed": ["y"], "model": with_angle}, (), r"real numbers or intervals without a mask, got \['phi'\]"),
        ({"observed": ["y"], "sizes": (1, 5)}, (), "as many observations at most as the model draws"),
        ({"observed": ["y"], "sizes": 5}, (), "the least and the most observations"),
        ({"observed": ["mu", "y"]}, (), "latent sites, got only the observed"),
        ({"observed": ["y"], "num_simulations": 10}, (), "num_simulations expected at least 100"),
        ({"observed": ["y"], "support": None}, (), r"others of fit_density than \['support'\]"),
    ],
)
def test_errors(options, args, message):
    options = {"model": model, "num_simulations": 100, **options}
    with pytest.raises(ValueError, match=message):
        AmortizedFlow(options.pop("model"), **options).fit(jax.random.key(0), *args)


@pytest.mark.slow
def test_the_first_flow_is_kept_if_the_second_fails(monkeypatch):
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(flows, "nsf_coupling", fails)
    made = AmortizedFlow(model, observed=["y"], num_simulations=1_000, num_steps=1, progress_bar=False)
    with pytest.warns(UserWarning, match="affine couplings are kept: no memory left"):
        untrained = made.fit(KEY)
    assert float(untrained.verdicts["certified"].to_numpy().mean()) < 0.9  # so that a second flow was tried


def test_kinds_of_arguments():
    with pytest.raises(TypeError, match="a list of names"):
        AmortizedFlow(model, observed="y").fit(jax.random.key(0))
    with pytest.raises(TypeError, match="encoder expected"):
        AmortizedFlow(model, observed=["y"], encoder=len)


def test_draws_of_a_model_are_its_own():
    """Means, variances and their covariance, within four standard errors."""
    draws = Simulator(model, ["y"], (3,))(jax.random.key(0), 20_000)
    mu, y = draws.latents["mu"], draws.data["y"]
    assert mu.shape == (20_000,)
    assert y.shape == (20_000, 3)
    assert mu.mean() == pytest.approx(1.0, abs=4 * 2 / 20_000**0.5)
    assert y.std() == pytest.approx(6.25**0.5, rel=0.03)
    assert np.cov(mu, y[:, 0])[0, 1] == pytest.approx(4.0, abs=4 * (4 * 6.25 + 16) ** 0.5 / 20_000**0.5)
    again = Simulator(model, ["y"], (3,))(jax.random.PRNGKey(7), 10)
    assert len(np.unique(again.data["y"])) == 30


def far(y=None):
    """A log density near -1e9, which single precision resolves to 64 nats."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu + 4.5e4, 1.0).expand([3]).to_event(1), obs=y)


def test_many_verdicts_know_the_digits_of_a_density():
    """As those of single posteriors do: data so far out that log densities have none left are not certified."""
    made = AmortizedFlow(far, observed=["y"], flow=flows.realnvp, num_simulations=200, num_steps=1, progress_bar=False)
    many = made.fit(jax.random.key(0)).posteriors(jax.random.key(1), {"y": np.zeros((2, 3))})
    assert not many.certified.any()
    assert "enable float64" in many.table["why"][0]


@pytest.mark.slow
def test_another_support_is_another_prior():
    """A uniform prior whose end is an argument; and an argument named `data`."""

    def scaled(upper, data=None):
        r = numpyro.sample("r", dist.Uniform(0.0, upper))
        numpyro.sample("y", dist.Normal(jnp.asarray(r) / upper, 0.1), obs=data)

    made = AmortizedFlow(scaled, observed=["y"], num_simulations=2_000, progress_bar=False)
    amortized = made.fit(jax.random.key(0), 1.0, data=None)
    many = amortized.posteriors(jax.random.key(1), {"y": np.array([0.5, 0.4])})
    assert many.certified.all()
    mean = many.sample(jax.random.key(2), 1_000)["r"].mean(1)
    np.testing.assert_allclose(mean, [0.5, 0.4], atol=4 * 0.1 / 1_000**0.5)
    with pytest.raises(ValueError, match="the prior of the training, got others"):
        amortized.posteriors(jax.random.key(1), {"y": np.array([0.5, 0.4])}, 10.0)


@pytest.mark.slow
def test_several_sites_with_an_encoder_of_ones_own():
    """A location and a scale, from a table of one shape, without sizes."""
    import equinox as eqx

    class Moments(eqx.Module):
        def __call__(self, data):
            y = data["y"]
            return jnp.stack([y.mean(), jnp.log(y.std() + 1e-3)])

    def located(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(mu, sigma).expand([10, 2]).to_event(2), obs=y)

    y = np.random.default_rng(0).normal(0.5, 0.8, (10, 2))
    for encoder in (Moments(), None):
        made = AmortizedFlow(
            located,
            observed=["y"],
            encoder=encoder,
            flow=flows.nsf_coupling,
            num_simulations=20_000,
            progress_bar=False,
        )
        posterior = made.fit(jax.random.key(0)).posterior({"y": y})
        assert posterior.certified
        draws = posterior.sample(jax.random.key(1), 2_000)
        assert (draws["sigma"] > 0).all()
        assert draws["mu"].mean() == pytest.approx(y.mean(), abs=0.1)
