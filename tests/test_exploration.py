"""Points that no fit chose, and the mass that they show a fit to lack, against closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from numpyro_flows.inference.exploration import Prior, Probe, explore, outside, share_outside, suspects
from numpyro_flows.inference.settings import FlowVISettings
from tests.densities import draws_of_normals, gaussian_fit, log_prob_of, no_prior, normals, standard_fit

SETTINGS = FlowVISettings()
LADDER, AXES, CLIMBS = "wider and narrower Gaussians", "points on axes", "ends of climbs"
TEMPERED, PRIOR = "tempered particles", "draws of the prior"


def prior_of(mixture, num=SETTINGS.prior_draws):
    weights, means, sds = mixture
    x = draws_of_normals(weights, means, sds, num, np.random.default_rng(5))
    return Prior(x, normals(*mixture)(x)[0])


def probes_around(density, fit, prior=None, seed=0):
    probes = explore(density, fit, prior or no_prior(fit.loc.size), np.random.default_rng(seed), SETTINGS)
    return {probe.name: probe for probe in probes}


def looked(density, fit, log_evidence, prior=None):
    """For each kind of probe the points that lie outside of a fit, and the shares."""
    probes = probes_around(density, fit, prior)
    there = {name: outside(probe, log_prob_of(fit), log_evidence, SETTINGS) for name, probe in probes.items()}
    shares = {
        name: share_outside(probe, there[name], log_evidence)
        for name, probe in probes.items()
        if probe.log_proposal is not None
    }
    return {name: probe.x[there[name]] for name, probe in probes.items()}, shares


@pytest.mark.parametrize("dim", [1, 5, 300])
def test_nothing_lies_outside_a_perfect_fit(dim):
    """Of a Gaussian with another evidence, and a prior that is wider."""
    fit = gaussian_fit(np.full(dim, 3.0), 0.5 * np.ones(dim) if dim > 256 else 0.5 * np.eye(dim))
    normal = normals([1.0], [fit.loc], [0.5])
    prior = prior_of(([1.0], [np.zeros(dim)], [2.0]))
    density = lambda x: (normal(x)[0] - 100.0, normal(x)[1])  # noqa: E731
    points, shares = looked(density, fit, -100.0, prior)
    assert set(points) == {LADDER, AXES, CLIMBS, TEMPERED, PRIOR}
    assert all(len(x) == 0 for x in points.values())
    assert all(share.value == 0.0 for share in shares.values())
    probes = list(probes_around(density, fit, prior).values())
    found, shares = suspects(probes, log_prob_of(fit), -100.0, np.random.default_rng(0), SETTINGS)
    assert found.shape == (0, dim)
    assert shares == ()


@pytest.mark.parametrize("dim", [1, 4, 300])
def test_the_share_of_one_coordinate_that_is_too_narrow(dim):
    """`p / q = exp(1.5 x^2) / 2` of it is above 10 for `x^2 > log(20) / 1.5`, whatever the others are."""
    scale = np.where(np.arange(dim) == 0, 0.5, 1.0)
    fit = gaussian_fit(np.zeros(dim), scale if dim > 256 else np.diag(scale))
    normal = ([1.0], [np.zeros(dim)], [1.0])
    exact = 2 * scipy.stats.norm.sf(np.sqrt(np.log(20) / 1.5))
    _, shares = looked(normals(*normal), fit, 0.0, prior_of(normal))
    for share in shares.values():
        assert share.value < exact + 3 * share.se
        if dim < 300 or share.name == PRIOR:  # of the ladder only draws that have the scale of the fit count there
            assert abs(share.value - exact) < 3 * share.se
            assert share.se < 0.25 * exact
    np.testing.assert_allclose(shares[PRIOR].se, np.sqrt(exact * (1 - exact) / SETTINGS.prior_draws), rtol=0.1)


@pytest.mark.parametrize("dim", [2, 5])
def test_a_spike_inside_a_slab(dim):
    """Where the fit is the slab, which has half of the mass, the spike has as much as the fit has."""
    mixture = [0.5, 0.5], np.zeros((2, dim)), [0.03, 1.0]
    points, shares = looked(normals(*mixture), standard_fit(dim), np.log(0.5), prior_of(mixture))
    for name in (LADDER, PRIOR):
        assert len(points[name]) > 50
        assert abs(shares[name].value - 1.0) < 3 * shares[name].se + 0.01  # at its rim it is below 10 Z
        assert shares[name].se < 0.15


def test_a_slab_around_a_spike():
    """The other way round: all but the spike's own region is outside."""
    mixture = [0.5, 0.5], np.zeros((2, 5)), [0.03, 1.0]
    fit = gaussian_fit(np.zeros(5), 0.03 * np.eye(5))
    points, shares = looked(normals(*mixture), fit, np.log(0.5), prior_of(mixture))
    assert len(points[TEMPERED]) > 50
    for name in (LADDER, PRIOR):
        assert abs(shares[name].value - 1.0) < 3 * shares[name].se + 0.01


