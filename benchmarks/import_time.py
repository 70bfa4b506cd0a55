"""Seconds that `import numpyro_flows` takes after `import numpyro`, and those of the first use of a name after that.

uv run --group benchmarks python -m benchmarks.import_time [--repeats 7]
"""

import argparse
import subprocess
import sys

import numpy as np

from benchmarks.results import save

STEPS = ("import numpyro", "import numpyro_flows", "numpyro_flows.FlowVI")
TIMED = f"""
import time
for step in {STEPS}:
    start = time.perf_counter()
    exec(step)
    print(time.perf_counter() - start)
"""


def seconds() -> list[float]:
    """Seconds of each step, in a separate process."""
    timed = subprocess.run([sys.executable, "-c", TIMED], check=True, capture_output=True, text=True)
    return [float(line) for line in timed.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    seconds()  # compiled by Python, and in the disk's cache
    medians = np.median([seconds() for _ in range(repeats)], axis=0)
    save("import_time", [{step: f"{median:.3f}" for step, median in zip(STEPS, medians)}])


if __name__ == "__main__":
    main()
