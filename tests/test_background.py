"""Fits in the background: the same posterior, ended on request, with errors and warnings where they are waited for."""

import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import CancelledError
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_flows import AutoFlow, BackgroundFit, FlowTraining, FlowVI, GaussianStart, flows
from numpyro_flows.training.reasons import Reason

KEY = jax.random.key(0)
Y = jnp.array([1.0, 2.5, 0.5])
STAGES = GaussianStart(), FlowTraining()


def normal(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 2)), 1), obs=y)


def banana():
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(jnp.square(jnp.asarray(x)), 0.1))


def endless(**options) -> FlowVI:
    """A fit whose flow trains for hours unless it is ended."""
    guide = AutoFlow(banana, partial(flows.realnvp, num_layers=1, hidden=(4,)))
    return FlowVI(banana, guide, stages=STAGES, fallback=None, num_steps=1_000_000, target_ess=1.0, **options)


def ended(handle: BackgroundFit):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the fit is not certified", UserWarning)
        return handle.result(120)


def test_the_posterior_is_that_of_run(capfd):
    """Also of two fits at once, and without a progress bar."""
    handles = [FlowVI(normal).run_in_background(jax.random.key(seed), Y + seed) for seed in range(2)]
    for seed, handle in enumerate(handles):
        posterior = handle.result()
        assert handle.done()
        assert not handle.cancel()
        assert handle.progress is None  # a Gaussian is enough
        assert repr(handle).startswith("BackgroundFit(CERTIFIED\n")
        assert posterior is handle.result(timeout=0)
        expected = FlowVI(normal, progress_bar=False).run(jax.random.key(seed), Y + seed)
        np.testing.assert_array_equal(posterior.sample(KEY, 10)["mu"], expected.sample(KEY, 10)["mu"])
    assert capfd.readouterr().err == ""


def test_precision_is_that_of_the_thread_that_asks():
    with jax.enable_x64(True):
        handle = FlowVI(normal).run_in_background(KEY, np.asarray(Y, float))
    leaves = jax.tree.leaves(handle.result().bijection)
    assert {leaf.dtype for leaf in leaves if hasattr(leaf, "dtype")} == {np.dtype("float64")}


def test_errors_come_from_result():
    with pytest.raises(TypeError, match="rng_key expected a JAX random key, got 0"):
        FlowVI(normal).run_in_background(0, Y)  # pyright: ignore[reportArgumentType]
    handle = FlowVI(normal).run_in_background(KEY, Y * jnp.nan)
    for _ in range(2):
        with pytest.raises(ValueError, match="observed values that are finite"):
            handle.result()
    assert handle.done()
    assert repr(handle).startswith("BackgroundFit(ValueError(")


def test_cancelled_in_training():
    """After the first round, and before the first."""
    first_round = threading.Event()
    seen = []

    def callback(progress):
        seen.append(progress)
        first_round.set()

    handle = endless(callback=callback).run_in_background(KEY)
    assert repr(handle) == "BackgroundFit(running)"
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    assert first_round.wait(120)
    assert not handle.done()
    assert handle.progress is not None
    assert handle.progress.figures.keys() == {"ess", "khat", "elbo"}
    assert repr(handle).startswith("BackgroundFit(running: step ")
    assert handle.cancel()
    posterior = ended(handle)
    assert posterior.reason is Reason.INTERRUPTED
    assert posterior.certified or "training was interrupted" in posterior.why
    assert posterior.losses.size < 100_000
    assert posterior.ess > seen[0].figures["ess"] - 0.2  # the best so far
    assert posterior.sample(KEY, 5)["x"].shape == (5,)


def test_the_warning_comes_from_result_and_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = FlowVI(banana, stages=STAGES[:1], fallback=None).run_in_background(KEY)
        while not handle.done():
            time.sleep(0.01)
    with pytest.warns(UserWarning, match="the fit is not certified: ") as caught:
        posterior = handle.result()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert handle.result() is posterior


def test_cancelled_in_a_stage_without_training():
    started = threading.Event()

    def slow_stage(context, fit):
        fit = GaussianStart()(context, fit)
        started.set()
        while True:  # like a stage of many evaluations
            context.density(fit.loc[None])
            time.sleep(0.01)

    handle = FlowVI(normal, stages=[GaussianStart(), slow_stage]).run_in_background(KEY, Y)
    assert started.wait(120)
    handle.cancel()
    posterior = handle.result(120)
    assert posterior.certified  # the Gaussian of the first stage
    assert posterior.reason is Reason.INTERRUPTED


def test_cancelled_before_there_is_a_result():
    gate = threading.Event()

    def waiting(y):
        assert gate.wait(120)
        normal(y)

    handle = FlowVI(waiting).run_in_background(KEY, Y)
    assert handle.cancel()
    gate.set()
    with pytest.raises(CancelledError, match="before it had a result"):
        handle.result(120)
    assert handle.done()


@pytest.mark.slow
def test_a_callback_still_ends_the_fit():
    posterior = ended(endless(callback=lambda progress: True).run_in_background(KEY))
    assert posterior.reason is Reason.CALLBACK


@pytest.mark.slow
def test_a_checkpoint_of_another_thread(tmp_path):
    """Signals belong to the main thread; the file is written all the same, and a fit continues from it."""
    path, round_over = tmp_path / "fit", threading.Event()
    handle = endless(checkpoint=path, callback=lambda progress: round_over.set()).run_in_background(KEY)
    assert round_over.wait(120)
    handle.cancel()
    steps = ended(handle).losses.size
    again = endless(checkpoint=path, callback=lambda progress: True).run_in_background(KEY)
    assert ended(again).losses.size > steps


EXIT = """
import jax, time
from tests.test_background import KEY, endless
import threading
started = threading.Event()
handle = endless(callback=lambda progress: started.set()).run_in_background(KEY)
{wait}
print("main is over", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["", "assert started.wait(120)"], ids=["at once", "in training"])
def test_python_exits_while_a_fit_runs(wait):
    done = subprocess.run([sys.executable, "-c", EXIT.format(wait=wait)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "main is over\n", "")
