"""Write the measured tables into docs/choosing-a-flow.md, between its markers: no figure is typed by hand.

uv run --group benchmarks python -m benchmarks.flows.page
"""

import re
from pathlib import Path

from benchmarks.results import FOLDER, read

PAGE = FOLDER.parent / "choosing-a-flow.md"
COLUMNS = {
    "recipe": "recipe",
    "parameters": "parameters",
    "fast": "fast direction",
    "moons_seconds_compile": "compile, s",
    "moons_ms_per_step": "step, ms",
    "moons_nll": "NLL moons",
    "gaussians_nll": "NLL eight Gaussians",
    "schools_ess": "ESS schools",
    "banana_ess": "ESS banana",
}


def table(rows: list[dict[str, str]], columns: dict[str, str]) -> str:
    """Rows in Markdown: `columns` are names in the file and headings."""
    lines = [list(columns.values()), ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_tables(text: str) -> str:
    """The page's text with new tables."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{table(read(match[1]), COLUMNS)}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> None:
    Path(PAGE).write_text(with_tables(PAGE.read_text()))
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
