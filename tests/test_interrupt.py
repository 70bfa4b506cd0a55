"""Ctrl-C returns the best that there is by then; it raises where there is nothing."""

import itertools
import signal
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_flows import FlowVI
from numpyro_flows.bijections import Affine
from numpyro_flows.inference.certificate import certify
from numpyro_flows.inference.compiled import FlowFunctions
from numpyro_flows.inference.coordinates import Coordinates
from numpyro_flows.inference.flow_training import FlowTask, train_flow
from numpyro_flows.inference.gaussian import fit_gaussian
from numpyro_flows.inference.judge import judge
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.stages import Fit
from numpyro_flows.inference.survey import Survey, survey_around
from numpyro_flows.training.clock import Clock
from numpyro_flows.training.seeds import Seeds
from numpyro_flows.training.steps import TrainState
from numpyro_flows.training.watch import Watch
from tests.densities import gaussian_fit, no_prior

SETTINGS = FlowVISettings()

UNSEARCHED = "interrupted before the search"


@pytest.fixture(autouse=True)
def python_s_own_handler():
    """A shell starts what runs in its background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupting:
    """A function that Ctrl-C interrupts at its `calls`, counted from 0."""

    def __init__(self, function, *calls):
        self.function = function
        self.calls = calls
        self.count = itertools.count()

    def __call__(self, *args):
        if next(self.count) in self.calls:
            signal.raise_signal(signal.SIGINT)
        return self.function(*args)

    def wait(self):
        """As a function compiled in the background has it."""


def density(x):
    return -0.5 * (x**2).sum(1), -x


def num_calls(function, *args):
    """How often `function` evaluates the density."""
    counting = Interrupting(density)
    function(counting, *args)
    return next(counting.count)


def survey(density):
    rng = np.random.default_rng(0)
    gaussian = fit_gaussian(density, rng, np.ones((4, 2)), SETTINGS)
    return survey_around(density, rng, gaussian, no_prior(2), Coordinates.plain(2), SETTINGS)


def test_in_the_gaussian_stage():
    """In its search, a Gaussian is there; in Newton's method none; a second Ctrl-C is obeyed."""
    last = num_calls(survey) - 1
    gaussian, draws, found = survey(Interrupting(density, last))
    assert found.left_out.startswith(UNSEARCHED)
    certificate = judge(draws, found, SETTINGS)
    assert not certificate.certified
    assert certificate.why.startswith(UNSEARCHED)
    np.testing.assert_allclose(gaussian.scale @ gaussian.scale.T, np.eye(2), atol=0.1)
    with pytest.raises(KeyboardInterrupt):
        survey(Interrupting(density, 0))
    with pytest.raises(KeyboardInterrupt):
        survey(Interrupting(density, last, last + 1))


def train_stage(interrupt_train=(), interrupt_draw=(), interrupt_make=()) -> Any:
    """The flow stage on `N(0, 1)` with compiled functions in plain NumPy: each chunk halves the distance of `loc`."""
    bijection = Affine(jnp.ones(1) * 4.0)
    arrays, static = eqx.partition(bijection, eqx.is_array)

    def train(state, fixed, seeds, rates, forward):
        params = eqx.tree_at(lambda b: b.loc, state.params, state.params.loc / 2)
        return TrainState(params, state.optimizer), np.ones(len(rates)), np.zeros(())

    def draw(arrays, seed):
        u = np.random.default_rng(seed).standard_normal((SETTINGS.block, 1))
        x = u + np.asarray(arrays.loc)
        log_p = -0.5 * x[:, 0] ** 2
        return x, log_p, log_p + 0.5 * u[:, 0] ** 2

    functions = FlowFunctions(
        begin=lambda params: TrainState(params, ()),  # pyright: ignore[reportArgumentType]
        make=Interrupting(lambda loc, scale, seed: arrays, *interrupt_make),  # pyright: ignore[reportArgumentType]
        train=Interrupting(train, *interrupt_train),  # pyright: ignore[reportArgumentType]
        draw=Interrupting(draw, *interrupt_draw),  # pyright: ignore[reportArgumentType]
        log_prob=lambda arrays, x: -0.5 * (x[:, 0] - np.asarray(arrays.loc)) ** 2,  # pyright: ignore[reportArgumentType]
        draw_coarsely=None,
        static=static,
    )
    log_weights = np.asarray(draw(arrays, 0)[2], np.float64)
    start = Fit(np.full(1, 4.0), np.eye(1), bijection, certify(log_weights), log_weights, Survey())
    gaussian = gaussian_fit(start.loc, start.scale)
    task = FlowTask(SETTINGS, functions, start.survey, Seeds((0,)), Clock(), density, gaussian)
    return train_flow(task, start, Watch())


BLOCKS = SETTINGS.certificate_draws // SETTINGS.block  # calls of one verdict
CHUNKS = SETTINGS.first_round // SETTINGS.chunk  # of the first round's training


@pytest.mark.parametrize(
    ("where", "loc"),
    [
        ({"interrupt_train": [1]}, 2.0),  # after one chunk
        ({"interrupt_draw": [3]}, 4.0 / 2**CHUNKS),  # in the first verdict: what was trained is judged all the same
        ({"interrupt_draw": [3, 4]}, 4.0),  # twice
    ],
)
def test_in_the_flow_stage(where, loc):
    fit = train_stage(**where)
    np.testing.assert_allclose(fit.bijection.loc, loc)
    if not fit.certificate.certified:
        assert "training was interrupted" in fit.certificate.why
    assert fit.certificate.elbo == pytest.approx(-(loc**2) / 2, abs=0.2)


def test_of_a_whole_fit():
    """In its search the Gaussian comes back, not certified; while the model is traced there is nothing."""

    def model():
        numpyro.sample("x", dist.Normal(0, 1))
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        FlowVI(model, progress_bar=False).run(jax.random.key(0))
