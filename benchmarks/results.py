"""Results of benchmarks: CSV files with the machine and the versions that made them."""

import csv
import gc
import os
import platform
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from numpyro_flows import FlowPosterior
from numpyro_flows.training.ahead import forget_programs

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
_POOL = 4  # draws of a flow for each that importance resampling keeps
PACKAGES = ("jax", "numpyro", "equinox", "flowjax")


def clean_up() -> None:
    """Remove everything compiled in one run, and stop compilations in the background, before the next run."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(timeout=60)
    jax.clear_caches()
    forget_programs()
    gc.collect()


def machine() -> str:
    """Processor, cores and versions in one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def num_effective(posterior: FlowPosterior, num: int) -> float:
    """The effective sample size of `num` draws of `posterior.sample`."""
    certificate, chains = posterior.certificate, posterior.chains
    if chains is None:
        worth = _POOL * num * posterior.ess
    else:
        num = min(num, chains.log_density.size)
        worth = certificate.ess_bulk if certificate.by == "mcmc" else posterior.log_weights.size * posterior.ess
    return 1.0 / (1.0 / num + 1.0 / max(worth, 1.0))


def save(name: str, rows: list[dict[str, Any]]) -> None:
    """Print `rows` and write them to `docs/benchmarks/NAME.csv`."""
    path = write(name, rows)
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(f"written to {path}")


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write `rows` to `docs/benchmarks/NAME.csv`, and return the path."""
    path = FOLDER / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        file.write(f"# {machine()}\n")
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(name: str) -> list[dict[str, str]]:
    """The rows of a result of `save`; none if it was never saved."""
    if not (FOLDER / f"{name}.csv").exists():
        return []
    with open(FOLDER / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))  # machine and versions
