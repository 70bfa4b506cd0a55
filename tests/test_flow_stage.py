"""Which round of training is kept, and when training ends: the compiled parts are scripts, in NumPy."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.bijections import Affine
from numpyro_flows.inference.certificate import certify
from numpyro_flows.inference.compiled import FlowFunctions
from numpyro_flows.inference.flow_training import FlowTask, train_flow
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.stages import Fit
from numpyro_flows.inference.survey import Survey
from numpyro_flows.training.ahead import Ahead
from numpyro_flows.training.clock import Clock
from numpyro_flows.training.seeds import Seeds
from numpyro_flows.training.steps import TrainState
from numpyro_flows.training.watch import Watch
from tests.densities import normals, standard_fit

SETTINGS = FlowVISettings()


class Script(Ahead):
    """A compiled function's stand-in."""

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def wait(self) -> None:
        pass


class Scripted:
    """A stage whose flow has one parameter, the number of the round that trained it; `rounds` are its log weights.

    Attributes:
        began_from: the parameter that each round began from.
        peaks: highest learning rate of each round.
    """

    def __init__(self, *rounds: np.ndarray, error: BaseException | None = None, chunks: int = 10**9):
        self.rounds, self.error, self.chunks = rounds, error, chunks
        self.began_from: list[int] = []
        self.peaks: list[float] = []
        self.num_drawn = 0
        self.in_round = False

    def train(self, state, fixed, seeds, rates, forward):
        if self.chunks == 0 and self.error is not None:
            raise self.error
        self.chunks -= 1
        if not self.in_round:
            self.in_round = True
            self.began_from.append(int(jax.tree.leaves(state.params)[0][0]))
            self.peaks.append(0.0)
        self.peaks[-1] = max(self.peaks[-1], float(rates.max()))
        number = len(self.began_from)
        params = jax.tree.map(lambda leaf: np.full_like(leaf, number), state.params)
        return state._replace(params=params), np.zeros(len(rates)), np.zeros((), int)

    def draw(self, arrays, seed):
        self.in_round = False
        number = int(jax.tree.leaves(arrays)[0][0])
        log_weight = self.rounds[number - 1].reshape(-1, SETTINGS.block)[self.num_drawn % NUM_BLOCKS]
        self.num_drawn += 1
        return np.zeros((SETTINGS.block, 1)), log_weight, log_weight

    def run(self, start: np.ndarray) -> Any:
        arrays, static = eqx.partition(Affine(jnp.zeros(1)), eqx.is_array)
        functions = FlowFunctions(
            begin=Script(lambda params: TrainState(params, ())),
            make=Script(lambda *args: arrays),
            train=Script(self.train),
            draw=Script(self.draw),
            log_prob=Script(lambda arrays, x: np.zeros(len(x))),
            draw_coarsely=None,
            static=static,
        )
        fit = Fit(np.zeros(1), np.eye(1), Affine(jnp.zeros(1)), certify(start), start, Survey())
        density, gaussian = normals([1.0], [[0.0]], [1.0]), standard_fit(1)
        task = FlowTask(SETTINGS, functions, fit.survey, Seeds((0,)), Clock(), density, gaussian)
        return train_flow(task, fit, Watch())


NUM_BLOCKS = SETTINGS.certificate_draws // SETTINGS.block


def log_weights(spread: float, *, elbo: float = 0.0, tail: float = 0.0) -> np.ndarray:
    """Lognormal weights, of an ESS of `exp(-spread^2)`; `tail` times a Pareto tail of shape 0.9 added to them."""
    rng = np.random.default_rng(0)
    normal = spread * rng.normal(size=SETTINGS.certificate_draws)
    return np.log(np.exp(normal) + tail * rng.pareto(1 / 0.9, size=normal.size)) + elbo


BAD, GOOD = log_weights(1.0, elbo=-1.0), log_weights(0.25)


def test_training_ends_with_a_round_that_is_good_enough():
    script = Scripted(GOOD)
    fit = script.run(BAD)
    assert fit.certificate._replace(checks=()) == certify(GOOD)
    np.testing.assert_array_equal(fit.log_weights, GOOD)
    assert fit.losses.shape == (SETTINGS.first_round,)
    assert fit.bijection.loc == 1  # the first round's


def test_a_certified_round_replaces_one_that_is_not():
    """Also where its ESS and ELBO are a little lower."""
    heavy, safe = log_weights(0.1, tail=3e-3), log_weights(0.25, elbo=-0.01)
    before, after = certify(heavy), certify(safe)
    assert not before.certified
    assert after.certified
    assert before.ess > after.ess
    assert before.elbo > after.elbo
    fit = Scripted(heavy, safe).run(BAD)
    assert fit.certificate.certified
    assert fit.bijection.loc == 2


def test_a_worse_round_is_undone():
    """The next one begins where it began, at half the rate."""
    script = Scripted(log_weights(1.0, elbo=-0.5), log_weights(1.5, elbo=-3.0), GOOD)
    fit = script.run(BAD)
    assert fit.certificate._replace(checks=()) == certify(GOOD)
    assert script.began_from == [0, 1, 1]
    assert script.peaks[2] == pytest.approx(script.peaks[1] / 2, rel=0.01)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (jax.errors.JaxRuntimeError("out of memory"), "stopped by an error: out of memory"),
    ],
)
def test_an_early_end_keeps_what_was_trained_and_says_why(error, reason):
    fit = Scripted(log_weights(1.0, elbo=-0.5), error=error, chunks=2).run(BAD)
    assert fit.bijection.loc == 1
    assert fit.losses.shape == (2 * SETTINGS.chunk,)
    assert not fit.certificate.certified
    assert f"after {2 * SETTINGS.chunk} steps of training; training was {reason}" in fit.certificate.why


def test_a_failure_before_the_first_step_keeps_the_start():
    fit = Scripted(BAD, error=jax.errors.JaxRuntimeError("out of memory"), chunks=0).run(BAD)
    assert fit.losses.shape == (0,)
    assert not fit.certificate.certified
    assert "stopped by an error: out of memory" in fit.certificate.why
