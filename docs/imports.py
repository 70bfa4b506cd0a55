"""Who imports whom: the drawing in CONTRIBUTING.md, which this script writes anew where the imports have changed.

A room (a folder, or a file that stands alone) is on the line above the highest that it imports. Of those that it
imports only those are named that no other of them imports.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "numpyro_flows"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- imports: written by docs/imports.py -->\n```text\n", "```\n<!-- end of imports -->"


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms() -> dict[str, set[str]]:
    """The rooms that each room imports, for types too."""
    rooms: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "__init__.py":
            continue
        names = rooms.setdefault(room(path), set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
                _, *below = (node.module or "").split(".")
                names |= {below[0]} if below else {alias.name for alias in node.names}
    return {name: below - {name} for name, below in rooms.items()}


def drawing() -> str:
    rooms = imported_rooms()

    def level(name: str) -> int:
        return 1 + max((level(below) for below in rooms[name]), default=0)

    def below(name: str) -> set[str]:
        return rooms[name].union(*(below(other) for other in rooms[name]))

    lines = []
    for number in sorted({level(name) for name in rooms}, reverse=True):
        for name in sorted(name for name in rooms if level(name) == number):
            direct = rooms[name] - set().union(*(below(other) for other in rooms[name]))
            lines.append(f"{number:2}  {name:<16}{'-> ' if direct else ''}{', '.join(sorted(direct))}".rstrip())
    return "\n".join(lines) + "\n"


def page() -> str:
    """CONTRIBUTING.md with the drawing of today."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{drawing()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
