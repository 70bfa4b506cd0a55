"""Simulation-based calibration: exact posteriors pass, planted errors are found and named."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Trace_ELBO
from numpyro.infer.calibration import vsbc_diagnostic

from numpyro_flows import AmortizedFlow, AutoFlow, FlowVI, fit_density, flows, simulation_based_calibration
from numpyro_flows.diagnostics.ranks import uniformity

DIM, DRAWS = 2, 100


def normal(y=None):
    """Conjugate: the posterior of `x` is normal with mean `y / 2` and variance 1/2, independently."""
    x = numpyro.sample("x", dist.Normal(0, 1).expand([DIM]).to_event(1))
    numpyro.sample("y", dist.Normal(x, 1).to_event(1), obs=y)


@jax.jit
def posterior(key, data, scale: Any = 1.0, shift=0.0):
    """Draws of the posterior, with a factor of their standard deviations and a shift."""
    z = jax.random.normal(key, (DRAWS, DIM))
    return {"x": data["y"] / 2 + shift + 0.5**0.5 * z * scale}


def pairs(seed, num, correlation=0.0):
    """True values around given centres, with correlated errors of variance 1, and draws without the correlation."""
    rng = np.random.default_rng(seed)
    centre = 2.0 * rng.normal(size=(num, DIM))
    factor = np.linalg.cholesky([[1.0, correlation], [correlation, 1.0]])
    return (
        centre + rng.normal(size=(num, DIM)) @ factor.T,
        centre,
    ), lambda key, data: np.asarray(data) + rng.normal(size=(DRAWS, DIM))


calibrate = partial(simulation_based_calibration, progress_bar=False)
of_normal = partial(calibrate, model=normal, observed=["y"])


def test_exact_draws_are_calibrated():
    found = of_normal(jax.random.key(0), method=posterior)
    assert found.calibrated
    assert list(found.ranks) == ["x[0]", "x[1]", "log density", "joint"]
    assert found.ranks.shape == (500, 4)
    assert found.num_draws == DRAWS
    assert len(found.left_out) == 0
    for name in ("x[0]", "x[1]"):  # the posterior variance is half the prior one; four standard errors
        row = found.table.loc[name]
        assert row["contraction"] == pytest.approx(0.5, abs=4 * 0.5 * (2 / 500) ** 0.5)
        assert row["z_mean"] == pytest.approx(0.0, abs=4 / 500**0.5)
        assert row["z_sd"] == pytest.approx(1.0, abs=4 / 1000**0.5 + 0.01)
    coverage = found.coverage["coverage"].unstack()
    np.testing.assert_allclose(coverage, np.tile([0.5, 0.8, 0.95], (2, 1)), atol=4 * 0.5 / 500**0.5)
    lower, share, upper = (found.coverage[name].to_numpy() for name in ("lower", "coverage", "upper"))
    assert np.all((lower < share) & (share < upper))


PLANTED = [(0.8, 0.0, "overconfident"), (1.25, 0.0, "underconfident"), (1.0, 0.25, "biased")]


def planted(seed, scale, shift):
    """What is found of draws with other standard deviations and a shift."""
    pair, draw = pairs(seed, 500)
    return calibrate(jax.random.key(seed), pair, lambda key, data: data + shift + scale * (draw(key, data) - data))


@pytest.mark.parametrize(("scale", "shift", "verdict"), PLANTED)
def test_a_planted_error_is_found_and_named(scale, shift, verdict):
    found = planted(0, scale, shift)
    assert not found.calibrated
    assert all(verdict in found.table.loc[f"parameter[{i}]", "verdict"] for i in range(DIM))


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "shift", "verdict"), PLANTED)
def test_planted_errors_are_found_in_20_of_20(scale, shift, verdict):
    for seed in range(20):
        found = planted(seed, scale, shift)
        assert not found.calibrated
        assert any(verdict in found.table.loc[f"parameter[{i}]", "verdict"] for i in range(DIM))


def test_the_joint_rank_sees_a_correlation_that_no_scalar_sees():
    pair, draw = pairs(0, 500, correlation=0.9)
    found = calibrate(jax.random.key(0), pair, draw)
    assert found.table["verdict"].tolist()[:2] == ["calibrated", "calibrated"]
    assert found.table.loc["joint", "verdict"] != "calibrated"
    assert not found.calibrated


def test_false_alarms():
    """Of the exact tests, each with its own probability: 400 sets of uniform values."""
    rng = np.random.default_rng(0)
    tests = np.array([uniformity(rng.uniform(size=40))[:3] for _ in range(400)])
    for level in (0.05, 0.3):
        share = (tests < level).mean(0)
        error = 4 * (level * (1 - level) / 400) ** 0.5
        assert (share < level + error).all()
        assert (share[1:] > level - error).all()
        assert share[0] > level / 2  # counts are whole numbers


@pytest.mark.slow
def test_false_alarms_of_the_whole():
    alarms = []
    for seed in range(200):
        pair, draw = pairs(seed, 60)
        alarms.append(not calibrate(jax.random.key(seed), pair, draw).calibrated)
    assert np.mean(alarms) < 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


def test_tied_ranks_are_broken_at_random():
    """A Poisson variable, whose draws are often equal to the true value."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(2.0, size=300)
    found = calibrate(jax.random.key(0), (rng.poisson(rate), rate), lambda key, data: rng.poisson(data, 50))
    assert found.calibrated
    assert list(found.ranks) == ["parameter", "joint"]
    assert len(np.unique(found.ranks["parameter"].to_numpy())) == 300


