"""A fit that reads its rows from a file in blocks of 1,000, beside the fit that has them in memory."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks.speed import models
from numpyro_flows import FlowVI

COLUMNS, BLOCK = 50, 1_000


def rows() -> list[dict[str, Any]]:
    """100,000 and 1,000,000 rows of 50 columns; each fit in a process of its own, for its memory."""
    table = []
    for num in (100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            for name, array in zip("xy", models.logistic_data(num, COLUMNS)):
                np.save(Path(folder, name), np.asarray(array))
            blocks, whole = (_in_a_process(folder, how) for how in ("blocks", "memory"))
        mean, sd = (np.asarray(whole[name]) for name in ("mean", "sd"))
        table.append(
            {
                "rows": num,
                "columns": COLUMNS,
                "block": BLOCK,
                "certified": blocks["certified"],
                "ess": f"{blocks['ess']:.3f}",
                "largest_mean_off_in_sds": f"{np.abs((blocks['mean'] - mean) / sd).max():.3f}",
                "largest_sd_off": f"{np.abs(blocks['sd'] / sd - 1.0).max():.3f}",
                **{f"{name}_in_blocks": f"{blocks[name]:.0f}" for name in ("seconds", "megabytes")},
                **{f"{name}_in_memory": f"{whole[name]:.0f}" for name in ("seconds", "megabytes")},
            }
        )
        print(table[-1], flush=True)
    return table


def logistic(x: Any, y: Any, block: int | None) -> None:
    """As `models.logistic`, with a plate of rows."""
    alpha = numpyro.sample("alpha", dist.Normal(0, 2))
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", x.shape[0], subsample_size=block):
        logits = alpha + jnp.asarray(numpyro.subsample(x, event_dim=1)) @ jnp.asarray(beta)
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=numpyro.subsample(y, event_dim=0))


def _in_a_process(folder: str, how: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed.rows", folder, how]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _fit(folder: str, how: str) -> None:
    jax.config.update("jax_enable_x64", True)
    x, y = (np.load(Path(folder, f"{name}.npy"), mmap_mode="r") for name in "xy")
    if how == "memory":
        x, y = jnp.asarray(x), jnp.asarray(y)
    memory = _Memory()
    start = time.perf_counter()
    posterior = FlowVI(logistic, progress_bar=False).run(jax.random.key(0), x, y, BLOCK if how == "blocks" else None)
    seconds = time.perf_counter() - start
    draws = posterior.sample(jax.random.key(1), 5_000)
    columns = np.concatenate([np.asarray(draws["alpha"])[:, None], np.asarray(draws["beta"])], axis=1)
    found = {
        "certified": posterior.certified,
        "ess": posterior.ess,
        "seconds": seconds,
        "megabytes": memory.most,
        "mean": columns.mean(0).tolist(),
        "sd": columns.std(0).tolist(),
    }
    print(json.dumps(found))


class _Memory(threading.Thread):
    """The most memory of this process, pages of files apart, in megabytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0
        self.start()

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.most = max(self.most, int(status.partition("RssAnon:")[2].split()[0]) / 1024)
            time.sleep(0.05)


if __name__ == "__main__":
    _fit(*sys.argv[1:])
