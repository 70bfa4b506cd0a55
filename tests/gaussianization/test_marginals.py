"""Marginal maps: what they make of data, held-out data too, is standard normal, and both directions agree far out."""

from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm, t

from numpyro_flows.gaussianization import EmpiricalMarginal, fit_empirical, fit_mixture, fit_spline
from numpyro_flows.gaussianization.marginals import knots

NUM = 3_000
FITS = {
    "mixture": fit_mixture,
    "logistic": partial(fit_mixture, kind="logistic"),
    "spline": fit_spline,
    "empirical": fit_empirical,
}
SAMPLERS = {
    "normal": lambda rng, size: rng.normal(size=size),
    "uniform": lambda rng, size: rng.uniform(-1.7, 1.7, size=size),
    "bimodal": lambda rng, size: rng.choice([-0.9, 0.9], size=size) + 0.3 * rng.normal(size=size),
    "skewed": lambda rng, size: rng.standard_exponential(size) - 1.0,
    "heavy": lambda rng, size: rng.standard_t(5, size=size) / np.sqrt(5 / 3),
}
# mixtures, whose inverse is numerical, take long to compile; the laws have them too (tests/bijections/)
over_fits = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "logistic")) for n in FITS]
)
over_fits_in_closed_form = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("mixture", "logistic"))) for n in FITS]
)


@eqx.filter_jit
def forward(bijection, x):
    """Values, log-determinants, and slopes of the coordinates, each of which depends on itself only."""

    def with_slopes(x):
        return jax.jvp(bijection.transform, (x,), (jnp.ones_like(x),))

    (y, slopes), (_, log_det) = jax.vmap(with_slopes)(x), jax.vmap(bijection.transform_and_log_det)(x)
    return y, log_det, slopes


@eqx.filter_jit
def backward(bijection, y):
    return jax.vmap(bijection.inverse_and_log_det)(y)


def draws(seed: int) -> np.ndarray:
    """A column of each sampler."""
    rng = np.random.default_rng(seed)
    return np.stack([draw(rng, NUM) for draw in SAMPLERS.values()], axis=1)


@cache
def fitted(name):
    with jax.enable_x64(True):
        return FITS[name](draws(0))


@over_fits
def test_held_out_data_become_standard_normal(name, x64):
    z, *_ = forward(fitted(name), jnp.asarray(draws(1)))
    for column, sampler in zip(np.asarray(z).T, SAMPLERS):
        # both samples vary: the distance of two of them is below 1.95 sqrt(2 / n) but once in a thousand
        assert kstest(column, norm.cdf).statistic < 1.95 * np.sqrt(2 / NUM), sampler


@over_fits_in_closed_form
def test_both_directions_agree_far_out(name, x64):
    x = jnp.asarray(np.linspace(-50.0, 50.0, NUM)[:, None] * np.ones(len(SAMPLERS)))
    y, log_det, slopes = forward(fitted(name), x)
    back, log_det_back = backward(fitted(name), y)
    np.testing.assert_allclose(back, x, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.log(slopes).sum(1), log_det, rtol=1e-8, atol=1e-8)


@over_fits
def test_density_of_a_student(name, x64):
    """Held out, no further from the exact density than its parameters cost."""
    rng = np.random.default_rng(0)
    train, test = rng.standard_t(5, size=(2, NUM, 5)) / np.sqrt(5 / 3)
    z, _, slopes = forward(FITS[name](train), jnp.asarray(test))
    exact = t.logpdf(test * np.sqrt(5 / 3), 5) + 0.5 * np.log(5 / 3)
    for excess in (exact - norm.logpdf(z) - np.log(slopes)).T:
        # 32 numbers cost 32 / (2 n) on average; three deviations of the test's mean on top, and the shape of the tail
        assert excess.mean() < 32 / (2 * NUM) + 3 * excess.std() / np.sqrt(NUM) + 0.02


@over_fits
def test_duplicates_do_no_harm(name, x64):
    data = np.random.default_rng(0).integers(0, 4, size=(NUM, 5)) - 1.5
    y, log_det, _ = forward(FITS[name](data[:500]), jnp.asarray(data))
    assert np.isfinite(y).all()
    assert np.isfinite(log_det).all()
    assert np.abs(np.asarray(y)).max() < 6.0


def test_knots_of_few_points_rise(x64):
    x, y = knots(np.random.default_rng(0).normal(size=(10, 2)), 32)
    assert (np.diff(x, axis=1) > 0).all()
    assert (np.diff(y, axis=1) > 0).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.ones((2, 1)),) * 3, r"two knots or more, got \(\(2, 1\), \(2, 1\), \(2, 1\)\)"),
        (([[0.0, 1.0]], [[0.0, 1.0, 2.0]], [[1.0, 1.0]]), r"got \(\(1, 2\), \(1, 3\), \(1, 2\)\)"),
        (([[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]), "rising knots of positive slopes"),
        (([[0.0, 1.0]], [[0.0, 1.0]], [[1.0, 0.0]]), "rising knots of positive slopes"),
    ],
)
def test_impossible_knots_are_errors(arrays, message):
    with pytest.raises(ValueError, match=message):
        EmpiricalMarginal(*arrays)
