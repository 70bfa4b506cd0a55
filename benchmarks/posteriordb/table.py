"""The table of results: a CSV file that gets every finished row at once, so that a run can be stopped and continued."""

import csv
import os
from pathlib import Path
from typing import Any

from benchmarks.results import machine

Row = dict[str, str]


class Table:
    """Rows of a CSV file, one for each posterior, method and seed; columns are all that any row has.

    Comments at the top name the machines and versions that the rows came from.
    """

    def __init__(self, path: Path, fresh: bool = False):
        self.path = path
        self.rows: list[Row] = []
        self.comments: list[str] = []
        if path.exists() and not fresh:
            lines = path.read_text().splitlines()
            self.comments = [line for line in lines if line.startswith("#")]
            self.rows = list(csv.DictReader(lines[len(self.comments) :]))

    def find(self, posterior: str, method: str, seed: int) -> Row | None:
        """The finished row, if any; one with an error is to be tried again."""
        key = (posterior, method, str(seed))
        return next((row for row in self.rows if _key(row) == key and not row.get("error")), None)

    def append(self, row: dict[str, Any]) -> Row:
        """Write `row` to the file, in place of an older one of the same key."""
        text = {name: _format(value) for name, value in row.items()}
        self.rows = [other for other in self.rows if _key(other) != _key(text)] + [text]
        if f"# {machine()}" not in self.comments:
            self.comments.append(f"# {machine()}")
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        columns = [name for name in columns if name not in ("why", "error")] + ["why", "error"]  # long texts last
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        with open(unfinished, "w", newline="") as file:
            file.writelines(f"{comment}\n" for comment in self.comments)
            writer = csv.DictWriter(file, fieldnames=columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(unfinished, self.path)
        return text


def number(row: Row | None, column: str) -> float:
    """The number in a column, NaN if there is none."""
    return float((row or {}).get(column) or "nan")


def _key(row: Row) -> tuple[str, str, str]:
    return row["posterior"], row["method"], row["seed"]


def _format(value: Any) -> str:
    text = f"{value:.8g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())