def test_what_is_left_out_is_told():
    def some(key, data):
        x = np.asarray(posterior(key, data)["x"])
        return {"x": np.full_like(x, np.nan) if data["y"][0] > 1.0 else x, "other": x[:, 0]}

    found = of_normal(jax.random.key(0), method=some, num_data_sets=100)
    assert 0 < len(found.left_out) < 60
    assert set(found.left_out) == {"its draws are not finite"}
    assert len(found.ranks) + len(found.left_out) == 100
    assert found.calibrated  # what is left out depends on the data alone
    assert "certified fits only" in str(found)
    assert repr(found).endswith(f"{len(found.left_out)} left out)")
    with pytest.raises(ValueError, match="at least 20 data sets with draws, got 0: its draws are not finite"):
        of_normal(jax.random.key(0), method=lambda key, data: {"x": jnp.full((10, DIM), jnp.nan)}, num_data_sets=20)


def test_sites_without_draws_and_constants_are_left_out():
    def model(y=None):
        numpyro.sample("z", dist.Bernoulli(0.3))
        x = numpyro.sample("x", dist.Normal(0, 1).expand([DIM]).to_event(1))
        numpyro.sample("r", dist.Uniform(jnp.array([0.0, 1.0]), jnp.array([1.0, 1.0 + 1e-30])))
        numpyro.sample("y", dist.Normal(x, 1).to_event(1), obs=y)

    def draw(key, data):
        uniform = jax.random.uniform(jax.random.fold_in(key, 1), (DRAWS,))
        return posterior(key, data) | {"r": jnp.stack([uniform, jnp.ones(DRAWS)], 1)}

    found = calibrate(jax.random.key(3), model, draw, observed=["y"], num_data_sets=100)
    assert list(found.ranks) == ["x[0]", "x[1]", "r[0]", "joint"]
    assert found.calibrated


def test_summary_and_pictures(capsys):
    found = of_normal(jax.random.key(0), method=partial(posterior, scale=jnp.array([1.0, 0.7])), num_data_sets=200)
    assert found.table["verdict"].tolist()[:2] == ["calibrated", "overconfident"]
    assert found.table.loc["log density", "verdict"] == found.table.loc["joint", "verdict"] == "overconfident"
    found.print_summary()
    printed = capsys.readouterr().out
    assert "NOT calibrated on 200 data sets" in printed
    assert "x[1] overconfident" in printed
    found.print_summary(max_rows=2)
    assert "x[0]" not in capsys.readouterr().out
    figure = found.plot()
    assert [axes.get_title().partition("\n")[0] for axes in figure.axes if axes.get_visible()] == list(found.ranks)
    assert len([axes for axes in found.plot_recovery(["x[1]"]).axes if axes.get_visible()]) == 1
    for names in (["y"], [], "x[0]"):
        with pytest.raises(ValueError, match="names expected a list of some of"):
            found.plot_recovery(names)


def test_double_precision_and_raw_keys(x64):
    pair, draw = pairs(0, 30)
    found = calibrate(jax.random.PRNGKey(1), pair, draw)
    assert found.recovery["true"].to_numpy().dtype == np.float64
    np.testing.assert_array_equal(found.recovery["true"].unstack(), pair[0])


