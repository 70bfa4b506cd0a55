"""The latent ODE as NumPyro's model and guide, its path against SciPy, and its training."""

import sys
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.util import log_density
from numpyro.optim import Adam
from scipy.integrate import solve_ivp
from scipy.stats import norm

from numpyro_flows import LatentODE, fit_latent_ode, flows
from numpyro_flows.latent_ode.fit import negative_elbo
from numpyro_flows.latent_ode.model import PARAM_NAME
from numpyro_flows.latent_ode.networks import thinned
from numpyro_flows.latent_ode.series import Series
from tests.bijections.common import made
from tests.terminal import CtrlC

realnvp = partial(flows.realnvp, num_layers=2)
small = partial(LatentODE, latent_dim=2, width=8, flow=realnvp, dropout=0.0, window=(1.0, 3.0))
fit_small = partial(fit_latent_ode, latent_dim=2, width=8, flow=None, progress_bar=False)


def waves(num: int = 6, length: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Waves of any phase, and twice their slope."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(1.0, 3.0, (num, length)), axis=1)
    angle = 2 * times + rng.uniform(0, 2 * np.pi, (num, 1))
    return times, np.stack([np.sin(angle), 2 * np.cos(angle)], -1) + 0.1 * rng.normal(size=(num, length, 2))


def perturbed(module, seed: int = 1, scale: float = 0.3):
    """With every array moved, so that nothing is zero as it is before training; in the precision of the test."""
    arrays, static = eqx.partition(module, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(arrays)
    rng = np.random.default_rng(seed)
    moved = [jnp.asarray(np.asarray(leaf) + scale * rng.normal(size=leaf.shape), float) for leaf in leaves]
    return eqx.combine(jax.tree.unflatten(tree, moved), static)


@cache
def untrained() -> LatentODE:
    """Compiled once, in single precision."""
    with jax.enable_x64(False):
        return made(lambda: small(jax.random.key(0), 2, flow=None))


def params_of(latent_ode):
    return eqx.filter(latent_ode, eqx.is_inexact_array)


def eps(dtype) -> float:
    return float(np.finfo(dtype).eps)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)], indirect=True)
def test_masked_entries_change_nothing(dtype):
    times, values = waves(length=9)
    latent_ode = perturbed(untrained())
    some = np.isin(np.arange(9), [1, 3, 4, 6, 7])  # a gap before, one within, and padding behind
    mask = np.broadcast_to(some, (6, 9))

    def hidden(mask):
        return np.where(mask, times, np.nan), np.where(mask[..., None], values, np.nan), mask

    plain, padded = latent_ode.encode(times[:, some], values[:, some]), latent_ode.encode(*hidden(mask))
    mean = np.asarray(plain.mean)
    assert mean.dtype == dtype
    np.testing.assert_allclose(padded.mean, mean, rtol=0, atol=100 * eps(dtype))
    np.testing.assert_allclose(padded.variance, plain.variance, rtol=100 * eps(dtype))

    @jax.jit
    def density(*series):
        conditioned = partial(latent_ode.model, *series)
        return log_density(conditioned, (), {}, {"z0": mean, PARAM_NAME: params_of(latent_ode)})[0]

    # given z0, what two masks let through has the log densities that add up to that of all
    prior = norm.logpdf(mean).sum()
    parts = [float(density(*hidden(one))) - prior for one in (mask, ~mask)]
    whole = float(density(*hidden(np.ones((6, 9), bool)))) - prior
    np.testing.assert_allclose(sum(parts), whole, rtol=1e3 * eps(dtype))


