"""Latent ODEs that are trained."""

import sys

import jax
import numpy as np
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam

from numpyro_flows import fit_latent_ode
from tests.latent_odes import fit_small, small, waves
from tests.terminal import CtrlC


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
@pytest.mark.optimized
def test_covariates_tell_the_speed():
    """Points that leave one place on a circle: from their start alone, only a covariate says how fast they are."""
    rng, num = np.random.default_rng(0), 200
    times = np.sort(rng.uniform(0.0, 3.0, (num, 3)), axis=1)
    times[:, 0] = 0.0
    speed = rng.uniform(0.5, 2.0, (num, 1))

    def place(times):
        return np.stack([np.cos(speed * times), np.sin(speed * times)], -1)

    values = place(times) + 0.05 * rng.normal(size=(num, 3, 2))
    doses = np.concatenate([100.0 + 10.0 * speed, rng.normal(size=(num, 1))], 1)  # one of them says nothing
    later = np.array([1.0, 2.0, 3.0])

    def error(known):
        train, unseen = (None, None) if known is None else (known[:150], known[150:])
        fit = fit_small(
            jax.random.key(0), times[:150], values[:150], None, train, window=(0.0, 3.0), width=16, num_steps=1000
        )
        start_only = np.arange(3) < np.ones((50, 1))
        found = fit.latent_ode.predict(times[150:], values[150:], start_only, unseen, at=later)
        return np.sqrt(np.mean((np.asarray(found) - place(later)[150:]) ** 2))

    assert error(doses) < 0.25 * error(None)


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
