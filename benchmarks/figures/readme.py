"""README's verdict and table of results."""

import numpy as np

from benchmarks.figures.flows import speed
from benchmarks.figures.rows import (
    POSTERIORDB,
    Row,
    beside_nuts,
    count,
    ends,
    geometric_mean,
    markdown,
    of,
    pick,
    with_compilation,
    without_compilation,
)
from benchmarks.results import read


def blocks() -> dict[str, str]:
    return {
        "verdict": "\n".join(["", "```text", *verdict(), "```", ""]),
        "measured": markdown(["what", "measured", "compared with"], table()),
    }


def median_and_worst(ratios: np.ndarray) -> str:
    slower = f", slower in {count(ratios > 1)} fits" if (ratios > 1).any() else ""
    return f"median {np.median(ratios):.2f} times NUTS's, worst {ratios.max():.2f}{slower}"


def num_seeds(rows: list[Row]) -> int:
    return len({row["seed"] for row in rows})


def verdict() -> list[str]:
    """The verdict of README's example, from the benchmark's fit of the same model and data."""
    row = pick(POSTERIORDB, method="flow", posterior="eight_schools-eight_schools_centered", seed="0")[0]
    return [
        "CERTIFIED" if row["certified"] == "True" else f"NOT CERTIFIED: {row['why']}",
        f"k-hat {float(row['khat']):.2f}, ESS {float(row['ess']):.1%} of the draws, "
        f"log evidence {float(row['log_evidence']):.3f} +- {float(row['log_evidence_se']):.3f}",
        f"{float(row['seconds']):.1f} s, {int(row['gradient_evaluations']):,} gradients of the density and "
        f"{int(row['value_evaluations']):,} values",
    ]


def table() -> list[tuple[str, str, str]]:
    """Rows: what was measured, the result, and what it is compared with."""
    flow = pick(POSTERIORDB, method="flow")
    posteriors = len({row["posterior"] for row in flow})
    certified = sum(row["certified"] == "True" for row in flow)
    mixtures = sum(row["by"].startswith("mixture") for row in flow)
    flows = int((of(flow, "seconds_flow") > 0).sum())
    refused, hard = read("refusals"), read("speed_hard")
    wrong = int(of(refused, "certified").sum())
    many, gradients = read("speed_many")[0], pick("rivals_summary", method="flow")[0]
    ratios, tables = speed(), read("density_tables")
    moons = [row for row in read("density_toys") if row["data"] == "moons"]

    def nll(name: str) -> str:
        return ends(of([row for row in moons if name in row["flow"]], "held_out_nll"), 3)

    return [
        (
            f"{posteriors} posteriors of posteriordb, defaults, {len(flow) // posteriors} seeds each",
            f"{certified} of {len(flow)} fits certified: {len(flow) - mixtures - flows} by a Gaussian, {mixtures} by "
            f"a mixture, {flows or 'none'} by a flow",
            "",
        ),
        (
            "the same fits: largest errors, importance-weighted",
            f"{of(flow, 'weighted_mean_error').max():.3f} sd in a mean, {of(flow, 'weighted_sd_error').max():.1%} in "
            "a standard deviation",
            f"10,000 reference draws: in a mean, chance alone gives a standard error of {(2 / 10_000) ** 0.5:.3f} sd",
        ),
        (
            "the same fits: run time",
            f"{median_and_worst(beside_nuts(with_compilation))}; without compilation on both sides: "
            f"{median_and_worst(beside_nuts(without_compilation))}",
            "NUTS, 4 chains of 1,000 + 1,000 steps, one seed",
        ),
        (
            "the same fits: time to 10,000 effective draws, compilation included",
            median_and_worst(beside_nuts(lambda row: float(row["seconds_to_10000"]))),
            "the same",
        ),
        (
            f"gradients to 10,000 effective draws, on {gradients['over_nuts_runs']} posteriors where both are trusted",
            f"geometric mean {float(gradients['over_nuts']):.2f} times NUTS's, but "
            f"{float(gradients['over_nutpie_low_rank']):.2f} times nutpie's",
            "NumPyro's NUTS; nutpie with a low-rank mass matrix",
        ),
        (
            f"{len(hard)} harder posteriors, 51 dimensions and more in two, one seed, run time without compilation",
            f"{sum(row['certified'] == 'True' for row in hard)} certified; "
            f"{ends(of(hard, 'seconds_over_nuts'), 1)} times NUTS's run time",
            "NUTS, the same settings",
        ),
        (
            f"{many['data_sets']} small data sets of one model, compiled once",
            f"{float(many['data_sets_per_second_over_nuts']):.2f} times as many data sets per second, "
            f"{float(many['effective_draws_per_second_over_nuts']):.2f} times as many effective draws",
            "NUTS, compiled once",
        ),
        (
            f"{len(refused)} fits that must be refused (two modes, NaN, few steps), "
            f"{of(refused, 'fits').max():.0f} seeds each",
            f"{wrong or 'none'} certified; the reason names the cause in {of(refused, 'cause_named').sum():.0f} of "
            f"{of(refused, 'fits').sum():.0f}",
            "",
        ),
        (
            "training steps per second, six architectures, 10 to 256 dimensions",
            f"geometric mean {ratios['all']} times the best peer's, {ratios['without_planar']} without planar flows; "
            f"worst {ratios['worst']}; {ratios['numpyro']} times NumPyro's",
            "FlowJAX, NumPyro's guides",
        ),
        (
            "maximum likelihood, same architecture and steps, compilation included",
            f"time: geometric mean {ratios['flowjax_seconds']} times FlowJAX's; FlowJAX has the better held-out NLL in "
            f"{ratios['flowjax_nll']} fits",
            "FlowJAX's `fit_to_data`",
        ),
        (
            f"{len({row['table'] for row in tables})} small tables, {num_seeds(tables)} splits, defaults: held-out log "
            "likelihood",
            f"better than the best of eight rivals on {count(of(tables, 'above_ours') > 0)}; time "
            f"{geometric_mean(of(tables, 'ours_seconds') / of(tables, 'flowjax_nsf_seconds')):.2f} times FlowJAX NSF's",
            "scikit-learn (Gaussians, mixtures, kernels), FlowJAX NSF and MAF, zuko NSF",
        ),
        (
            f"two moons, 3,000 points, {num_seeds(moons)} seeds: held-out negative log likelihood",
            f"the default {nll('the default')}, splines alone {nll('spline coupling')}, coupling Gaussianization "
            f"{nll('coupling Gaussianization')}, greedy RBIG {nll('greedy')}",
            f"the exact density: {moons[0]['entropy']}",
        ),
    ]