@pytest.mark.parametrize("dim", [2, 5, 20])
def test_a_half_width_bump_on_an_axis(dim):
    means = np.array([np.zeros(dim), 8.0 * np.eye(dim)[0]])
    points, shares = looked(normals([0.6, 0.4], means, [1.0, 0.5]), standard_fit(dim), np.log(0.6))
    assert np.abs(points[AXES][:, 0] - 8.0).min() < 0.6
    assert np.all(points[AXES][:, 0] > 4.0)
    assert shares[LADDER].value < 0.4 / 0.6 + 3 * shares[LADDER].se
    if dim == 2:  # in more dimensions few draws hit it
        assert abs(shares[LADDER].value - 0.4 / 0.6) < 3 * shares[LADDER].se
        assert len(points[LADDER]) > 5


def test_a_far_mode_by_climbs():
    """Along no axis, so far that nothing else gets there."""
    dim = 6
    means = np.array([np.zeros(dim), np.full(dim, 40.0)])
    points, _ = looked(normals([0.5, 0.5], means, [1.0, 2.0]), standard_fit(dim), np.log(0.5))
    assert np.any(np.linalg.norm(points[CLIMBS] - 40.0, axis=1) < 1e-2)


def test_the_ends_of_the_climbs_that_led_to_a_fit_are_looked_at():
    """Above 256 dimensions they are all."""
    density = normals([0.5, 0.5], [[0.0, 0.0], [50.0, 50.0]], [1.0, 1.0])
    fit = standard_fit(2)
    climbs = fit.climbs._replace(
        x=np.full((1, 2), 50.0), log_density=density(np.full((1, 2), 50.0))[0], factor=np.eye(2)[None],
        converged=np.array([False]),
    )  # fmt: skip
    points, _ = looked(density, fit._replace(climbs=climbs), np.log(0.5))
    assert (points[CLIMBS] == 50.0).all(1).any()


@pytest.mark.parametrize("dim", [2, 300])
def test_the_ladder_has_the_density_of_its_draws(dim):
    """`E_r[p / r] = 1` for each normal `p` that it covers."""
    scale = np.linspace(0.5, 2.0, dim)
    fit = gaussian_fit(np.ones(dim), scale if dim > 256 else np.linalg.cholesky(np.diag(scale) + 0.2))
    probe = probes_around(normals([1.0], [np.zeros(dim)], [1.0]), fit)[LADDER]
    assert probe.log_proposal is not None
    for width in (1 / 10, 1.0, 5.0):
        near = fit._replace(scale=width * fit.scale)
        ratios = np.exp(log_prob_of(near)(probe.x) - probe.log_proposal)
        assert abs(ratios.mean() - 1) < 4 * ratios.std() / np.sqrt(len(ratios))


@pytest.mark.parametrize("dim", [1, 7, 300, 2_000])
def test_points_on_axes_of_a_diagonal_fit(dim):
    """On both sides of every axis where there are not too many, over the range of `dispersion`; and the origin."""
    sds = np.linspace(1.0, 3.0, dim)
    fit = gaussian_fit(np.full(dim, 7.0), sds)
    density = lambda x: (np.zeros(len(x)), np.zeros_like(x))  # noqa: E731
    small = replace(SETTINGS, dispersed_starts=1, particles=2, temperatures=1, ladder_draws=10)
    probes = explore(density, fit, no_prior(dim), np.random.default_rng(0), small)
    x = next(probe.x for probe in probes if probe.name == AXES)
    assert not x[-1].any()
    away = x[:-1] - 7.0
    assert np.all((away != 0).sum(1) == 1)
    distances = abs(away / sds).max(1)
    np.testing.assert_allclose([distances.min(), distances.max()], SETTINGS.dispersion)
    axes = np.unique(np.argmax(abs(away), axis=1))
    assert len(away) % (2 * len(axes)) == 0
    assert len(away) <= SETTINGS.axis_points
    assert len(axes) == {1: 1, 7: 7, 300: 300, 2_000: 512}[dim]  # four distances at least, on all axes if possible


