"""The greedy fit: good on data it has not seen, as deep as the data need, and clear about what it cannot take."""

from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.flows.zoo import two_moons, two_moons_log_density
from numpyro_flows.gaussianization import fit_rbig
from numpyro_flows.gaussianization.rbig import MARGINALS

KEY = jax.random.key(0)
NUM = 3_000  # rows in most tests, which so share what they compile


@eqx.filter_jit
def to_base(bijection, data):
    return jax.vmap(bijection.inverse_and_log_det)(data)


@eqx.filter_jit
def to_data(bijection, z):
    return jax.vmap(bijection.transform_and_log_det)(z)


def nll(fit, data):
    z, log_det = to_base(fit.bijection, jnp.asarray(data))
    return 0.5 * (z**2 + np.log(2 * np.pi)).sum(1) - log_det


@cache
def moons():
    """Training and test points, standardised alike, and the lowest possible NLL of the latter."""
    rng = np.random.default_rng(0)
    train, test = two_moons(rng, NUM), two_moons(rng, NUM)
    mean, sd = train.mean(0), train.std(0)
    return (train - mean) / sd, (test - mean) / sd, -two_moons_log_density(test).mean() - np.log(sd).sum()


@cache
def fitted(marginal: Any):
    with jax.enable_x64(True):
        return fit_rbig(KEY, moons()[0], marginal=marginal)


# one kind in the quick suite: the maps themselves are tested in test_marginals.py
over_marginals = pytest.mark.parametrize(
    "marginal", [pytest.param(name, marks=[pytest.mark.slow] * (name != "spline")) for name in MARGINALS]
)


@over_marginals
def test_two_moons_held_out(marginal, x64):
    _, test, lowest = moons()
    excess = float(nll(fitted(marginal), test).mean()) - lowest
    assert 0 < excess < {"mixture": 0.185, "logistic": 0.25}.get(marginal, 0.3)


@over_marginals
def test_both_directions_agree(marginal, x64):
    z = np.random.default_rng(0).normal(size=(100, 2))
    x, log_det = to_data(fitted(marginal).bijection, z)
    back, log_det_back = to_base(fitted(marginal).bijection, np.resize(x, (NUM, 2)))
    np.testing.assert_allclose(back[:100], z, atol=1e-6)
    np.testing.assert_allclose(log_det_back[:100], -log_det, atol=1e-5)


@pytest.mark.slow
def test_drops_are_what_the_log_density_gains(x64):
    """The divergence of the training data falls by the drops, up to what marginal maps leave over."""
    train, _, _ = moons()
    fit = fitted("mixture")
    gained = (0.5 * (train**2 + np.log(2 * np.pi)).sum(1) - nll(fit, train)).mean()
    assert len(fit.total_correlation_drops) == fit.layers
    # a mixture's likelihood and the entropy by spacings differ by a few thousandths a coordinate and layer
    np.testing.assert_allclose(fit.total_correlation_drops.sum(), gained, atol=0.01 * 2 * fit.layers)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 3])
def test_gaussian_data_need_no_depth(dim, x64):
    rng = np.random.default_rng(dim)
    data = 3.0 + rng.normal(size=(NUM, dim))
    fit = fit_rbig(KEY, data)
    assert fit.layers <= 3
    fresh = 3.0 + rng.normal(size=(NUM, dim))
    exact = 0.5 * dim * np.log(2 * np.pi) + 0.5 * ((fresh - 3.0) ** 2).sum(1)
    assert np.mean(nll(fit, fresh) - exact) < 24 * dim * fit.layers / (2 * NUM)


def test_one_coordinate_needs_few_layers(x64):
    """One, but that a second refines the edge of the exponential distribution."""
    fit = fit_rbig(KEY, np.random.default_rng(0).exponential(size=(NUM, 1)))
    assert fit.layers <= 3


@pytest.mark.slow
def test_scales_and_locations_do_not_matter(x64):
    train, test, _ = moons()
    scale, loc = np.array([1e4, 1e-4]), np.array([1e6, -1.0])
    fit = fit_rbig(KEY, loc + scale * train)
    value = nll(fit, loc + scale * test) - np.log(scale).sum()
    np.testing.assert_allclose(value.mean(), nll(fitted("mixture"), test).mean(), atol=0.05)


@pytest.mark.slow
def test_is_the_same_for_a_key_of_either_kind(x64):
    data = moons()[0]
    one, other = (fit_rbig(key, data, max_layers=2) for key in (jax.random.key(3), jax.random.PRNGKey(3)))
    for a, b in zip(jax.tree.leaves(one.bijection), jax.tree.leaves(other.bijection)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.ones(5), {}, r"data of shape \(num, dim\), got \(5,\)"),
        (np.ones((5, 2)), {}, r"at least dim \+ 8 = 10 rows, got 5"),
        (np.where(np.eye(20, 2) > 0, np.nan, 0.0), {}, r"NaN or infinite values in 2 rows: 0, 1$"),
        (np.full((20, 2), np.inf), {}, r"in 20 rows: 0, 1, 2, 3, 4, \.\.\."),
        (np.arange(40).reshape(20, 2) * [1, 0], {}, r"constant columns \[1\]"),
        (np.eye(20, 2), {"marginal": "kde"}, r"marginal expected one of \['mixture', .*\], got 'kde'"),
        (np.eye(20, 2), {"rotation": "varimax"}, r"rotation expected one of .*, got 'varimax'"),
        (np.eye(20, 2), {"max_layers": 0}, "max_layers expected at least 1, got 0"),
    ],
)
def test_errors(data, options, message):
    with pytest.raises(ValueError, match=message):
        fit_rbig(KEY, data, **options)
