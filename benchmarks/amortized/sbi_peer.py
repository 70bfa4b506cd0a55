"""The neural posterior estimation of `sbi`, in a process of its own, by the Python that has it.

    PYTHON benchmarks/amortized/sbi_peer.py pairs.npz draws.npz maf 0 1.0

The first file has `theta`, `data` and `observations`, the prior is uniform on `[-bound, bound]`. The second gets
`draws` `(observations, 10000, dim)`, and `seconds` of training and of drawing. All settings are the defaults of `sbi`.
"""

import sys
import time
from importlib.metadata import version

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from sbi.inference import NPE  # pyright: ignore[reportMissingImports]
from sbi.utils import BoxUniform  # pyright: ignore[reportMissingImports]

NUM_DRAWS = 10_000


def main(pairs: str, result: str, density_estimator: str, seed: str, bound: str) -> None:
    torch.manual_seed(int(seed))
    torch.set_num_threads(1)  # networks as small as these gain nothing by more
    torch.set_default_dtype(torch.float32)
    files = np.load(pairs)
    theta, data, observations = (
        torch.as_tensor(files[name], dtype=torch.float32) for name in ("theta", "data", "observations")
    )
    start = time.perf_counter()
    prior = BoxUniform(-float(bound) * torch.ones(theta.shape[1]), float(bound) * torch.ones(theta.shape[1]))
    inference = NPE(prior=prior, density_estimator=density_estimator, show_progress_bars=False)
    posterior = inference.append_simulations(theta, data).train()
    posterior = inference.build_posterior(posterior)
    trained = time.perf_counter()
    draws = [
        posterior.sample((NUM_DRAWS,), x=x, show_progress_bars=False).numpy(force=True)  # pyright: ignore
        for x in observations
    ]
    seconds = [trained - start, time.perf_counter() - trained]
    epochs = inference.summary["epochs_trained"][-1]
    versions = f"sbi {version('sbi')}, torch {version('torch')}"
    np.savez(result, draws=np.stack(draws), seconds=np.array(seconds), epochs=epochs, versions=versions)


if __name__ == "__main__":
    main(*sys.argv[1:])
