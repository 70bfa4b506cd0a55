"""Fits with a checkpoint, each by itself in a process that can be killed: `python -m tests.checkpoint_fits NAME PATH`.

It prints a hash of all that the fit gave. Rounds are short and many, and a callback makes them last.
"""

import hashlib
import sys
import time
import warnings
from functools import partial
from typing import Any

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

from numpyro_flows import AutoFlow, FlowVI, FlowVISettings, fit_density, fit_latent_ode, flows

KEY = jax.random.key(0)
SETTINGS = FlowVISettings(num_steps=600, num_particles=16, chunk=10, first_round=20, longest_round=20, target_khat=0.01)


def neck() -> None:
    scale = numpyro.sample("scale", dist.LogNormal(0, 1))
    numpyro.sample("x", dist.Normal(0, scale))


small = partial(flows.realnvp, num_layers=2, hidden=(4,))


def flow_vi(key: Any = KEY, **options: Any) -> Any:
    options = {"guide": AutoFlow(neck, small), "settings": SETTINGS, "fallback": None, "progress_bar": False, **options}
    posterior = FlowVI(neck, **options).run(key)
    return posterior.bijection, posterior.losses, posterior.log_weights, tuple(posterior.certificate)


def density(**options: Any) -> Any:
    data = np.random.default_rng(0).integers(0, 5, size=(200, 2))
    flow = fit_density(
        KEY, data, flow=small, dequantize=True, num_steps=1500, patience=1500, progress_bar=False, **options
    )
    return flow.bijection, flow.fit.losses, flow.fit.validation, flow.fit.held_out


def latent_ode(**options: Any) -> Any:
    times = np.sort(np.random.default_rng(0).uniform(size=(20, 5)))
    fit = fit_latent_ode(
        KEY, times, np.sin(times)[..., None], latent_dim=2, flow=None, width=4, num_steps=2500, batch_size=5,
        progress_bar=False, **options,
    )  # fmt: skip
    return fit.latent_ode, fit.losses, fit.validation, fit.solver_error


def main(name: str, *path: str) -> None:
    options: dict[str, Any] = {"checkpoint": path[0], "callback": lambda progress: time.sleep(0.1)} if path else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no fit here is a good one
        result = {"flow_vi": flow_vi, "density": density, "latent_ode": latent_ode}[name](**options)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result) if not isinstance(leaf, str)]
    numbers = [leaf for leaf in leaves if leaf.dtype != object]
    print(hashlib.sha256(b"".join(leaf.tobytes() for leaf in numbers)).hexdigest(), sum(leaf.size for leaf in numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