def with_sigma(sigma, y=None):
    normal(y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observed": None}, "observed expected the names of the sites that are data"),
        ({"observed": ["z"]}, r"some of the model's sites \['x', 'y'\], got \['z'\]"),
        ({"num_data_sets": 5}, "num_data_sets expected at least 20, got 5"),
        ({"num_draws": 5}, "num_draws expected at least 10"),
        ({"error": 1.0}, r"error expected a number in \(0, 1\)"),
        ({"method": lambda key, data: {"z": jnp.ones(10)}}, r"some of the sites \['x'\], got \['z'\]"),
        ({"method": lambda key, data: {"x": jnp.ones(10)}}, r"expected the shapes .*'num_draws', 2.*got .*\(10,\)"),
        ({"method": lambda key, data: {"x": jnp.ones((1, DIM))}}, "at least 2 of each data set, got 1"),
        ({"method": MCMC(NUTS(normal), num_warmup=5, num_samples=5)}, "at least num_draws=200 draws, got 5"),
        ({"model": (np.ones(30), np.ones(30))}, "observed, args and kwargs expected none with pairs"),
        ({"model": (np.ones(30), np.ones(20)), "observed": None}, "one number of data sets"),
        ({"model": (np.ones(30),), "observed": None}, "a pair .*, got 1 parts"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(jax.random.key(0), **{"model": normal, "method": posterior, "observed": ["y"]} | options)


def test_kinds_of_arguments():
    for options, message in [
        ({"method": None}, r"method expected a FlowVI\(model\)"),
        ({"method": NUTS}, r"method expected a FlowVI\(model\)"),
        ({"model": 3}, "model expected a NumPyro model"),
        ({"method": lambda key, data: 3.0}, "draws expected a dict of arrays"),
    ]:
        with pytest.raises(TypeError, match=message):
            calibrate(jax.random.key(0), **{"model": normal, "method": posterior, "observed": ["y"]} | options)


@pytest.mark.slow
@pytest.mark.optimized
def test_a_conditional_flow_of_pairs():
    """A density of `x` given `y`, which needs neither a model nor its density."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4_000, DIM))
    y = x + rng.normal(size=x.shape)
    recipe = partial(flows.realnvp, num_layers=2, hidden=(8,))
    flow = fit_density(
        jax.random.key(0), x, condition=y, flow=recipe, num_steps=200, base=dist.Normal(0, 1), progress_bar=False
    )
    fresh = rng.normal(size=(100, DIM))
    data = fresh + rng.normal(size=fresh.shape)
    found = calibrate(jax.random.key(1), (fresh, data), flow)
    assert found.calibrated
    np.testing.assert_allclose(found.table["contraction"].iloc[:DIM], 0.5, atol=0.2)


def test_ctrl_c_in_a_fit_ends_the_check(monkeypatch):
    """`run_many` returns what it has by then: the next data sets would be compared with others' true values."""

    def interrupted(method, *args, **kwargs):
        raise KeyboardInterrupt

    first = iter([True])
    run = FlowVI._fitted
    monkeypatch.setattr(FlowVI, "_fitted", lambda *a, **k: run(*a, **k) if next(first, False) else interrupted(*a, **k))
    with pytest.raises(KeyboardInterrupt):
        calibrate(jax.random.key(0), normal, FlowVI(normal, progress_bar=False), observed=["y"], num_data_sets=20)


@pytest.mark.slow
@pytest.mark.optimized
def test_flow_vi_is_calibrated():
    """With data as a dict of sites and an argument that all data sets share; also with a guide of one's own."""
    for guide in (None, AutoFlow(with_sigma, partial(flows.realnvp, num_layers=2))):
        method = FlowVI(with_sigma, guide, progress_bar=False)
        found = calibrate(jax.random.key(0), with_sigma, method, 1.0, observed=["y"], num_data_sets=30)
        assert found.calibrated
        assert len(found.left_out) <= 1
        assert method.model is with_sigma


@pytest.mark.slow
@pytest.mark.optimized
def test_nuts_is_calibrated():
    chains = MCMC(NUTS(with_sigma), num_warmup=200, num_samples=200, num_chains=2, chain_method="vectorized")
    found = calibrate(jax.random.key(0), with_sigma, chains, 1.0, observed=["y"], num_data_sets=100, num_draws=100)
    assert found.calibrated
    assert found.num_draws > 50


@pytest.mark.slow
@pytest.mark.optimized
def test_an_amortised_flow_is_calibrated():
    """Eight schools with a prior of tau."""
    sigma = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])

    def schools(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfNormal(5))
        z = numpyro.sample("z", dist.Normal(0, 1).expand([8]).to_event(1))
        numpyro.sample("y", dist.Normal(mu + tau * z, sigma).to_event(1), obs=y)

    made = AmortizedFlow(schools, observed=["y"], num_simulations=10_000, num_steps=1_000, progress_bar=False)
    # the data sets of key 0 are unlucky ones: ranks of tau by quadrature have a dispersion of p = 0.004
    found = calibrate(jax.random.key(1), schools, made.fit(jax.random.key(1)), observed=["y"])
    assert found.calibrated
    assert len(found.left_out) < 100


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.filterwarnings("ignore")  # of NumPyro's guides within `vsbc_diagnostic`
def test_numpyros_own_diagnostic_takes_an_auto_flow():
    """The guide's means are unbiased for a conjugate model, so no component is found to be asymmetric."""
    guide = AutoFlow(normal, partial(flows.realnvp, num_layers=2, hidden=(8,)))
    result = vsbc_diagnostic(
        jax.random.PRNGKey(0),  # NumPyro 0.22 takes no typed key here
        normal,
        guide,
        numpyro.optim.Adam(0.01),
        Trace_ELBO(num_particles=8),
        observed_sites=["y"],
        num_simulations=40,
        num_svi_steps=300,
        num_samples=100,
    )
    assert result.probabilities["x"].shape == result.ranks["x"].shape == (40, DIM)
    assert (np.asarray(result.ks_pvalues["x"]) > 0.01).all()
    assert np.abs(np.asarray(result.probabilities["x"]).mean(0) - 0.5).max() < 4 * (1 / 12 / 40) ** 0.5
