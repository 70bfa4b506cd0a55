"""NumPyro's `MCMC` on a fit, by `FlowNUTS` and `FlowMH`: exact posteriors, and what NumPyro asks of a kernel."""

import pickle
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_base import from_numpyro
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS
from scipy.stats import norm

from numpyro_flows import AutoFlow, FlowMH, FlowNUTS, FlowPosterior, FlowVI, flows
from tests.example_models import DATA, Y, conjugate_posterior, eight_schools, posterior_of

KEY = jax.random.key(0)
MEAN, SD, _ = conjugate_posterior()
BOTH = pytest.mark.parametrize("kernel", [FlowNUTS, FlowMH])


def run(kernel, *, num_warmup=200, num_samples=1000, num_chains=4, extra_fields=(), init_params=None, **options):
    options = {"chain_method": "vectorized", "progress_bar": False, **options}
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains, **options)
    mcmc.run(KEY, extra_fields=extra_fields, init_params=init_params)
    return mcmc


def last_state(mcmc) -> Any:
    return mcmc.last_state


def chains(mcmc) -> dict[str, Any]:
    return jax.device_get(mcmc.get_samples(group_by_chain=True))


def require_mean(draws: Any, mean):
    """The mean of chains `(chains, draws)` is right, up to its Monte Carlo error."""
    assert abs(draws.mean() - mean) < 4.5 * draws.std() / np.sqrt(np.asarray(effective_sample_size(draws)))


def require_normal(draws, mean, sd):
    require_mean(draws, mean)
    require_mean((draws - mean) ** 2, sd**2)


# Known answers


def normal(y):
    """`conjugate` with a deterministic site."""
    mu = jnp.asarray(numpyro.sample("mu", dist.Normal(0, 2)))
    numpyro.deterministic("pair", jnp.stack([mu, -mu]))
    with numpyro.plate("n", y.shape[0]):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def require_posterior(mcmc):
    """The exact posterior, in sites of the right shapes."""
    draws = chains(mcmc)
    require_normal(draws["mu"], MEAN, SD)
    np.testing.assert_array_equal(draws.pop("pair"), np.stack([draws["mu"], -draws["mu"]], axis=-1))
    assert list(draws) == ["mu"]
    assert draws["mu"].shape == (4, 1000)


def test_a_perfect_flow_has_every_proposal_accepted():
    mcmc = run(FlowMH(posterior_of(normal, DATA, loc=MEAN, scale=SD)), extra_fields=("accept_prob", "log_weight"))
    fields = jax.device_get(mcmc.get_extra_fields())
    np.testing.assert_allclose(fields["accept_prob"], 1, atol=1e-4)
    np.testing.assert_allclose(fields["log_weight"], conjugate_posterior()[2], rtol=1e-4)  # the evidence
    draws = chains(mcmc)["mu"]
    assert (np.diff(draws, axis=1) != 0).all()
    require_posterior(mcmc)
    np.testing.assert_allclose(last_state(mcmc).mean_accept_prob, 1, atol=1e-4)


def test_the_weights_correct_a_flow_that_is_shifted_and_too_wide():
    loc, scale = MEAN + SD, 2 * SD
    mcmc = run(FlowMH(posterior_of(normal, DATA, loc=loc, scale=scale)), extra_fields=("accept_prob", "log_weight"))
    draws, fields = chains(mcmc)["mu"], jax.device_get(mcmc.get_extra_fields(group_by_chain=True))
    require_posterior(mcmc)
    expected = norm.logpdf(draws, MEAN, SD) - norm.logpdf(draws, loc, scale) + conjugate_posterior()[2]
    np.testing.assert_allclose(fields["log_weight"], expected, atol=1e-4)
    moved = np.diff(draws, axis=1) != 0
    require_mean(moved - fields["accept_prob"][:, 1:], 0.0)
    sampled = last_state(mcmc).mean_accept_prob  # of all steps since the warm-up
    np.testing.assert_allclose(sampled, fields["accept_prob"].mean(1), rtol=1e-3)
    assert (last_state(mcmc).i == 1200).all()


@pytest.mark.slow
def test_nuts_corrects_a_flow_that_is_shifted_and_too_narrow():
    kernel = FlowNUTS(posterior_of(normal, DATA, loc=MEAN + SD, scale=SD / 2))
    mcmc = run(kernel, extra_fields=("z", "diverging", "potential_energy"))
    draws = chains(mcmc)["mu"]
    require_posterior(mcmc)
    fields = jax.device_get(mcmc.get_extra_fields(group_by_chain=True))
    assert not fields["diverging"].any()
    log_density = norm.logpdf(draws, MEAN, SD) + conjugate_posterior()[2] + np.log(SD / 2)  # of the base point
    np.testing.assert_allclose(fields["potential_energy"], -log_density, atol=1e-4)


