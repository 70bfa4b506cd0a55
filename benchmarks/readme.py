"""Write measured figures into the README's table, between its markers: no figure is typed by hand.

uv run --group benchmarks python -m benchmarks.readme
"""

import re
from collections.abc import Iterable

import numpy as np

from benchmarks.results import FOLDER, read

README = FOLDER.parent.parent / "README.md"
Row = dict[str, str]


def of(rows: Iterable[Row], column: str) -> np.ndarray:
    """The numbers of a column; NaN where there is none."""
    return np.array([float(row[column] or "nan") for row in rows])


def pick(name: str, **values: str) -> list[Row]:
    """The rows of a result whose columns have these values."""
    return [row for row in read(name) if all(row[column] == value for column, value in values.items())]


def mean_ratio(ratios: np.ndarray) -> str:
    return f"{np.exp(np.mean(np.log(ratios))):.2f}"


def ends(values: np.ndarray, digits: int) -> str:
    return f"{values.min():.{digits}f} to {values.max():.{digits}f}"


def over_nuts(column: str) -> np.ndarray:
    """FlowVI's value over that of NUTS's one run on the posterior, for each fit with any seed."""
    nuts = {row["posterior"]: row for row in pick("posteriordb", method="nuts", seed="0")}
    flow = pick("posteriordb", method="flow")
    return of(flow, column) / of([nuts[row["posterior"]] for row in flow], column)


def table() -> list[tuple[str, str, str]]:
    """Rows of the README's table: what was measured, the result, and the comparison."""
    flow = pick("posteriordb", method="flow")
    posteriors = len({row["posterior"] for row in flow})
    certified = sum(row["certified"] == "True" for row in flow)
    mixtures = sum(row["by"].startswith("mixture") for row in flow)
    flows = int((of(flow, "seconds_flow") > 0).sum())
    seconds, to_draws = over_nuts("seconds"), over_nuts("seconds_to_10000")
    refused = read("refusals")
    wrong = int(of(refused, "certified").sum())
    speed, compiling = read("flows_speed"), read("flows_compile_seconds")
    slow = pick("flows_slow_direction", dim="256", method="FlowJAX")
    density, tables = read("density_seconds"), read("density_tables")
    moons = [row for row in read("density_toys") if row["data"] == "moons"]

    def nll(name: str) -> str:
        return ends(of([row for row in moons if name in row["flow"]], "held_out_nll"), 3)

    step = pick("continuous_training_step", side="ours")[0]
    digits = {row["side"]: f"{float(row['held_out_nll']):.1f}" for row in pick("continuous_tabular", data="digits")}
    training = {row["method"]: row["median_seconds"] for row in read("training_speed")}
    return [
        (
            f"{posteriors} posteriors of posteriordb, defaults, {len(flow) // posteriors} seeds each",
            f"{certified} of {len(flow)} certified: {len(flow) - mixtures - flows} by the Gaussian, {mixtures} by a "
            f"mixture, {flows or 'none'} by a flow",
            "",
        ),
        (
            "means and sds against reference draws, importance-weighted",
            f"within {of(flow, 'weighted_mean_error').max():.3f} sd, within {of(flow, 'weighted_sd_error').max():.1%}",
            "the references' own error is about half",
        ),
        (
            "seconds, compilation included",
            f"{mean_ratio(seconds)} of NUTS's in the geometric mean, {seconds.max():.2f} at most",
            "NUTS, 4 x (1000 + 1000)",
        ),
        (
            "seconds to 10,000 effective draws",
            f"{mean_ratio(to_draws)} of NUTS's in the geometric mean",
            "the same",
        ),
        (
            f"posteriors that it cannot fit (two modes, NaN, few steps), {of(refused, 'fits').max():.0f} seeds each",
            f"{wrong or 'none'} certified, the cause named in {of(refused, 'cause_named').sum():.0f} of "
            f"{of(refused, 'fits').sum():.0f}",
            "",
        ),
        (
            "3,000 steps of 6 affine couplings",
            f"{float(training['ratio']):.2f} of FlowJAX's seconds",
            "FlowJAX, same architecture, compilation included",
        ),
        (
            "training steps per second, six architectures, 10 to 256 dimensions",
            f"{float(mean_ratio(of(speed, 'ratio'))):.1f} times the best peer's in the geometric mean, "
            f"{of(speed, 'ratio').min():.2f} at least (affine autoregressive, against NumPyro's)",
            "FlowJAX, NumPyro's guides",
        ),
        (
            "compilation of 32 layers",
            f"at most {of(compiling, 'ratio').max():.2f} of that of 8",
            "",
        ),
        (
            "the slow direction of an autoregressive flow, 256 dimensions",
            f"{ends(of(slow, 'seconds_over_ours'), 0)} times as fast",
            "FlowJAX",
        ),
        (
            "seconds to fit a flow alone, on a normal base, by maximum likelihood, the same epochs, twelve cases",
            f"{mean_ratio(of(density, 'ratio'))} of FlowJAX's in the geometric mean, "
            f"{of(density, 'ratio').max():.2f} at most",
            "FlowJAX `fit_to_data`",
        ),
        (
            "24 small tables, two splits, defaults: held-out log likelihood against the best of eight rivals",
            f"better on {(of(tables, 'above_ours') > 0).sum()} of {len(tables)}; seconds "
            f"{mean_ratio(of(tables, 'ours_seconds') / of(tables, 'flowjax_nsf_seconds'))} of FlowJAX's NSF",
            "scikit-learn (Gaussians, mixtures, kernels), FlowJAX NSF and MAF, zuko NSF",
        ),
        (
            "two moons, 3,000 points: held-out negative log likelihood, three seeds (the exact density: "
            f"{moons[0]['entropy']})",
            f"the default {nll('the default')}, splines alone {nll('spline coupling')}, coupling Gaussianization "
            f"{nll('coupling Gaussianization')}, greedy RBIG {nll('greedy')}",
            "",
        ),
        (
            "a likelihood step of a continuous flow, the same score of fresh points",
            f"{float(step['naive_over_this']):.1f} times as fast",
            "an adaptive solver at 1e-5",
        ),
        (
            "digits, a continuous flow by matching, then likelihood: held-out negative log likelihood",
            digits["ours"],
            f"zuko's CNF of the same field {digits['zuko']}",
        ),
    ]


def with_table(text: str) -> str:
    """The README's text with a new table."""
    lines = ["| what | measured | beside |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in table())]
    block = "\n".join(["<!-- measured -->", *lines, "<!-- end -->"])
    new, count = re.subn(r"<!-- measured -->\n.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{README} expected one pair of markers, got {count}")
    return new


def main() -> None:
    README.write_text(with_table(README.read_text()))
    print(f"written to {README}")


if __name__ == "__main__":
    main()
