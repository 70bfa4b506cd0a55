"""Several devices, forced on the host, give what one device gives, to rounding."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from numpyro_flows import FlowVI, fit_density
from tests.device_fits import POINTS
from tests.example_models import conjugate

TOLERANCE = 1e-10  # what ten steps in double precision, and sums over rows, make of rounding errors


def started(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.device_fits", *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})


def results(folder: Path, name: str) -> dict[str, np.ndarray]:
    with started(folder / "fits.npz", name) as process:
        assert process.wait() == 0
    return dict(np.load(folder / "fits.npz"))


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    return results(tmp_path_factory.mktemp("eight"), "quick")


def require_equal(fit: str, got: dict[str, np.ndarray], where: str, expected: dict[str, np.ndarray]) -> None:
    numbers = [name.rpartition(":")[2] for name in got if name.startswith(f"{fit}:{where}:")]
    assert numbers
    for number in numbers:
        values, of_one = got[f"{fit}:{where}:{number}"], expected[f"{fit}:one:{number}"]
        np.testing.assert_allclose(values, of_one, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("fit", "where"),
    [
        *(("density", "eight"), ("gaussian", "eight"), ("flow", "eight"), ("rows", "eight")),
        ("gaussian", "placed"),
    ],
)
def test_eight_devices_give_what_one_gives(on_eight, fit, where):
    """Also where eight do not divide the number of points, particles, draws or rows."""
    require_equal(fit, on_eight, where, on_eight)


def test_each_device_has_its_part(on_eight):
    assert (on_eight["part:eight:0"], on_eight["part:eight:1"]) == (64 / 8, 3)


def test_a_program_is_of_its_devices(on_eight):
    """One program on other devices is another one, although its text is the same."""
    for half, number in ((range(4), 0), (range(4, 8), 2)):
        np.testing.assert_array_equal(on_eight[f"halves:eight:{number}"], half)
        np.testing.assert_array_equal(on_eight[f"halves:eight:{number + 1}"], 2.0)


@pytest.mark.slow
def test_three_devices_train_couplings_as_one_does(tmp_path):
    fits = results(tmp_path, "three")
    require_equal("flow", fits, "three", fits)
    require_equal("rows", fits, "three", fits)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(on_eight, tmp_path):
    """Each with two devices: both end with one posterior, bit for bit, which is that of one process to rounding."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [started(tmp_path / f"{rank}.npz", "processes", rank, port) for rank in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)
    assert "checkpoint expected None" in str(first["refused:four:0"])
    for fit, where in (("gaussian", "four"), ("flow", "four"), ("rows", "four"), ("gaussian", "placed")):
        require_equal(fit, first, where, on_eight)


def test_a_mesh_of_one_device_changes_nothing():
    plain, meshed = (
        FlowVI(conjugate, mesh=mesh, progress_bar=False).run(jax.random.key(0))
        for mesh in (None, jax.make_mesh((1,), ("device",)))
    )
    np.testing.assert_array_equal(meshed.log_weights, plain.log_weights)
    np.testing.assert_array_equal(meshed.sample(jax.random.key(1), 10)["mu"], plain.sample(jax.random.key(1), 10)["mu"])


@pytest.mark.parametrize("name", ["FlowVI", "fit_density"])
def test_what_is_no_mesh_of_one_axis(name):
    def fit(mesh: Any) -> None:
        if name == "FlowVI":
            FlowVI(conjugate, mesh=mesh)
        else:
            fit_density(jax.random.key(0), POINTS, mesh=mesh)

    with pytest.raises(TypeError, match=r"mesh expected a jax.sharding.Mesh or None, got a list: write mesh=jax.make"):
        fit(jax.devices())
    with pytest.raises(ValueError, match=r"mesh expected one axis, got 2, \('a', 'b'\): write mesh="):
        fit(Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("a", "b")))