def missing(y):
    """Normal mean with prior N(0, 2^2), some values missing: `obs_mask` makes entries that nothing depends on."""
    seen = ~jnp.isnan(y)
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    with numpyro.plate("n", y.size):
        numpyro.sample("y", dist.Normal(mu, 1), obs=jnp.where(seen, y, 0.0), obs_mask=seen)


@pytest.fixture(scope="module")
def masked_fit() -> FlowPosterior:
    return FlowVI(missing, num_steps=0, progress_bar=False).run(KEY, jnp.array([1.0, jnp.nan, 2.0]))


@pytest.mark.slow
@BOTH
def test_masked_entries_are_standard_normal(kernel, masked_fit):
    draws = chains(run(kernel(masked_fit)))
    precision = 2 + 1 / 4
    require_normal(draws["mu"], 3 / precision, precision**-0.5)
    for seen in (0, 2):
        require_normal(draws["y_unobserved"][..., seen], 0, 1)
    require_normal(draws["y"][..., 1], 3 / precision, (1 + 1 / precision) ** 0.5)
    np.testing.assert_array_equal(draws["y"][..., 2], 2)


def funnel():
    v = numpyro.sample("v", dist.Normal(0, 3))
    numpyro.deterministic("both", jnp.stack([v, numpyro.sample("x", dist.Normal(0, jnp.exp(0.5 * v)))]))


