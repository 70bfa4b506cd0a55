"""Fits that are killed at any moment go on from their checkpoint, and end as if nothing had been."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from numpyro_flows import (
    AutoFlow,
    FlowTraining,
    FlowVI,
    ForwardKL,
    GaussianStart,
    fit_density,
    fit_latent_ode,
)
from numpyro_flows.inference.stages import Fit, around
from tests.checkpoint_fits import flow_vi, neck, small

KILLS = 10


def fit(name: str, folder: Path, *path: Path) -> subprocess.Popen[str]:
    """Compiled once, by the first of these processes."""
    command = [sys.executable, "-m", "tests.checkpoint_fits", name, *map(str, path)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | cache)


def killed_after_a_round(name: str, path: Path, delay: float) -> None:
    """Killed `delay` seconds after the fit has written a round that was not there before."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    with fit(name, path.parent / "cache", path) as process:
        while not path.exists() or path.stat().st_mtime_ns == before:
            assert process.poll() is None, "the fit was over before it could be killed"
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow_vi", "density", "latent_ode"])
def test_killed_ten_times(name, tmp_path):
    path = tmp_path / "fit.ckpt"
    rng = np.random.default_rng(0)
    for delay in rng.uniform(0.0, 0.2, size=KILLS):
        killed_after_a_round(name, path, delay)
    continued, whole = (fit(name, tmp_path / "cache", *paths).communicate()[0] for paths in ((path,), ()))
    assert len(whole.split()[0]) == 64
    assert continued == whole


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The checkpoint of a fit that was ended after a round."""
    path = tmp_path_factory.mktemp("begun") / "fit.ckpt"
    with pytest.warns(UserWarning, match="stopped by the callback"):
        flow_vi(checkpoint=path, callback=lambda progress: True)
    return path


def other_start(context, fit):
    return around(context, np.full(2, 0.1), np.eye(2))


def unsearched(context, fit):
    return Fit.before(context.target.dim)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"stages": (other_start, FlowTraining())}, "model, data or flow, another start"),
        ({"stages": (unsearched, FlowTraining())}, "model, data or flow, another start"),
        ({"stages": (GaussianStart(), FlowTraining(ForwardKL()))}, "model, data or flow"),
        ({"guide": AutoFlow(neck, lambda key, dim: small(jax.random.fold_in(key, 1), dim))}, "model, data or flow"),
        ({"learning_rate": 2e-2}, "setting"),
        ({"key": jax.random.key(1)}, "key, another model, data or flow, another start"),
    ],
)
def test_another_fit_is_refused(begun, other, name):
    with pytest.raises(ValueError, match=f"of a fit with another {name}: remove the file"):
        flow_vi(checkpoint=begun, **other)


@pytest.mark.slow
def test_numbers_of_other_types_are_the_same_settings(begun):
    with pytest.warns(UserWarning, match="stopped by the callback"):
        flow_vi(checkpoint=begun, callback=lambda progress: True, learning_rate=np.float64(1e-2))


def test_one_training_has_one_file(tmp_path):
    with pytest.raises(ValueError, match="checkpoint expected one FlowTraining"):
        FlowVI(neck, stages=[FlowTraining(), FlowTraining()], checkpoint=tmp_path / "fit.ckpt")


def test_a_path_that_cannot_be_a_file(tmp_path):
    for path in (tmp_path, tmp_path / "no folder" / "fit.ckpt", ""):
        with pytest.raises(ValueError, match="checkpoint expected the path of a file in an existing folder"):
            FlowVI(neck, checkpoint=path)


def test_wrong_arguments(tmp_path):
    data = np.random.default_rng(0).normal(size=(20, 1))
    wrong: Any
    for name, value in (("checkpoint", 3), ("callback", "print")):
        wrong = {name: value}
        with pytest.raises(TypeError, match=f"{name} expected"):
            FlowVI(neck, **wrong)
        with pytest.raises(TypeError, match=f"{name} expected"):
            fit_density(jax.random.key(0), data, **wrong)
        with pytest.raises(TypeError, match=f"{name} expected"):
            fit_latent_ode(jax.random.key(0), data, data[..., None], **wrong)
