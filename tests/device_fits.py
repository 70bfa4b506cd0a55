"""Fits on several devices, in a process of their own: `python -m tests.device_fits OUT NAME [RANK PORT]`.

JAX has to be told of the devices before it starts. With a rank the process is one of two, of two devices each; else it
has eight. Results go to the file OUT: of each fit `FIT:one` by one device, and `FIT:WHERE` by others.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from numpyro_flows import AutoFlow, FlowTraining, FlowVI, FlowVISettings, bijections, fit_density, flows
from numpyro_flows.inference.host_density import HostDensity
from numpyro_flows.inference.target import Target
from numpyro_flows.training.ahead import Ahead
from numpyro_flows.training.devices import Devices

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 2))
Y = X.sum(1) + RNG.normal(size=48)
POINTS = RNG.normal(size=(100, 3))
# neither 3 nor 8 divides 20 particles, 500 draws and 60 points
SETTINGS = FlowVISettings(num_steps=10, chunk=10, first_round=10, num_particles=20, block=500, certificate_draws=1_000)
BATCH = 60


def regression(x: Any, y: Any) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(0, 1))
    slopes = numpyro.sample("slopes", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(intercept + x @ slopes, 1), obs=y)


def bent() -> None:
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("z", dist.Normal(x**2, 0.5))


def shift(key: Any, dim: int, cond_dim: int | None = None) -> bijections.Affine:
    """A flow that compiles fast."""
    return bijections.Affine(np.zeros(dim))


couplings = partial(flows.realnvp, num_layers=2, hidden=(4,))


def density(mesh: Mesh | None) -> Iterator[Any]:
    with ThreadPoolExecutor() as pool:
        target = Target(regression, jax.random.key(0), (X, Y))
        yield from HostDensity(pool, target, BATCH, BATCH, Devices.of(mesh))(POINTS)


def gaussian(mesh: Mesh | None, *data: Any) -> Iterator[Any]:
    posterior = FlowVI(regression, mesh=mesh, progress_bar=False).run(jax.random.key(0), *(data or (X, Y)))
    assert posterior.certified
    yield posterior.log_evidence
    yield from posterior.sample(jax.random.key(1), 1_000).values()


def placed(mesh: Mesh) -> Iterator[Any]:
    """The rows of the data are on the devices, and there is no `mesh=`."""
    by_rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    data = (jax.make_array_from_callback(a.shape, by_rows, lambda index, a=a: a[index]) for a in (X, Y))
    return gaussian(None, *data)


def flow(mesh: Mesh | None, recipe: Any = shift) -> Iterator[Any]:
    """One chunk of training, and the verdict on it."""
    options: dict[str, Any] = {"stages": (FlowTraining(),), "settings": SETTINGS, "fallback": None, "mesh": mesh}
    posterior = FlowVI(bent, AutoFlow(bent, recipe), progress_bar=False, **options).run(jax.random.key(0))
    yield from (posterior.losses, posterior.log_weights, posterior.khat, posterior.ess)


def rows(mesh: Mesh | None, recipe: Any = shift) -> Iterator[Any]:
    options: dict[str, Any] = {"flow": recipe, "num_steps": 10, "batch_size": 20, "progress_bar": False, "mesh": mesh}
    fitted = fit_density(jax.random.key(0), POINTS, **options)
    assert fitted.fit is not None
    yield from (fitted.fit.losses, fitted.fit.validation, fitted.log_prob(POINTS))


def halves() -> Iterator[Any]:
    """Of one function, compiled for either half of the devices: where it runs, and what it gives."""
    with ThreadPoolExecutor() as pool:
        for half in (jax.devices()[:4], jax.devices()[4:]):
            doubled = Ahead(pool, lambda x: 2.0 * x, np.ones(3), mesh=Mesh(np.array(half), ("device",)))(np.ones(3))
            yield sorted(device.id for device in doubled.devices())
            yield doubled


def quick() -> dict[str, Iterator[Any]]:
    mesh = jax.make_mesh((8,), ("device",))
    fits = (density, gaussian, flow, rows)
    results = {f"{fit.__name__}:{where}": fit(on) for fit in fits for where, on in (("one", None), ("eight", mesh))}
    part = jax.jit(Devices.of(mesh).sharded)(np.zeros((64, 3))).sharding.shard_shape((64, 3))
    return results | {"gaussian:placed": placed(mesh), "halves:eight": halves(), "part:eight": iter(part)}


def three() -> dict[str, Iterator[Any]]:
    """Couplings, on some of the devices."""
    mesh = Mesh(np.array(jax.devices()[:3]), ("particle",))
    return {
        f"{fit.__name__}:{where}": fit(on, couplings)
        for fit in (flow, rows)
        for where, on in (("one", None), ("three", mesh))
    }


def refused(mesh: Mesh) -> Iterator[str]:
    try:
        FlowVI(bent, mesh=mesh, checkpoint="fit.ckpt").run(jax.random.key(0))
    except ValueError as error:
        yield str(error)


def processes() -> dict[str, Iterator[Any]]:
    mesh = jax.make_mesh((4,), ("device",))
    results = {f"{fit.__name__}:four": fit(mesh) for fit in (gaussian, flow, rows)}
    return results | {"gaussian:placed": placed(mesh), "refused:four": refused(mesh)}


def main(out: str, name: str, *process: str) -> None:
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={2 if process else 8}"
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    if process:
        rank, port = process
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the fit is not certified")  # after ten steps
        results = {"quick": quick, "three": three, "processes": processes}[name]()
        arrays = {f"{fit}:{i}": np.asarray(a) for fit, found in results.items() for i, a in enumerate(found)}
    np.savez(out, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
