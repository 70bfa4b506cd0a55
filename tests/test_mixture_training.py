"""The stage between Gaussian and flow, verdicts on fewer draws, and a search that a density's cost decides on."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_flows import AutoFlow, FlowPosterior, FlowTraining, FlowVI, FlowVISettings, GaussianStart, MixtureTraining
from numpyro_flows.inference.certificate import certify, decided
from numpyro_flows.inference.density_cost import Cost
from numpyro_flows.inference.mixture import Bell
from numpyro_flows.inference.sliced import Sliced
from numpyro_flows.inference.stored import StoredFit
from tests.test_stored import edited

SETTINGS = FlowVISettings()
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


def schools():
    """Centred: a funnel, which no Gaussian is close to."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, SIGMA), obs=Y)


def skewed():
    """Of evidence 1, mean 0.5 and variance 0.5."""
    numpyro.sample("x", dist.Gamma(0.5, 1.0))


@pytest.fixture(scope="module")
def posterior():
    return FlowVI(schools, progress_bar=False).run(jax.random.key(0))


def log_evidence_of_schools():
    """By quadrature over `mu` and `log tau`, with the schools' own effects integrated out."""
    mu, log_tau = np.meshgrid(np.linspace(-25, 25, 401), np.linspace(-12, 7, 1901), indexing="ij")
    variance = np.exp(2 * log_tau)[..., None] + np.asarray(SIGMA) ** 2
    squares = (np.asarray(Y) - mu[..., None]) ** 2 / variance
    log_p = -0.5 * (squares + np.log(2 * np.pi * variance)).sum(-1) - mu**2 / 50 - 0.5 * np.log(2 * np.pi * 25)
    log_p += np.log(2 / (np.pi * 5 * (1 + np.exp(2 * log_tau) / 25))) + log_tau
    return np.log(np.exp(log_p).sum() * (50 / 400) * (19 / 1900))


def test_a_funnel_is_certified_and_right_without_a_flow(posterior):
    assert posterior.certified
    assert posterior.certificate.by == "weights"
    assert posterior.losses.size == 0
    assert posterior.log_evidence == pytest.approx(log_evidence_of_schools(), abs=5 * posterior.log_evidence_se)
    assert posterior.verdict().splitlines()[1].startswith("by a mixture: ")


def test_evaluations_are_counted_by_stage(posterior):
    gradients, values = posterior.gradient_evaluations, posterior.value_evaluations
    assert gradients.keys() == values.keys() == {"gaussian", "mixture", "flow", "fallback"}
    assert values["mixture"] >= SETTINGS.certificate_draws  # those of the verdict
    assert gradients["flow"] == values["flow"] == gradients["fallback"] == values["fallback"] == 0


def test_draws_are_fresh(posterior):
    """However many, and not those by which the mixture was judged."""
    mu = np.asarray(posterior.sample(jax.random.key(1), 30_000)["mu"])
    assert len(np.unique(mu)) > 0.99 * mu.size
    _, log_weights = posterior.sample_weighted(jax.random.key(2), 20_000)
    weights = np.exp(log_weights - log_evidence_of_schools())
    assert weights.mean() == pytest.approx(1.0, abs=5 * weights.std() / np.sqrt(weights.size))
    assert 0.7 < weights.sum() ** 2 / (weights**2).sum() / weights.size < 1.0  # weights of a mixture, not equal ones
    khat = posterior.summary()["khat"]
    assert (khat < 0.7).all()


def test_a_file_keeps_the_mixture_and_draws(posterior, tmp_path):
    posterior.save(tmp_path / "fit")
    loaded = FlowPosterior.load(tmp_path / "fit", schools)
    assert loaded.certified
    assert loaded.value_evaluations == posterior.value_evaluations
    assert loaded.chains is not None
    np.testing.assert_array_equal(loaded.chains.x, posterior.chains.x)
    ours, theirs = (p.sample(jax.random.key(1), 50)["mu"] for p in (posterior, loaded))
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)
    alone = FlowPosterior.load(tmp_path / "fit").sample(jax.random.key(1), 50)["mu"]  # draws that the file has
    assert np.isin(np.asarray(alone), np.asarray(posterior.chains.x, np.float32)).all()


