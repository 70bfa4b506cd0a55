"""The index by which tails fall, against those of known distributions."""

import numpy as np
import pytest

from numpyro_flows.inference.coordinates import Coordinates
from numpyro_flows.inference.exploration import Probe
from numpyro_flows.inference.heavy_tails import tails
from numpyro_flows.inference.settings import FlowVISettings
from tests.densities import gaussian_fit, normals

SETTINGS = FlowVISettings()
DIM = 4
ROTATION = np.linalg.qr(np.random.default_rng(1).normal(size=(DIM, DIM)))[0]


def with_gradient(log_p):
    """These rays need no gradient."""
    return lambda x: (log_p(x), np.zeros_like(x))


def student(x, df):
    """Of the log density of a Student-t what is not constant, in each coordinate."""
    return -0.5 * (df + 1) * np.log1p(x**2 / df)


def joint(x, df):
    return -0.5 * (df + x.shape[1]) * np.log1p((x**2).sum(1) / df)


def one_heavy(x, df):
    return student(x[:, 0], df) - 0.5 * (x[:, 1:] ** 2).sum(1)


def index(density, fit=None, probes=(), periodic=None, dim=DIM):
    fit = fit or gaussian_fit(np.zeros(dim), np.eye(dim))
    coordinates = Coordinates.plain(dim)
    if periodic is not None:
        coordinates = coordinates._replace(periodic=periodic)
    return tails(density, fit, probes, coordinates, np.random.default_rng(0), SETTINGS).tail_index


@pytest.mark.parametrize("df", [0.5, 1.0, 1.5, 1.9])
@pytest.mark.parametrize(
    "log_p",
    [joint, lambda x, df: student(x, df).sum(1), one_heavy],
    ids=["joint Student-t", "independent Student-t", "one of them only"],
)
@pytest.mark.parametrize("scale", [np.ones(DIM), np.diag([1.0, 0.5, 2.0, 0.2]) + 0.1 * np.tri(DIM)], ids=["1", "2"])
def test_the_index_is_the_degrees_of_freedom(df, log_p, scale):
    fit = gaussian_fit(np.full(DIM, 0.3), scale)
    assert index(with_gradient(lambda x: log_p(x, df)), fit) == pytest.approx(df, abs=0.05)


@pytest.mark.parametrize("df", [0.5, 1.5])
@pytest.mark.parametrize("log_p", [joint, one_heavy], ids=["joint", "one of them only"])
def test_along_no_axis(log_p, df):
    """Where particles show the direction."""
    density = with_gradient(lambda x: log_p(x @ ROTATION, df))
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(50, DIM)), 1e6 * ROTATION[:, :1].T])
    particles = Probe("tempered particles", x, density(x)[0], follows_posterior=True)
    assert index(density, probes=(particles,)) == pytest.approx(df, abs=0.1)


def test_rays_go_through_probes_that_follow_the_posterior_only():
    density = with_gradient(lambda x: one_heavy(x @ ROTATION, 1.5))
    x = 1e6 * ROTATION[:, :1].T
    assert index(density, probes=(Probe("others", x, density(x)[0]),)) > 50


@pytest.mark.parametrize(
    "log_p",
    [
        lambda x: -0.5 * (x**2).sum(1),
        lambda x: -np.sqrt(1 + x**2).sum(1),  # exponential on both sides
        lambda x: (x - np.logaddexp(0, 2 * x)).sum(1),  # half-Cauchy on the log scale
        lambda x: (x - np.exp(x)).sum(1),  # overflows far out
        lambda x: joint(x, 30.0),
    ],
    ids=["Gaussian", "exponential", "half-Cauchy of a log-scale", "Gumbel", "Student-t(30)"],
)
def test_ordinary_tails(log_p):
    assert index(with_gradient(log_p)) > 20


def test_a_gaussian_of_300_dimensions():
    fit = gaussian_fit(np.zeros(300), np.ones(300))
    assert index(normals([1.0], [np.zeros(300)], [1.0]), fit, dim=300) == np.inf


@pytest.mark.parametrize(
    "log_p",
    [
        lambda x: 0.0 * x[:, 0],  # flat in all
        lambda x: -0.5 * (x[:, 1:] ** 2).sum(1),  # flat in one coordinate
        lambda x: -np.logaddexp(0.0, -5.0 * x[:, 0]) - 0.5 * (x[:, 1:] ** 2).sum(1),  # a flat logit with only ones
        lambda x: -np.log1p(abs(x[:, 0])) - 0.5 * (x[:, 1:] ** 2).sum(1),  # 1 / x, whose integral is infinite
        lambda x: 0.1 * x[:, 0] - 0.5 * (x[:, 1:] ** 2).sum(1),  # rises
    ],
    ids=["flat", "one flat", "flat logit", "1 / x", "rising"],
)
def test_what_has_no_integral_has_no_index(log_p):
    assert index(with_gradient(log_p)) <= 0.01  # by 1 / (1 + x) in place of 1 / x it is a little off


def test_turning_coordinates_are_left_out():
    """The density of an angle repeats itself on the line: that is no tail."""
    density = with_gradient(lambda x: 0.01 * np.cos(x[:, 0]) - 0.5 * (x[:, 1:] ** 2).sum(1))
    turning = np.arange(DIM) == 0
    assert index(density) < 0.01
    assert index(density, periodic=turning) == np.inf
    assert index(with_gradient(lambda x: np.cos(x[:, 0])), periodic=np.array([True]), dim=1) == np.inf
    heavy = with_gradient(lambda x: np.cos(x[:, 0]) + student(x[:, 1:], 1.5).sum(1))
    assert index(heavy, periodic=turning) == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize(("lowest", "improper"), [(-130.0, False), (-40.0, True)])
def test_a_plateau_is_improper_unless_it_lies_too_deep(lowest, improper):
    """In float32 a simplex of four parts has one 130 nats below its bulk, where its arithmetic ends."""
    found = index(with_gradient(lambda x: np.maximum(-0.5 * (x**2).sum(1), lowest)), dim=3)
    assert (found <= 0.0) == improper
