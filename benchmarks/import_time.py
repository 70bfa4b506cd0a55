"""Seconds that `import numpyro_flows` adds to `import numpyro`: each in processes of its own, in turns.

uv run --group benchmarks python -m benchmarks.import_time [--repeats 7]
"""

import argparse
import subprocess
import sys

import numpy as np

from benchmarks.results import save

TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def seconds(modules: str) -> float:
    timed = subprocess.run([sys.executable, "-c", TIMED.format(modules)], check=True, capture_output=True, text=True)
    return float(timed.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    both = ("numpyro", "numpyro, numpyro_flows")
    for modules in both:
        seconds(modules)  # compiled by Python, and in the disk's cache
    alone, with_ours = np.array([[seconds(modules) for modules in both] for _ in range(repeats)]).T
    row = {
        "numpyro": f"{np.median(alone):.2f}",
        "numpyro_and_ours": f"{np.median(with_ours):.2f}",
        "added": f"{np.median(with_ours) - np.median(alone):.2f}",
        "added_over_numpyro": f"{np.median(with_ours) / np.median(alone) - 1:.2f}",
    }
    save("import_time", [row])


if __name__ == "__main__":
    main()
