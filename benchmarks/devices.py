"""Seconds and memory of fits against particles, dimensions, rows and the number of devices.

    uv run --group benchmarks python -m benchmarks.devices [--devices 1 2 4 8] [--forced]

Each case runs in its own process. `FlowVI` takes 200 training steps on a Bayesian regression, from `N(0, I)`; it splits
the particles (`mesh=`) or the rows of the data (placed by the user). `fit_density` takes 200 steps on the same rows.
`--forced` makes devices of the host's cores. It shows that the benchmark runs, but says nothing about speed, because
all devices share the cores.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.results import save
from numpyro_flows import FlowTraining, FlowVI, FlowVISettings, fit_density

STEPS, CHUNK = 200, 50
FITS = ("FlowVI", "FlowVI, rows placed", "fit_density")


class Case(NamedTuple):
    """One fit; `particles` are the rows of a minibatch for `fit_density`."""

    fit: str
    particles: int
    dim: int
    rows: int
    devices: int


def regression(x: Any, y: Any) -> None:
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.StudentT(4.0, x @ slopes, 1.0), obs=y)


def measured(case: Case) -> dict[str, Any]:
    """Seconds and memory of a case in this process."""
    if jax.device_count() < case.devices:
        raise SystemExit(f"expected {case.devices} devices, got {jax.device_count()}: give other --devices")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(case.rows, case.dim)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()[: case.devices]), ("device",))
    if case.fit == "fit_density":
        options: dict[str, Any] = {"num_steps": STEPS, "batch_size": case.particles, "mesh": mesh}
        fitted = fit_density(jax.random.key(0), x, patience=STEPS, progress_bar=False, **options).fit
        assert fitted is not None
        seconds = {
            "compile": fitted.seconds["compilation"],
            "step": fitted.seconds["training"] / STEPS,
            "verdict": None,
        }
    else:
        data: tuple[Any, Any] = (x, (x.sum(1) + rng.standard_t(4.0, size=case.rows)).astype(np.float32))
        if case.fit == "FlowVI, rows placed":
            data = tuple(jax.device_put(array, NamedSharding(mesh, PartitionSpec("device"))) for array in data)
            mesh = None
        settings = FlowVISettings(
            num_steps=STEPS, first_round=STEPS, chunk=CHUNK, num_particles=case.particles, learning_rate=1e-4
        )
        stages = (FlowTraining(),)
        fit = FlowVI(regression, stages=stages, settings=settings, fallback=None, progress_bar=False, mesh=mesh)
        spent = fit.run(jax.random.key(0), *data).seconds
        seconds = {"compile": spent["compilation"], "step": spent["flow"] / STEPS, "verdict": spent["certificate"]}
    memory = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    return {
        **case._asdict(),
        "device": jax.devices()[0].device_kind
        + (" (forced)" if "host_platform" in os.environ.get("XLA_FLAGS", "") else ""),
        **{f"seconds_{name}": "" if value is None else f"{value:.4g}" for name, value in seconds.items()},
        "peak_mib_of_a_device": round(max(memory) / 2**20, 1) if memory else "",  # JAX does not count the host's
    }


def in_a_process(case: Case, forced: bool) -> dict[str, Any]:
    environment = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
    if forced:
        environment = {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={case.devices}",
            "JAX_PLATFORMS": "cpu",
        }
    command = [sys.executable, "-m", "benchmarks.devices", "--case", json.dumps(case)]
    run = subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def cases(arguments: argparse.Namespace) -> list[Case]:
    """The first number of each list is the base; every other case changes one of them."""
    base = Case("", arguments.particles[0], arguments.dims[0], arguments.rows[0], 1)
    shapes = [
        base,
        *(base._replace(particles=num) for num in arguments.particles[1:]),
        *(base._replace(dim=num) for num in arguments.dims[1:]),
        *(base._replace(rows=num) for num in arguments.rows[1:]),
    ]
    return [shape._replace(fit=fit, devices=num) for fit in FITS for shape in shapes for num in arguments.devices]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--particles", type=int, nargs="+", default=[1024, 128, 8192, 65_536])
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 4, 64])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000, 100_000])
    parser.add_argument("--forced", action="store_true", help="devices made of the host's cores")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        warnings.filterwarnings("ignore", "the fit is not certified")  # after so few steps
        print(json.dumps(measured(Case(*json.loads(arguments.case)))))
        return
    save("devices", [in_a_process(case, arguments.forced) for case in cases(arguments)])


if __name__ == "__main__":
    main()
