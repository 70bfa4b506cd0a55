"""Fits that are killed at any moment go on from their checkpoint, and end as if nothing had been."""

import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from numpyro_flows import FlowVI, fit_density, fit_latent_ode
from tests.checkpoint_fits import neck

KILLS = 10


def fit(name: str, *path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.checkpoint_fits", name, *map(str, path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def killed_after_a_round(name: str, path: Path, delay: float) -> None:
    """Killed `delay` seconds after the fit has written a round that was not there before."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    with fit(name, path) as process:
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
    for delay in rng.uniform(0.0, 0.3, size=KILLS):
        killed_after_a_round(name, path, delay)
    continued, whole = (fit(name, *paths).communicate()[0] for paths in ((path,), ()))
    assert len(whole.split()[0]) == 64
    assert continued == whole


def test_wrong_arguments(tmp_path):
    data = np.random.default_rng(0).normal(size=(20, 1))
    for wrong in ({"checkpoint": 3}, {"callback": "print"}):
        (name,) = wrong
        with pytest.raises(TypeError, match=f"{name} expected"):
            FlowVI(neck, **wrong)
        with pytest.raises(TypeError, match=f"{name} expected"):
            fit_density(jax.random.key(0), data, **wrong)
        with pytest.raises(TypeError, match=f"{name} expected"):
            fit_latent_ode(jax.random.key(0), data, data[..., None], **wrong)