def test_path_is_the_solution_of_the_field(x64):
    latent_ode = perturbed(untrained())
    z0, times = np.array([[0.5, -1.0]]), np.array([1.0, 1.7, 2.5, 4.0])
    found = np.asarray(eqx.filter_jit(latent_ode.path)(jnp.asarray(z0), jnp.asarray(times)[None])[0])
    field = eqx.filter_jit(latent_ode.field)
    # the window's length, 2, is the unit of time
    exact = solve_ivp(
        lambda t, z: np.asarray(field(z)), (0, 1.5), z0[0], t_eval=(times - 1) / 2, rtol=1e-10, atol=1e-10
    )
    # between steps the solver interpolates, of an order less than its steps
    np.testing.assert_allclose(found, exact.y.T, rtol=0, atol=1e-3 * np.abs(exact.y).max())
    np.testing.assert_allclose(found[-1], exact.y[:, -1], rtol=0, atol=1e-4 * np.abs(exact.y).max())
    np.testing.assert_allclose(found[0], z0[0], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_solver_error_falls_with_the_steps(x64):
    times, values = waves()
    errors = [
        perturbed(small(jax.random.key(0), 2, num_steps=num_steps)).solver_error(times, values).max()
        for num_steps in (2, 8, 32)
    ]
    assert errors[0] > 4 * errors[1] > 4 * errors[2]  # of third order, but for the tolerance of the other


@pytest.mark.slow
def test_elbo_of_model_and_guide(x64):
    times, values = waves()
    mask = np.arange(5) < np.array([5, 4, 3, 5, 2, 1])[:, None]
    latent_ode = perturbed(small(jax.random.key(0), 2))
    svi = SVI(latent_ode.model, latent_ode.guide, Adam(1e-3), Trace_ELBO(num_particles=400))
    state = svi.init(jax.random.key(1), times, values, mask)
    loss = svi.evaluate(state, times, values, mask) / 6

    # the same by hand, of other draws
    q = latent_ode.encode(times, values, mask)
    z0 = q.sample(jax.random.key(2), (400,))
    path = jax.vmap(lambda z: latent_ode.path(z, jnp.asarray(times), in_training=True))(z0)
    log_prob = jnp.where(mask[..., None], dist.Normal(latent_ode.decode(path), latent_ode.noise).log_prob(values), 0)
    terms = (log_prob.sum((-1, -2)) + latent_ode.prior.log_prob(z0) - q.log_prob(z0)).sum(1) / 6
    standard_error = terms.std() / np.sqrt(400)
    assert abs(-terms.mean() - loss) < 4 * np.sqrt(2) * standard_error

    series = Series(*map(jnp.asarray, latent_ode.observe(times, values, mask)))
    ours = negative_elbo(params_of(latent_ode), latent_ode, series, jax.random.key(3), batch_size=None, num_draws=400)
    assert abs(ours - loss) < 4 * np.sqrt(2) * standard_error


@pytest.mark.slow
def test_minibatches_estimate_the_loss_of_all(x64):
    times, values = waves()
    latent_ode = perturbed(small(jax.random.key(0), 2, flow=None))
    series = Series(*map(jnp.asarray, latent_ode.observe(times, values)))

    @partial(jax.jit, static_argnums=1)
    def losses(keys, batch_size):
        loss = partial(negative_elbo, params_of(latent_ode), latent_ode, series, batch_size=batch_size)
        return jax.vmap(lambda key: loss(key))(keys)

    some, full = (np.asarray(losses(jax.random.split(jax.random.key(1), 2000), size)) for size in (2, None))
    standard_error = np.sqrt((some.var() + full.var()) / 2000)
    assert abs(some.mean() - full.mean()) < 4 * standard_error


@pytest.mark.slow
def test_gradient_against_differences(x64):
    times, values = waves(num=3)
    latent_ode = perturbed(small(jax.random.key(0), 2))
    params = params_of(latent_ode)
    series = Series(*map(jnp.asarray, latent_ode.observe(times, values)))

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return negative_elbo(params, latent_ode, series, jax.random.key(1), batch_size=None)

    direction = params_of(perturbed(jax.tree.map(jnp.zeros_like, params), seed=5, scale=1.0))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), loss(params)[1], direction)))
    step = 1e-5
    ahead, behind = (loss(jax.tree.map(lambda p, d, by=by: p + by * d, params, direction))[0] for by in (step, -step))
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.optimized
def test_svi_trains_it_with_minibatches():
    times, values = waves(num=20)
    latent_ode = small(jax.random.key(0), 2, flow=None)
    svi = SVI(latent_ode.model, latent_ode.guide, Adam(1e-2), Trace_ELBO())
    result = svi.run(jax.random.PRNGKey(1), 300, times, values, batch_size=10, progress_bar=False)
    assert np.mean(result.losses[-20:]) < np.mean(result.losses[:20])
    trained = latent_ode.with_params(result.params)
    assert not np.allclose(trained.encode(times, values).mean, latent_ode.encode(times, values).mean)


