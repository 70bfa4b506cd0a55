"""Digits and breast cancer: flows of this library compared with FlowJAX's and zuko's of the same size.

    uv run --group benchmarks --group peers python -m benchmarks.density.tabular [--seeds 3]

Digits are 1,797 rows of 64 integers 0 to 16 with U(0, 1) added, divided by 17. Breast cancer has 569 rows of 30. Both
are standardised by the training rows. A fifth is held out for the score, and a tenth of the rest is for early stopping.

Every library is used as its documentation says. `fit_density` and FlowJAX's `fit_to_data` have their defaults. FlowJAX
trains up to 100 epochs, with a patience of 5. zuko has no training loop, and gets Adam at 1e-3, batches of 100, the
same patience and the best parameters. Seconds are those of a fit, compilation included, with caches cleared. "The same
size" means the same number of layers, hidden layers, widths, and bins or components.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import zuko  # pyright: ignore[reportMissingImports]
from flowjax import bijections as flowjax_bijections
from flowjax import flows as flowjax_flows
from flowjax.distributions import Normal
from flowjax.train import fit_to_data
from jaxtyping import Float
from sklearn.datasets import load_breast_cancer, load_digits

from benchmarks.results import save
from numpyro_flows import fit_density, flows

Data = Float[np.ndarray, "num dim"]
LAYERS, HIDDEN, BINS = 6, (64, 64), 8
MAX_EPOCHS, PATIENCE, BATCH = 100, 5, 100


def load(name: str, seed: int) -> tuple[Data, Data]:
    """Training and test rows, standardised by the training rows."""
    rng = np.random.default_rng(seed)
    if name == "digits":
        digits: Any = load_digits()
        rows = digits.data
        rows = (rows + rng.uniform(size=rows.shape)) / 17
    else:
        tumours: Any = load_breast_cancer()
        rows = tumours.data
    rows = rows[rng.permutation(len(rows))]
    train, test = np.split(rows, [round(0.8 * len(rows))])
    mean, deviation = train.mean(0), train.std(0)
    return ((train - mean) / deviation).astype(np.float32), ((test - mean) / deviation).astype(np.float32)


def ours(recipe: Callable[..., Any], seed: int, train: Data, test: Data) -> tuple[float, np.ndarray]:
    jax.clear_caches()
    start = time.perf_counter()
    flow = fit_density(jax.random.key(seed), train, flow=recipe, progress_bar=False)
    seconds = time.perf_counter() - start
    return seconds, np.asarray(flow.log_prob(test))


def by_flowjax(make: Callable[..., Any], seed: int, train: Data, test: Data) -> tuple[float, np.ndarray]:
    jax.clear_caches()
    start = time.perf_counter()
    flow = make(
        jax.random.key(seed),
        base_dist=Normal(jnp.zeros(train.shape[1])),
        flow_layers=LAYERS,
        nn_width=HIDDEN[0],
        nn_depth=len(HIDDEN),
    )
    flow, _ = fit_to_data(jax.random.key(seed), flow, jnp.asarray(train), show_progress=False)
    seconds = time.perf_counter() - start
    return seconds, np.asarray(flow.log_prob(jnp.asarray(test)))


def by_zuko(
    make: Callable[..., Any], seed: int, train: Data, test: Data, *, batch: int = BATCH, limit: float | None = None
) -> tuple[float, np.ndarray]:
    """`limit`: seconds that it trains for, in place of epochs and patience."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    flow = make(features=train.shape[1], transforms=LAYERS)
    rows = torch.as_tensor(train)[torch.randperm(len(train))]
    rows, validation = rows[len(rows) // 10 :], rows[: len(rows) // 10]
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    best, since, state = np.inf, 0, None
    for epoch in count():
        for some in rows[torch.randperm(len(rows))].split(batch):
            optimizer.zero_grad()
            loss = -flow().log_prob(some).mean()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            score = -flow().log_prob(validation).mean().item()
        since += 1
        if score < best:
            best, since, state = score, 0, {name: value.clone() for name, value in flow.state_dict().items()}
        ended = since > PATIENCE or epoch == MAX_EPOCHS - 1
        if ended if limit is None else time.perf_counter() - start > limit:
            break
    seconds = time.perf_counter() - start
    if state is not None:
        flow.load_state_dict(state)
    with torch.no_grad():
        return seconds, flow().log_prob(torch.as_tensor(test)).numpy()


def flowjax_coupling(key: jax.Array, **options: Any) -> Any:
    spline = flowjax_bijections.RationalQuadraticSpline(knots=BINS - 1, interval=5)
    return flowjax_flows.coupling_flow(key, transformer=spline, **options)


Fit = Callable[[int, Data, Data], tuple[float, np.ndarray]]
SAME = {"num_layers": LAYERS, "hidden": HIDDEN}
FITS: dict[str, dict[str, Fit]] = {
    "NSF": {
        "ours": partial(ours, partial(flows.nsf_coupling, num_bins=BINS, **SAME)),
        "FlowJAX": partial(by_flowjax, flowjax_coupling),
        "zuko": partial(by_zuko, partial(zuko.flows.NSF, bins=BINS, passes=2, hidden_features=HIDDEN)),
    },
    "MAF": {
        "ours": partial(ours, partial(flows.maf, **SAME)),
        "FlowJAX": partial(by_flowjax, flowjax_flows.masked_autoregressive_flow),
        "zuko": partial(by_zuko, partial(zuko.flows.MAF, hidden_features=HIDDEN)),
    },
    "Gaussianization": {
        "ours": partial(ours, partial(flows.gaussianization, num_layers=LAYERS, num_components=BINS)),
        "zuko": partial(by_zuko, partial(zuko.flows.GF, components=BINS)),
    },
}


def compare(data: str, flow: str, seed: int) -> list[dict[str, Any]]:
    train, test = load(data, seed)
    scores, rows = {}, []
    for side, fit in FITS[flow].items():
        seconds, log_prob = fit(seed, train, test)
        scores[side] = log_prob
        rows.append(
            {
                "data": data,
                "flow": flow,
                "seed": seed,
                "side": side,
                "held_out_nll": f"{-log_prob.mean():.3f}",
                # of the difference to ours, on the same rows
                "above_ours": f"{(scores['ours'] - log_prob).mean():.3f}",
                "standard_error": f"{(scores['ours'] - log_prob).std() / np.sqrt(len(test)):.3f}",
                "seconds": f"{seconds:.1f}",
            }
        )
        print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, nothing written")
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    rows = [
        row
        for data in ("breast cancer", "digits")
        for flow in FITS
        for seed in seeds
        for row in compare(data, flow, seed)
    ]
    if not options.quick:
        save("density_tabular", rows)


if __name__ == "__main__":
    main()
