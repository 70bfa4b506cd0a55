"""Rows of results, and texts of their numbers."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from benchmarks.results import read

Row = dict[str, str]
POSTERIORDB = "posteriordb"


def of(rows: Iterable[Row], column: str) -> np.ndarray:
    """The numbers of a column; NaN if there is none."""
    return np.array([float(row[column] or "nan") for row in rows])


def pick(name: str, **values: str) -> list[Row]:
    """The rows of a result whose columns have these values."""
    return [row for row in read(name) if all(row[column] == value for column, value in values.items())]


def geometric_mean(ratios: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def ends(values: np.ndarray, digits: int) -> str:
    """The smallest and the largest value, or the only one."""
    return " to ".join(dict.fromkeys(f"{end:.{digits}f}" for end in (values.min(), values.max())))


def thousands(values: np.ndarray) -> str:
    """The smallest and the largest value, each to a thousand."""
    return " to ".join(f"{round(end, -3):,.0f}" for end in (values.min(), values.max()))


def count(which: np.ndarray) -> str:
    return f"{which.sum()} of {len(which)}"


def beside_nuts(seconds: Callable[[Row], float]) -> np.ndarray:
    """Seconds of each fit by FlowVI, of any seed, over those of NUTS's one run on the same posterior."""
    nuts = {row["posterior"]: seconds(row) for row in pick(POSTERIORDB, method="nuts", seed="0")}
    return np.array([seconds(row) / nuts[row["posterior"]] for row in pick(POSTERIORDB, method="flow")])


def with_compilation(row: Row) -> float:
    return float(row["seconds"])


def without_compilation(row: Row) -> float:
    return float(row["seconds"]) - float(row["compile_seconds"])


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, with a line break before and after it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
