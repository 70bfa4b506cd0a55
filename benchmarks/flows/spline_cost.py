"""Milliseconds of a training step of spline couplings over those of affine couplings of the same size.

uv run --group benchmarks python -m benchmarks.flows.spline_cost [--repeats 5]
"""

import argparse
from typing import get_args

import jax

from benchmarks.flows.common import BATCH, Gradient, seconds_per_step, target_draws, training
from benchmarks.results import save
from numpyro_flows import flows

DIM, LAYERS, HIDDEN, BINS, CHUNK = 10, 6, (64, 64), 8, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one timing")
    parser.add_argument("--quick", action="store_true", help="one short timing, nothing written")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.seconds = 1, 0.2
    data = target_draws(jax.random.key(2), CHUNK * BATCH, DIM)
    key, size = jax.random.key(0), {"num_layers": LAYERS, "hidden": HIDDEN}
    pair = {
        "realnvp": flows.realnvp(key, DIM, **size),
        "nsf_coupling": flows.nsf_coupling(key, DIM, num_bins=BINS, **size),
    }
    rows = []
    for gradient in get_args(Gradient):
        sides = {name: training(gradient, flow, CHUNK, data) for name, flow in pair.items()}
        found = seconds_per_step(sides, CHUNK, options.repeats, options.seconds)
        rows.append(
            {
                "gradient": gradient,
                **{f"{name}_milliseconds": f"{1000 * value:.3f}" for name, value in found.items()},
                "ratio": f"{found['nsf_coupling'] / found['realnvp']:.2f}",
            }
        )
    if options.quick:
        print(*rows, sep="\n")
    else:
        save("flows_spline_cost", rows)


if __name__ == "__main__":
    main()