def test_thinning_keeps_something_of_every_series():
    mask = np.random.default_rng(0).uniform(size=(1000, 3)) < 0.7
    mask[:, 0] = True
    kept = np.asarray(jax.jit(thinned)(jax.random.key(0), mask, 0.9))
    assert kept.any(1).all()
    assert not kept[~mask].any()  # nothing is added
    assert kept.sum() < mask.sum()


WAVES = waves(num=80, length=12)  # one set of shapes, one compilation


def fit_waves(key, **options):
    times, values = (array[:60] for array in WAVES)
    return fit_latent_ode(
        key,
        times,
        values,
        window=(1.0, 3.0),
        latent_dim=2,
        flow=None,
        width=16,
        **{"progress_bar": False, **options},
    )


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "legacy"])
def test_a_fit_is_better_than_the_mean(make_key):
    fit = fit_waves(make_key(0), num_steps=1000)
    assert len(fit.losses) == 1000
    assert fit.why == "all 1000 steps taken"
    assert fit.losses[-100:].mean() < fit.losses[:100].mean()
    assert fit.validation.min() < fit.validation[0]
    assert fit.num_skipped == 0
    assert fit.solver_error < 0.2
    unseen = WAVES[0][60:], WAVES[1][60:]
    error = np.asarray(fit.latent_ode.predict(*unseen)) - unseen[1]
    assert error.std() < 0.5 * (unseen[1] - WAVES[1][:60].mean((0, 1))).std()
    assert fit.latent_ode.sample(make_key(1), 20, [1.0, 2.0, 9.0]).shape == (20, 3, 2)
    assert fit.latent_ode.predict(*unseen, at=[2.0, 4.0, 5.0]).shape == (20, 3, 2)
    z0 = fit.latent_ode.encode(*unseen).sample(make_key(2))
    assert fit.latent_ode.to_base(z0).shape == (20, 2)


@pytest.mark.slow
def test_a_fit_of_one_key_repeats():
    fits = [fit_waves(jax.random.key(key), num_steps=3) for key in (0, 0, 1)]
    np.testing.assert_array_equal(fits[0].losses, fits[1].losses)
    assert (fits[0].losses != fits[2].losses).any()
    assert len(fits[0].losses) == 3


@pytest.mark.slow
def test_interrupting_returns_what_was_fitted(monkeypatch):
    monkeypatch.setattr(sys, "stderr", CtrlC("loss="))
    fit = fit_waves(jax.random.key(0), num_steps=300, progress_bar=True)
    assert fit.why == "interrupted"
    assert len(fit.losses) == 100
    assert np.isfinite(fit.latent_ode.predict(*WAVES)).all()


def test_base_coordinates_of_the_prior_are_standard_normal():
    latent_ode = perturbed(made(lambda: small(jax.random.key(0), 1)), scale=0.1)
    z0 = jax.jit(lambda key: latent_ode.prior.sample(key, (4000,)))(jax.random.key(1))
    base = np.asarray(latent_ode.to_base(z0))
    np.testing.assert_allclose(np.mean(base, 0), 0, atol=4 / np.sqrt(4000))
    np.testing.assert_allclose(np.cov(base.T), np.eye(2), atol=4 * np.sqrt(2 / 4000))


def _changed(array, index, value):
    array = array.astype(float).copy()
    array[index] = value
    return array


TIMES, VALUES = waves()
BAD_SERIES = {
    "strings": ((TIMES.astype(str), VALUES), TypeError, "times expected real numbers, got an array of type <U"),
    "two axes": ((TIMES, VALUES[..., 0]), ValueError, r"values expected the shape \(num, length, .*\), got \(6, 5\)"),
    "no series": ((TIMES[:0], VALUES[:0]), ValueError, "at least one series, time and coordinate"),
    "other times": ((TIMES[:, :3], VALUES), ValueError, r"times expected the shape \(6, 5\) of values, got \(6, 3\)"),
    "other mask": ((TIMES, VALUES, np.ones((6, 3), bool)), ValueError, r"mask expected the shape \(6, 5\)"),
    "numbers as mask": ((TIMES, VALUES, np.ones((6, 5))), TypeError, "mask expected booleans, got an array of float64"),
    "backwards": ((TIMES[:, ::-1], VALUES), ValueError, "times expected sorted along each series, .* 6 of 6 series"),
    "nan": ((TIMES, _changed(VALUES, (2, 1), np.nan)), ValueError, r"finite numbers.*mask=.* 1 of 6 series: 2"),
    "nan time": ((_changed(TIMES, (3, 4), np.nan), VALUES), ValueError, "times expected finite numbers.*: 3"),
    "nothing": ((TIMES, VALUES, np.arange(6)[:, None] * np.ones(5) > 0), ValueError, "at least one value.*: 0"),
}


