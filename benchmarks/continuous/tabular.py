"""Digits and breast cancer: a continuous flow by matching, then likelihood, compared with zuko's CNF of the same field.

    uv run --group benchmarks --group peers python -m benchmarks.continuous.tabular [--seeds 1]

Data, splits and seconds are those of `benchmarks.density.tabular`. On both sides the field is an MLP of three hidden
layers of 64 SiLU units that sees the time by three frequencies. zuko's flow is trained as there: Adam at 1e-3, batches
of 100, at most 100 epochs with a patience of 5, the best parameters kept. It has its default solver and, for digits,
Hutchinson's estimator, as its users would choose in many dimensions. Ours is trained by `fit_density`, first by
"flow_matching", then by maximum likelihood, with the settings below. Scores use the exact divergence on both sides.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import zuko  # pyright: ignore[reportMissingImports]

from benchmarks.density.tabular import BATCH, MAX_EPOCHS, PATIENCE, Data, load
from benchmarks.results import read, save
from numpyro_flows import fit_density, flows

HIDDEN = (64, 64, 64)
LIKELIHOOD_STEPS, LIKELIHOOD_RATE = 100, 1e-3


def ours(seed: int, train: Data, test: Data) -> tuple[float, np.ndarray]:
    jax.clear_caches()
    start = time.perf_counter()
    fit = partial(fit_density, jax.random.key(seed), train, progress_bar=False)
    flow = fit(flow=flows.ffjord, objective="flow_matching")
    flow = fit(flow=flow, num_steps=LIKELIHOOD_STEPS, learning_rate=LIKELIHOOD_RATE)
    seconds = time.perf_counter() - start
    return seconds, np.asarray(flow.log_prob(test))


def by_zuko(seed: int, train: Data, test: Data, *, exact: bool) -> tuple[float, np.ndarray]:
    torch.manual_seed(seed)
    start = time.perf_counter()
    flow = zuko.flows.CNF(train.shape[1], hidden_features=HIDDEN, activation=torch.nn.SiLU, exact=exact)
    rows = torch.as_tensor(train)[torch.randperm(len(train))]
    rows, validation = rows[len(rows) // 10 :], rows[: len(rows) // 10]
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    best, since, state = np.inf, 0, None
    for _ in range(MAX_EPOCHS):
        for batch in rows[torch.randperm(len(rows))].split(BATCH):
            optimizer.zero_grad()
            loss = -flow().log_prob(batch).mean()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            score = -flow().log_prob(validation).mean().item()
        since += 1
        if score < best:
            best, since, state = score, 0, {name: value.clone() for name, value in flow.state_dict().items()}
        if since > PATIENCE:
            break
    seconds = time.perf_counter() - start
    if state is not None:
        flow.load_state_dict(state)
    setattr(flow.transform, "exact", True)  # noqa: B010  (torch's types know modules only)
    with torch.no_grad():
        return seconds, flow().log_prob(torch.as_tensor(test)).numpy()


Fit = Callable[[int, Data, Data], tuple[float, np.ndarray]]
FITS: dict[str, dict[str, Fit]] = {
    "breast cancer": {"ours": ours, "zuko": partial(by_zuko, exact=True)},
    "digits": {"ours": ours, "zuko": partial(by_zuko, exact=False)},
}


def compare(data: str, seed: int) -> list[dict[str, Any]]:
    train, test = load(data, seed)
    found = {side: fit(seed, train, test) for side, fit in FITS[data].items()}
    rows = []
    for side, (seconds, log_prob) in found.items():
        above = found["ours"][1] - log_prob  # on the same rows
        rows.append(
            {
                "data": data,
                "seed": seed,
                "side": side,
                "held_out_nll": f"{-log_prob.mean():.3f}",
                "above_ours": f"{above.mean():.3f}",
                "standard_error": f"{above.std() / np.sqrt(len(test)):.3f}",
                "seconds": f"{seconds:.1f}",
            }
        )
        print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=list(FITS), help="one of the data sets, the other's rows as they were")
    options = parser.parse_args()
    new = [
        row
        for data in FITS
        if options.only in (None, data)
        for seed in range(options.seeds)
        for row in compare(data, seed)
    ]
    old = [] if options.only is None else [row for row in read("continuous_tabular") if row["data"] != options.only]
    save("continuous_tabular", [*old, *new])


if __name__ == "__main__":
    main()