@pytest.fixture(scope="module")
def funnel_fit() -> FlowPosterior:
    """Trained for an instant: the verdict does not matter here."""
    small = partial(flows.realnvp, num_layers=6, hidden=(32,))
    vi = FlowVI(funnel, AutoFlow(funnel, small), num_steps=1500, verify="weights", progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vi.run(KEY)


@pytest.mark.slow
@pytest.mark.optimized
@BOTH
def test_a_funnel(kernel, funnel_fit):
    mcmc = run(kernel(funnel_fit), num_warmup=500, num_samples=2000)
    draws = chains(mcmc)
    require_normal(draws["v"], 0, 3)
    require_normal(draws["x"] * np.exp(-draws["v"] / 2), 0, 1)
    np.testing.assert_array_equal(draws["both"], np.stack([draws["v"], draws["x"]], axis=-1))
    if kernel is FlowNUTS:
        assert mcmc.get_extra_fields()["diverging"].mean() < 0.005  # without the flow 0.09


# What NumPyro asks of a kernel


@pytest.fixture(scope="module")
def schools() -> FlowPosterior:
    return posterior_of(eight_schools, loc=0.0, scale=1.0)


SHAPES = {"mu": (), "tau": (), "z": (8,), "theta": (8,)}


@pytest.mark.slow
@BOTH
def test_sites_fields_and_summary(kernel, schools, capsys):
    mcmc = run(kernel(schools), num_warmup=20, num_samples=30, num_chains=2, extra_fields=("z", "~z.z"))
    draws = chains(mcmc)
    assert {name: value.shape for name, value in draws.items()} == {
        name: (2, 30, *shape) for name, shape in SHAPES.items() if name != "z"
    }
    assert (draws["tau"] > 0).all()
    assert not (draws["mu"][0] == draws["mu"][1]).any()  # each chain has its own random numbers
    mcmc.print_summary()
    printed = capsys.readouterr().out
    assert "tau" in printed
    assert ("Number of divergences" in printed) == (kernel is FlowNUTS)
    tree = from_numpyro(mcmc)
    assert tree["posterior"]["mu"].shape == (2, 30)
    np.testing.assert_array_equal(tree["observed_data"]["y"], Y)
    restored = pickle.loads(pickle.dumps(mcmc))
    np.testing.assert_array_equal(restored.get_samples()["tau"], mcmc.get_samples()["tau"])
    restored.post_warmup_state = restored.last_state
    restored.run(jax.random.key(1))
    assert not (restored.get_samples()["mu"] == mcmc.get_samples()["mu"]).all()


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(("chain_method", "progress_bar"), [("sequential", True), ("vectorized", True)])
def test_chains_one_after_the_other_progress_bar_and_thinning(kernel, chain_method, progress_bar, schools, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # with which NumPyro shows no progress bar
    monkeypatch.delenv("CI", raising=False)
    options = {"chain_method": chain_method, "progress_bar": progress_bar, "thinning": 2}
    kernel = kernel(schools)
    mcmc = run(kernel, num_warmup=20, num_samples=30, num_chains=2, **options)
    draws = chains(mcmc)
    assert {name: value.shape for name, value in draws.items()} == {
        name: (2, 15, *shape) for name, shape in SHAPES.items()
    }
    np.testing.assert_allclose(
        draws["theta"], draws["mu"][..., None] + draws["tau"][..., None] * draws["z"], rtol=1e-4, atol=1e-4
    )
    mcmc.run(KEY)  # a second run of the same kernel
    np.testing.assert_array_equal(chains(mcmc)["mu"], draws["mu"])
    single = run(kernel, num_warmup=5, num_samples=6, num_chains=1, progress_bar=progress_bar)
    assert single.get_samples()["theta"].shape == (6, 8)


@pytest.mark.slow
@BOTH
def test_old_keys_and_compiled_arguments(kernel, schools):
    mcmc = MCMC(kernel(schools), num_warmup=5, num_samples=6, jit_model_args=True, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(0))
    assert mcmc.get_samples()["z"].shape == (6, 8)


def first_values(kernel, init_params):
    """What the chains of a kernel start from."""
    keys = jax.random.split(KEY, 3)
    return kernel.init(keys, 10, init_params, (), {})


@pytest.mark.slow
def test_starts(schools):
    base = jnp.linspace(-1, 1, 30).reshape(3, 10)
    np.testing.assert_array_equal(first_values(FlowNUTS(schools), base).z, base)
    drawn = first_values(FlowNUTS(schools), None)
    assert drawn.z.shape == (3, 10)
    assert len(np.unique(drawn.z)) == 30
    sites = {"mu": base[:, 0], "tau": base[:, 1], "z": base[:, 2:]}
    state = first_values(FlowMH(schools), sites)
    for name, value in sites.items():
        np.testing.assert_array_equal(state.z[name], value)
    expected = jax.vmap(schools._target.log_density)(base) - norm.logpdf(base).sum(1)
    np.testing.assert_allclose(state.log_weight, expected, rtol=1e-5)
    assert len(np.unique(first_values(FlowMH(schools), None).z["z"])) == 24


def cut():
    """A density of zero below 1, where half of the flow's draws are."""
    x = jnp.asarray(numpyro.sample("x", dist.Normal(1, 1)))
    numpyro.factor("cut", jnp.where(x > 1, 0.0, -jnp.inf))


@pytest.mark.slow
@BOTH
def test_chains_leave_a_density_of_zero(kernel):
    kernel = kernel(posterior_of(cut, loc=1.0, scale=1.0))
    start = {"x": jnp.array([0.0, 2.0])} if isinstance(kernel, FlowMH) else None
    draws = chains(run(kernel, num_warmup=50, num_samples=500, num_chains=2, init_params=start))
    assert (draws["x"] > 1).all()
    require_mean(draws["x"], 1 + np.sqrt(2 / np.pi))


# Arguments


@BOTH
def test_refusals(kernel, schools, tmp_path):
    with pytest.raises(TypeError, match="posterior expected a FlowPosterior, got a function"):
        kernel(eight_schools)
    schools.save(tmp_path / "fit")
    with pytest.raises(ValueError, match="expected a posterior with its model"):
        kernel(FlowPosterior.load(tmp_path / "fit"))
    mcmc = MCMC(kernel(schools), num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(ValueError, match=r"the posterior has its own data, got an array .*: write mcmc.run\(rng_key\)"):
        mcmc.run(KEY, Y)
    with pytest.raises(ValueError, match="the posterior has its own data, got y="):
        mcmc.run(KEY, y=Y)


def test_refused_options_and_starts(schools):
    for name in ("model", "potential_fn", "init_strategy"):
        with pytest.raises(ValueError, match=f"options that change the sampler, got {name}: "):
            FlowNUTS(schools, **{name: NUTS})
    with pytest.raises(TypeError, match="target_accept"):
        FlowNUTS(schools, target_accept=0.9)
    with pytest.raises(ValueError, match=r"base points of shape \(3, 10\), got \(3, 9\)"):
        first_values(FlowNUTS(schools), jnp.zeros((3, 9)))
    with pytest.raises(ValueError, match=r"missing \['tau', 'z'\]"):
        first_values(FlowMH(schools), {"mu": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"'z': \(3, 8\)"):
        first_values(FlowMH(schools), {"mu": jnp.zeros(2), "tau": jnp.zeros(2), "z": jnp.zeros((2, 8))})