@pytest.mark.parametrize(("series", "error", "message"), BAD_SERIES.values(), ids=BAD_SERIES)
def test_bad_series(series, error, message):
    latent_ode = untrained()
    with pytest.raises(error, match=message):
        latent_ode.encode(*series)
    with pytest.raises(error, match=message):
        fit_small(jax.random.key(0), *series)
    with pytest.raises(error, match=message):
        SVI(latent_ode.model, latent_ode.guide, Adam(1e-3), Trace_ELBO()).run(jax.random.key(0), 1, *series)


def test_other_bad_arguments():
    latent_ode = untrained()
    with pytest.raises(ValueError, match=r"times expected from 1.0 on, where the latent path starts, got 0"):
        latent_ode.encode(TIMES - 1, VALUES)
    with pytest.raises(ValueError, match=r"values expected the shape \(num, length, 2\), got \(6, 5, 1\)"):
        latent_ode.encode(TIMES, VALUES[..., :1])
    with pytest.raises(ValueError, match=r"z0 expected the shape \(num, 2\), got \(3,\)"):
        latent_ode.follow(np.zeros(3), [1.0])
    with pytest.raises(ValueError, match=r"at expected the shape \(at,\) or \(6, at\), got \(2, 5\)"):
        latent_ode.predict(TIMES, VALUES, at=TIMES[:2])
    for at in ([2.0, 1.0], [0.5], [np.nan]):
        with pytest.raises(ValueError, match=r"at expected sorted, finite times from 1.0 on"):
            latent_ode.predict(TIMES, VALUES, at=at)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim expected at least 1, got 0"),
        ({"window": (3.0, 1.0)}, r"window expected two finite times, the later one second, got \(3.0, 1.0\)"),
        ({"dropout": 1.0}, r"dropout expected a number in \[0, 1\), got 1.0"),
        ({"center": [0.0]}, r"center expected 2 finite numbers, got \[0.0\]"),
        ({"spread": [1.0, 0.0]}, "spread expected positive numbers"),
        ({"flow": lambda key, dim: flows.realnvp(key, 3)}, r"bijection of shape \(2,\), got shape \(3,\)"),
    ],
    ids=lambda case: str(list(case)) if isinstance(case, dict) else "",
)
def test_bad_latent_odes(options, message):
    with pytest.raises(ValueError, match=message):
        eqx.filter_eval_shape(lambda: small(jax.random.key(0), 2, **options))


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "learning_rate", "validation"])
def test_bad_numbers_of_a_fit(name):
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} expected .*, got 0"):
        fit_small(jax.random.key(0), TIMES, VALUES, **options)


@pytest.mark.parametrize("batch_size", [0, -1, 7, 2.5, "2", True])
@pytest.mark.parametrize("method", ["model", "guide"])
def test_bad_batches_of_model_and_guide(method, batch_size):
    program = seed(getattr(untrained(), method), 0)
    error = ValueError if type(batch_size) is int else TypeError
    with pytest.raises(error, match=r"batch_size expected (at least 1|at most the 6 series|an integer), got "):
        program(TIMES, VALUES, batch_size=batch_size)


def test_data_that_cannot_be_fitted():
    with pytest.raises(ValueError, match="at least 2 series, one of them to choose by, got 1"):
        fit_small(jax.random.key(0), TIMES[:1], VALUES[:1])
    with pytest.raises(ValueError, match=r"coordinates that vary, got constant ones: \[1\]"):
        fit_small(jax.random.key(0), TIMES, VALUES * [1.0, 0.0])
    with pytest.raises(ValueError, match=r"times expected at least two different ones, got 2\.0 alone"):
        fit_small(jax.random.key(0), np.full((6, 1), 2.0), VALUES[:, :1])