def sliced(fields):
    return next(part for part in fields["components"]["tuple"] if part["class"].endswith("Sliced"))["fields"]


MALFORMED = {
    "no shares": lambda fields: fields.update(shares=None),
    "no components": lambda fields: fields.update(components={"tuple": []}),
    "fewer components than shares": lambda fields: fields["components"]["tuple"].pop(),
    "a component of another kind": lambda fields: fields["components"]["tuple"].__setitem__(
        0, {"class": "numpyro_flows.networks.MLP", "fields": {"weights": {"tuple": []}, "biases": {"tuple": []}}}
    ),
    "degrees of freedom below zero": lambda fields: fields["components"]["tuple"][0]["fields"].update(df=-1.0),
    "a centre that is a factor": lambda fields: fields["components"]["tuple"][0]["fields"].update(
        loc=fields["components"]["tuple"][0]["fields"]["factor"]
    ),
    "a coordinate that there is not": lambda fields: sliced(fields).update(coordinate=99),
    "a coordinate from the end": lambda fields: sliced(fields).update(coordinate=-1),
    "means that are values": lambda fields: sliced(fields).update(means=sliced(fields)["values"]),
    "edges that are values": lambda fields: sliced(fields).update(edges=sliced(fields)["values"]),
}


BROKEN = {
    "negative shares": lambda mixture: mixture._replace(
        shares=mixture.shares * [*[-1.0], *[1.0] * 99][: mixture.shares.size]
    ),
    "a width below zero": lambda mixture: changed(mixture, Bell, factor=-np.eye(10)),
    "an upper triangle": lambda mixture: changed(mixture, Bell, factor=np.triu(np.ones((10, 10)))),
    "values that are alike": lambda mixture: changed(mixture, Sliced, values=lambda old: 0.0 * old),
    "values that are no numbers": lambda mixture: changed(mixture, Sliced, means=lambda old: np.nan * old),
    "a wrong diagonal": lambda mixture: changed(mixture, Sliced, lower=lambda old: 2.0 * old),
    "a centre elsewhere": lambda mixture: changed(mixture, Bell, loc=np.zeros((1, 10))),
}


def changed(mixture, kind, **fields):
    """The mixture with other fields in its first component of a kind."""
    parts = list(mixture.components)
    number = next(i for i, part in enumerate(parts) if isinstance(part, kind))
    new = {name: value(getattr(parts[number], name)) if callable(value) else value for name, value in fields.items()}
    parts[number] = parts[number]._replace(**new)
    return mixture._replace(components=tuple(parts))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_mixtures(name, posterior):
    """What a file may have where its arrays were changed, with a checksum that fits."""
    fit = StoredFit.of(posterior)
    fit.require_coherent()
    broken = BROKEN[name](fit.mixture)
    with pytest.raises(ValueError, match="expected"):
        fit._replace(components=broken.components, shares=broken.shares).require_coherent()


def test_crafted_mixtures(posterior, tmp_path):
    path, loaded = tmp_path / "fit", []
    posterior.save(path)
    whole = path.read_bytes()
    for name, change in MALFORMED.items():
        path.write_bytes(whole)
        edited(path, change)
        try:
            FlowPosterior.load(path, schools)
            loaded.append(name)
        except ValueError:
            pass
    assert not loaded


@pytest.mark.slow
def test_as_many_draws_as_asked_of_an_expensive_density():
    """Its flow is drawn from in smaller blocks."""
    rows = jnp.linspace(0.0, 1.0, 5_000)

    def model():
        x = numpyro.sample("x", dist.Gamma(0.5, 1.0))
        numpyro.factor("rows", 1e-9 * jnp.sum(jnp.sin(rows * x)))

    stages = (GaussianStart(), FlowTraining())
    fit = FlowVI(model, stages=stages, num_steps=100, fallback=None, progress_bar=False, verify="weights")
    posterior = fit.run(jax.random.key(0))
    assert posterior.losses.size
    for resample in (True, False):
        assert posterior.sample(jax.random.key(1), 1_500, resample=resample)["x"].shape == (1_500,)