def test_points_where_the_density_is_broken():
    """They are left out; draws of a known density stay, as none of the mass."""
    normal = normals([1.0], [[0.0, 0.0]], [1.0])

    def broken(x):
        log_p, gradient = normal(x)
        return np.where(x[:, 0] > 0, np.nan, log_p), gradient

    probes = probes_around(broken, gaussian_fit([-1.0, 0.0], np.eye(2)), prior_of(([1.0], [[0.0, 0.0]], [1.0])))
    for name in (AXES, TEMPERED, CLIMBS):
        assert np.isfinite(probes[name].log_density).all()
        assert (probes[name].x[:, 0] <= 0).all()
    for name in (LADDER, PRIOR):
        there = np.ones(len(probes[name].x), bool)
        share = share_outside(probes[name], there, 0.0)
        assert abs(share.value - 0.5) < 4 * share.se


def test_suspects_are_drawn_by_their_weights():
    """At most as many as particles, those of a known density as often as the posterior has them."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-10, 10, (50_000, 1))
    log_density = normals([0.2, 0.8], [[-5.0], [5.0]], [0.1, 0.1])(x)[0]
    probe = Probe("uniform", x, log_density, np.full(50_000, -np.log(20.0)))
    other = Probe("others", x[:300], log_density[:300])
    nowhere = lambda x: np.full(len(x), -np.inf)  # noqa: E731
    found, (share,) = suspects([probe, other], nowhere, 0.0, rng, SETTINGS)
    assert len(found) <= SETTINGS.particles
    drawn = found[: SETTINGS.particles // 2]
    assert abs((drawn > 0).mean() - 0.8) < 0.02  # nearly by stratified draws
    assert abs(share.value - 1.0) < 4 * share.se
    highest = x[:300][np.argsort(-log_density[:300])[: SETTINGS.particles // 4]]
    assert np.isin(highest, found).all()


def test_a_fit_that_is_nowhere_finite_is_all_outside():
    probe = Probe("any", np.zeros((3, 1)), np.zeros(3))
    assert outside(probe, lambda x: np.full(3, np.nan), 0.0, SETTINGS).all()
    assert not outside(probe, lambda x: np.full(3, -np.log(9.9)), 0.0, SETTINGS).any()
    assert outside(probe, lambda x: np.full(3, -np.log(10.1)), 0.0, SETTINGS).all()


def test_two_kinds_of_draws_agree_about_many_modes():
    """A share is that of all modes, not of each."""
    angles = 2 * np.pi * np.arange(30) / 30
    means = np.concatenate([np.zeros((1, 2)), 20.0 * np.stack([np.cos(angles), np.sin(angles)], 1)])
    weights = np.array([0.7, *np.full(30, 0.01)])
    mixture = weights, means, np.ones(31)
    _, shares = looked(normals(*mixture), standard_fit(2), np.log(0.7), prior_of(mixture))
    for name in (LADDER, PRIOR):
        assert abs(shares[name].value - 0.3 / 0.7) < 3 * shares[name].se
    assert np.isclose(weights.sum(), 1.0)


def test_infinite_draws_of_the_prior_have_no_mass():
    # a gamma prior of a tiny shape draws 0, which is -inf on the log scale
    rng = np.random.default_rng(0)
    fit, normal = standard_fit(2), normals([1.0], [[0.0, 0.0]], [1.0])
    x = np.array([[0.5, 0.5], [0.0, -np.inf], [-np.inf, 0.0], [np.nan, 0.0]])
    prior = Prior(x, np.array([0.0, np.inf, -np.inf, np.nan]))
    probes = explore(normal, fit, prior, rng, SETTINGS)
    points, shares = suspects(probes, log_prob_of(fit), 0.0, rng, SETTINGS)
    assert points.shape == (0, 2)
    assert shares == ()


def test_suspects_in_single_precision():
    """Their weights sum to 1 as closely as NumPy wants."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3_000, 2)).astype(np.float32)
    log_density = (10.0 * rng.standard_normal(3_000)).astype(np.float32)
    probe = Probe("drawn", x, log_density, np.zeros(3_000, np.float32))
    found, _ = suspects([probe], lambda x: np.full(len(x), -np.inf, np.float32), 0.0, rng, SETTINGS)
    assert len(found)
