"""Where benchmarks keep their results: CSV with the machine and the versions that made them."""

import csv
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
PACKAGES = ("jax", "numpyro", "equinox", "flowjax")


def machine() -> str:
    """Processor, cores and versions in one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


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
    """The rows of a result of `save`; none where it was never saved."""
    if not (FOLDER / f"{name}.csv").exists():
        return []
    with open(FOLDER / f"{name}.csv", newline="") as file:
        file.readline()  # machine and versions
        return list(csv.DictReader(file))
