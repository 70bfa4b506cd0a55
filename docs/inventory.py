"""Addresses of NumPyro's, JAX's, ArviZ's and optax's documentation, so that the site links to it without a network.

    uv run --no-sync python docs/inventory.py

Writes `inventory.csv`: a name as users write it, and the address of its entry. The names are those of the installed
packages. The rules below say on which page a package documents what a module defines.
"""

import csv
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).parent / "inventory.csv"
NUMPYRO = "https://num.pyro.ai/en/stable"
JAX = "https://docs.jax.dev/en/latest"
OPTAX = "https://optax.readthedocs.io/en/latest/api"
ARVIZ = "https://python.arviz.org/projects"

# the module that users import from: pages by the module that defines a name, whose anchor is the name's full path
BY_ANCHOR = {
    "numpyro": {
        "numpyro.primitives": f"{NUMPYRO}/primitives.html",
        "numpyro.util": f"{NUMPYRO}/utilities.html",
    },
    "numpyro.infer": {
        "numpyro.infer.mcmc": f"{NUMPYRO}/mcmc.html",
        "numpyro.infer.hmc": f"{NUMPYRO}/mcmc.html",
        "numpyro.infer.hmc_gibbs": f"{NUMPYRO}/mcmc.html",
        "numpyro.infer.svi": f"{NUMPYRO}/svi.html",
        "numpyro.infer.elbo": f"{NUMPYRO}/svi.html",
        "numpyro.infer.util": f"{NUMPYRO}/utilities.html",
        "numpyro.infer.initialization": f"{NUMPYRO}/utilities.html",
    },
    "numpyro.infer.autoguide": {"numpyro.infer.autoguide": f"{NUMPYRO}/autoguide.html"},
    "numpyro.infer.reparam": {"numpyro.infer.reparam": f"{NUMPYRO}/reparam.html"},
    "numpyro.contrib.einstein": {"numpyro.contrib.einstein.steinvi": f"{NUMPYRO}/contrib.html"},
    "numpyro.contrib.module": {"numpyro.contrib.module": f"{NUMPYRO}/primitives.html"},
    "numpyro.handlers": {"numpyro.handlers": f"{NUMPYRO}/handlers.html"},
    "numpyro.optim": {"numpyro.optim": f"{NUMPYRO}/optimizers.html"},
    "numpyro.distributions": {"numpyro.distributions": f"{NUMPYRO}/distributions.html"},  # with all files in it
    "optax": {
        "optax._src.alias": f"{OPTAX}/optimizers.html",
        "optax._src.transform": f"{OPTAX}/transformations.html",
    },
}
# each name has a page of its own
BY_PAGE = dict.fromkeys(("jax", "jax.numpy", "jax.random", "jax.lax", "jax.tree"), f"{JAX}/_autosummary")
PARTS_OF_ARVIZ = ("base", "stats", "plots")
# pages without a rule
OTHERS = {
    "jax.sharding.Mesh": f"{JAX}/jax.sharding.html#jax.sharding.Mesh",
    "jax.sharding.NamedSharding": f"{JAX}/jax.sharding.html#jax.sharding.NamedSharding",
    "jax.distributed.initialize": f"{JAX}/_autosummary/jax.distributed.initialize.html",
    "numpyro.distributions.constraints": f"{NUMPYRO}/distributions.html#constraints",
    "numpyro.infer.MCMC.get_samples": f"{NUMPYRO}/mcmc.html#numpyro.infer.mcmc.MCMC.get_samples",
    "numpyro.infer.SVI.run": f"{NUMPYRO}/svi.html#numpyro.infer.svi.SVI.run",
}


def public(module: str) -> Iterator[tuple[str, object]]:
    """Classes and functions of a module by name."""
    for name, value in vars(importlib.import_module(module)).items():
        if not name.startswith("_") and callable(value):
            yield name, value


def rows() -> Iterator[tuple[str, str]]:
    for module, pages in BY_ANCHOR.items():
        for name, value in public(module):
            home = getattr(value, "__module__", "")
            page = pages.get(home) or (pages.get(module) if home.startswith(f"{module}.") else None)
            if page:
                anchor = f"{module}.{name}" if module == "optax" else f"{home}.{name}"
                yield f"{module}.{name}", f"{page}#{anchor}"
    for module, folder in BY_PAGE.items():
        for name, value in public(module):
            if getattr(value, "__module__", module).startswith("jax") and not isinstance(value, type):
                yield f"{module}.{name}", f"{folder}/{module}.{name}.html"
    for part in PARTS_OF_ARVIZ:
        for name, value in public(f"arviz_{part}"):
            home = getattr(value, "__module__", "") or ""
            if home.startswith(f"arviz_{part}") and inspect.isfunction(value):
                yield f"arviz.{name}", f"{ARVIZ}/{part}/en/stable/api/generated/arviz_{part}.{name}.html"
    yield from OTHERS.items()


def main() -> None:
    with FILE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "address"])
        writer.writerows(sorted(dict(rows()).items()))


if __name__ == "__main__":
    main()
