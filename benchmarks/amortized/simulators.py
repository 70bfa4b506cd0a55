"""Simulators without densities: `fit_density` on 10,000 simulations, beside the NPE of `sbi` on the same ones.

    uv run --group benchmarks python -m benchmarks.amortized.simulators --peer PYTHON [--resume]

PYTHON is one that has `sbi` and `sbibm-jax` (`uv pip install --no-deps` for the latter, whose files alone are read): 10
observations of each task, and draws of the exact posteriors. Every method gets the same simulations and all its
defaults; `sbi` runs in one thread, ours in those that JAX takes. `c2st` is the accuracy of a classifier that tells
2,000 draws from 2,000 reference draws, 0.5 at best. `training_seconds` have compilation in them; `drawing_seconds`
are those of all 10 x 10,000 draws. `log_density` is the mean of 20,000 fresh simulations, of ours alone. Rows whose
observation is "median" or "worst" are over the 10 observations. Writes docs/benchmarks/simulators.csv after every task.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.distributions import constraints

from benchmarks.amortized.tasks import TASKS, Rows, Task, c2st, observation
from benchmarks.results import clean_up, read, write
from numpyro_flows import fit_density

NUM_SIMULATIONS, NUM_OBSERVATIONS, NUM_DRAWS, NUM_FRESH = 10_000, 10, 10_000, 20_000
NUM_CLASSIFIED = 2_000  # draws of each kind; the paper has 10,000, on which the classifier takes an hour
PEER = Path(__file__).with_name("sbi_peer.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="path of a Python that has sbi and sbibm-jax")
    parser.add_argument("--estimators", nargs="*", default=["maf", "nsf"], help="density estimators of sbi")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="keep what is in the file, and run the rest")
    options = parser.parse_args()
    package, rows = package_of(options.peer), list(read("simulators")) if options.resume else []
    done = {(row["task"], row["method"]) for row in rows}
    numbers = range(1, NUM_OBSERVATIONS + 1)
    for method in ["ours", *options.estimators]:
        for name in options.tasks:
            if (name, method) in done:
                continue
            task = TASKS[name]
            theta, data = task.draw(np.random.default_rng(options.seed), NUM_SIMULATIONS)
            observed, references = zip(*(observation(package, name, number) for number in numbers))
            if method == "ours":
                draws, figures = ours(options.seed, task, theta, data, np.stack(observed))
            else:
                draws, figures = peer(options.peer, method, options.seed, task, theta, data, np.stack(observed))
            scores = np.array([c2st(*(rows[:NUM_CLASSIFIED] for rows in pair)) for pair in zip(references, draws)])
            each = dict(zip(numbers, scores)) | {"median": np.median(scores), "worst": scores.max()}
            for number, score in each.items():
                row = {"task": name, "method": method, "seed": options.seed, "observation": number}
                rows.append(row | {"c2st": f"{score:.4f}", "target": task.target} | figures)
            print({**rows[-2], "worst": f"{scores.max():.4f}"}, flush=True)
            write("simulators", rows)  # whole after every task, for --resume


def ours(seed: int, task: Task, theta: Rows, data: Rows, observed: Rows) -> tuple[np.ndarray, dict[str, Any]]:
    """Draws `(observations, draws, dim)` of our flow with its defaults, and what they took."""
    clean_up()
    theta, data, observed = (array.astype(np.float32) for array in (theta, data, observed))
    start = time.perf_counter()
    box = constraints.interval(-task.bound, task.bound)
    flow = fit_density(jax.random.key(seed), theta, condition=data, support=box, progress_bar=False)
    trained = time.perf_counter()
    draws = np.asarray(flow.given(observed).sample(jax.random.key(seed + 1), (NUM_DRAWS,))).swapaxes(0, 1)
    drawn = time.perf_counter()
    fresh, of_fresh = task.draw(np.random.default_rng([seed, 1]), NUM_FRESH)
    log_prob = np.asarray(flow.given(of_fresh.astype(np.float32)).log_prob(fresh.astype(np.float32)), np.float64)
    return draws, {
        "training_seconds": f"{trained - start:.1f}",
        "drawing_seconds": f"{drawn - trained:.1f}",
        "log_density": f"{log_prob.mean():.3f}",
        "versions": "",
    }


def peer(
    python: str, estimator: str, seed: int, task: Task, theta: Rows, data: Rows, observed: Rows
) -> tuple[np.ndarray, dict[str, Any]]:
    """Draws of `sbi`, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        pairs, result = Path(folder, "pairs.npz"), Path(folder, "draws.npz")
        np.savez(pairs, theta=theta, data=data, observations=observed)
        subprocess.run([python, PEER, pairs, result, estimator, str(seed), str(task.bound)], check=True)
        files = np.load(result)
        training, drawing = files["seconds"]
        figures = {"training_seconds": f"{training:.1f}", "drawing_seconds": f"{drawing:.1f}", "log_density": ""}
        return files["draws"], figures | {"versions": str(files["versions"])}


def package_of(python: str) -> Path:
    """Folder of `sbibm_jax`, which is not imported."""
    code = "from importlib.util import find_spec; print(find_spec('sbibm_jax').submodule_search_locations[0])"
    return Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
