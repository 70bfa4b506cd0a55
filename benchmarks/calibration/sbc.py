"""Simulation-based calibration of eight schools: FlowVI and an amortised flow, and a planted overconfident posterior.

    uv run --group benchmarks python -m benchmarks.calibration.sbc [--datasets 500] [--only NAME]

The row of `FlowVI` is one call of `simulation_based_calibration` in single precision: data sets that count, the
verdict, and the seconds of the call, compilation included. An amortised flow is trained once, in `training_seconds`,
and checked 10 times with fresh data sets; of a correct method 5% fail. The planted posteriors are exact ones of a
normal model with standard deviations that are 20% too small. The row says how often of 20 times they were called
overconfident; such a verdict may have a second word, such as biased.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from benchmarks.calibration.models import SIGMA, eight_schools, eight_schools_noncentred
from benchmarks.results import read, save
from numpyro_flows import AmortizedFlow, Calibration, FlowVI, simulation_based_calibration

REPETITIONS, TOO_SMALL = 20, 0.8
CHECKS = 10
Row = dict[str, object]


def flow_vi(num: int) -> Row:
    start = time.perf_counter()
    calibration = simulation_based_calibration(
        jax.random.key(0), eight_schools, FlowVI(eight_schools), SIGMA, observed=["y"], num_data_sets=num
    )
    return row(calibration, time.perf_counter() - start)


def amortized(model: Callable, num: int) -> Row:
    start = time.perf_counter()
    fitted = AmortizedFlow(model, observed=["y"], progress_bar=False).fit(jax.random.key(1), SIGMA)
    training = time.perf_counter() - start
    found = [
        simulation_based_calibration(
            jax.random.key(i), model, fitted, SIGMA, observed=["y"], num_data_sets=num, progress_bar=False
        )
        for i in range(CHECKS)
    ]
    seconds = (time.perf_counter() - start - training) / CHECKS
    verdict = f"calibrated in {sum(calibration.calibrated for calibration in found)} of {CHECKS}"
    smallest = min(np.asarray(calibration.table["p_value"]).min() for calibration in found)
    return row(found[0], seconds) | {
        "verdict": verdict,
        "smallest_p_value": f"{smallest:.2g}",
        "training_seconds": f"{training:.0f}",
    }


def normal(y: Float[Array, ""] | None = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def planted(num: int) -> Row:
    def draw(key: Array, data: dict[str, Array]) -> dict[str, Array]:
        return {"mu": data["y"] / 2 + TOO_SMALL * 0.5**0.5 * jax.random.normal(key, (200,))}

    start = time.perf_counter()
    found = [
        simulation_based_calibration(
            jax.random.key(i), normal, draw, observed=["y"], num_data_sets=num, progress_bar=False
        )
        for i in range(REPETITIONS)
    ]
    caught = sum("overconfident" in str(calibration.table.loc["mu", "verdict"]) for calibration in found)
    seconds = (time.perf_counter() - start) / REPETITIONS
    return row(found[0], seconds) | {"verdict": f"overconfident in {caught} of {REPETITIONS}"}


RUNS: dict[str, Callable[[int], Row]] = {
    "FlowVI": flow_vi,
    "amortised": partial(amortized, eight_schools_noncentred),
    "amortised, centred": partial(amortized, eight_schools),
    "planted": planted,
}


def row(calibration: Calibration, seconds: float) -> Row:
    print(calibration.verdict())
    worst = np.asarray(calibration.table["p_value"]).min()
    return {
        "data_sets": len(calibration.ranks) + len(calibration.left_out),
        "left_out": len(calibration.left_out),
        "verdict": "calibrated" if calibration.calibrated else "NOT calibrated",
        "smallest_p_value": f"{worst:.2g}",
        "seconds": f"{seconds:.0f}",
        "training_seconds": "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=500)
    parser.add_argument("--only", choices=list(RUNS), help="one row; the others keep their earlier results")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    rows: dict[str, Row] = {str(old["method"]): dict(old) for old in read("sbc")}
    for name in [options.only] if options.only else RUNS:
        rows[name] = {"method": name} | RUNS[name](options.datasets)
    save("sbc", [rows[name] for name in RUNS if name in rows])


if __name__ == "__main__":
    main()
