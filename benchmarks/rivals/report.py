"""The rows in words: a line for each, and a summary of each method."""

import csv
from pathlib import Path

import numpy as np

from benchmarks.posteriordb.table import Row, number
from benchmarks.rivals.methods import STYLES

OURS = "flow"
BESIDE = ("nutpie_low_rank", "nuts")
FIGURE = "gradients_to_10000"
NUM_REFERENCE = 10_000
WRONG = 4.0  # standard errors; 200 perfect runs of 20 scalars have such a mean with a chance of about a quarter


def line(row: Row) -> str:
    """A row in one line of text."""
    start = f"{row['posterior']}  {row['method']} seed {row['seed']}: "
    if row.get("error"):
        return f"{start}ERROR {row['error']}"
    trust = "trusted" if trusted(row) else "NOT trusted"
    trust += " but WRONG" if trusted(row) and wrong(row) else ""
    text = f"{trust}, {number(row, 'effective'):,.0f} effective draws of {number(row, 'gradients'):,.0f} gradients, "
    text += f"{number(row, FIGURE):,.0f} to 10,000, errors: mean {number(row, 'mean_error'):.3f} sd, "
    text += f"sd {number(row, 'sd_error'):.1%}; {number(row, 'seconds'):.1f} s "
    return f"{start}{text}({number(row, 'compile_seconds'):.1f} s compiling)"


def trusted(row: Row) -> bool:
    return row.get("trusted") == "True"


def wrong(row: Row) -> bool:
    """Whether a mean is off by more than `WRONG` standard errors of its draws and of the reference."""
    error = number(row, "mean_error")
    return not error <= WRONG * np.sqrt(1 / number(row, "effective") + 1 / NUM_REFERENCE)


def summary(rows: list[Row]) -> list[dict[str, str]]:
    """A row for each method: over all its runs, and compared with the same runs of other methods.

    A ratio compares gradients to 10,000 effective draws, by geometric means over all runs in which both methods are
    trusted. `wins` are the posteriors where a rival is trusted and needs fewer gradients, or FlowVI is not trusted.
    """
    table = []
    for method, (name, _, _) in STYLES.items():
        group = [row for row in rows if row["method"] == method]
        if not group:
            continue
        good = [row for row in group if trusted(row)]
        line = {
            "method": method,
            "name": name,
            "runs": str(len(group)),
            "failed": str(sum(bool(row.get("error")) for row in group)),
            "trusted": str(len(good)),
            "trusted_but_wrong": str(sum(map(wrong, good))),
            "worst_mean_error": _largest(good, "mean_error"),
            "worst_sd_error": _largest(good, "sd_error"),
        }
        for other in (*BESIDE, OURS):
            line |= _ratios(good, rows, other)
        line["wins"] = " ".join(_wins(good, rows)) if method != OURS else ""
        table.append(line)
        print(", ".join(f"{key} {value}" for key, value in line.items() if value))
    return table


def write_summary(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _same(rows: list[Row], method: str) -> dict[tuple[str, str], Row]:
    return {(row["posterior"], row["seed"]): row for row in rows if row["method"] == method and trusted(row)}


def _ratios(good: list[Row], rows: list[Row], other: str) -> dict[str, str]:
    others = _same(rows, other)
    pairs = {
        row["posterior"]: number(row, FIGURE) / number(others[key], FIGURE)
        for row in good
        if (key := (row["posterior"], row["seed"])) in others
    }
    names = [f"over_{other}", f"over_{other}_worst", f"over_{other}_runs"]
    if not pairs:
        return dict.fromkeys(names, "")
    mean, worst = np.exp(np.mean(np.log(list(pairs.values())))), max(pairs, key=lambda name: pairs[name])
    return dict(zip(names, (f"{mean:.3g}", f"{pairs[worst]:.3g} ({worst})", str(len(pairs)))))


def _wins(good: list[Row], rows: list[Row]) -> list[str]:
    ours = _same(rows, OURS)
    wins = [
        row["posterior"]
        for row in good
        if (key := (row["posterior"], row["seed"])) not in ours or number(row, FIGURE) < number(ours[key], FIGURE)
    ]
    return list(dict.fromkeys(wins))


def _largest(rows: list[Row], column: str) -> str:
    return f"{max(number(row, column) for row in rows):.3g}" if rows else ""