def test_moments_are_right():
    fit = FlowVI(skewed, stages=(GaussianStart(), MixtureTraining()), fallback=None, progress_bar=False)
    posterior = fit.run(jax.random.key(0))
    assert posterior.certified
    x = np.asarray(posterior.sample(jax.random.key(1), 4_000)["x"])
    assert x.mean() == pytest.approx(0.5, abs=4.5 * np.sqrt(0.5 / 4_000))
    assert posterior.log_evidence == pytest.approx(0.0, abs=5 * posterior.log_evidence_se + 1e-4)


@pytest.mark.slow
def test_without_a_search_it_still_runs():
    posterior = FlowVI(skewed, verify="weights", progress_bar=False).run(jax.random.key(0))
    assert posterior.certified
    assert 'verify="weights"' in posterior.certificate.checks[-1].found


def test_a_guide_of_ones_own_is_what_is_fitted():
    fit = FlowVI(skewed, AutoFlow(skewed), num_steps=100, fallback=None, progress_bar=False)
    assert not any(isinstance(stage, MixtureTraining) for stage in fit.stages)
    assert any(isinstance(stage, MixtureTraining) for stage in FlowVI(skewed).stages)


@pytest.mark.parametrize(
    ("spread", "tail", "first"),
    [(0.01, 0.0, 5_000), (0.06, 0.0, 5_000), (0.15, 0.0, None), (0.5, 0.0, None), (3.0, 0.0, 2_000), (0.1, 3e-3, None)],
)
def test_how_many_draws_decide(spread, tail, first):
    """Nearly equal weights a quarter, hopeless ones a tenth, others none; and as all of them would."""
    rng = np.random.default_rng(0)
    normal = np.exp(spread * rng.normal(size=SETTINGS.certificate_draws))
    weights = np.log(normal + tail * rng.pareto(1 / 0.9, size=normal.size))
    sizes = [num for num in (1_000, 2_000, 5_000, 10_000) if decided(weights[:num], SETTINGS)]
    assert (sizes[0] if sizes else None) == first
    if first:
        assert certify(weights[:first]).certified == certify(weights).certified


def test_broken_weights_decide_nothing():
    assert not decided(np.full(5_000, np.nan), SETTINGS)


def test_cost_of_a_density():
    """A loop counts as often as it runs."""
    rows = jnp.ones((1_000, 3))

    def once(x):
        return jnp.sum(jnp.sin(rows @ x))

    def often(x):
        return jax.lax.scan(lambda total, _: (total + once(x * (1.0 + total)), None), jnp.zeros(()), length=10)[0]

    one, ten = Cost.of(once, 3), Cost.of(often, 3)
    assert one.largest >= 1_000
    assert 8 * one.numbers < ten.numbers < 14 * one.numbers


def test_an_expensive_density_has_a_smaller_search():
    cheap, dear = SETTINGS.affordable(Cost(1_000, 100, 1_000)), SETTINGS.affordable(Cost(10**8, 10**6, 10**8))
    assert cheap == SETTINGS
    assert dear.particles == SETTINGS.particles / 4
    assert dear.batch < SETTINGS.batch
    assert dear.keep_curvature
    assert SETTINGS.of_draws(Cost(10**8, 10**6, 10**8)).pool == 1
    assert dear.certificate_draws == SETTINGS.certificate_draws
    given = FlowVISettings(particles=300).affordable(Cost(10**8, 10**6, 10**8))
    assert given.particles == 300


def test_a_thorough_search_stays_so():
    thorough = SETTINGS.thorough()
    assert thorough.affordable(Cost(10**8, 10**6, 10**8)).particles == thorough.particles
