"""Write figures into README and the pages, or check them there. No figure is typed by hand.

    uv run --no-sync python docs/figures.py --write
    uv run --no-sync python docs/figures.py --check

A figure stands between two comments, and the first names it: `<!-- settings.num_steps -->5,000<!-- end -->`. Tables
stand there in the same way, on their own lines. `benchmarks/figures` computes all figures from settings and results.
`--check` prints `path: what` for each finding, and ends with status 1 if there is one.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.figures import figures  # noqa: E402

_MARKED = re.compile(r"<!-- ([\w.]+) -->(.*?)<!-- end -->", re.DOTALL)
_MARKER = re.compile(r"<!-- [\w.]+ -->")
# Markdown takes such a line for HTML, up to its end
_AT_START = re.compile(r"^ *(?:[-*] |\d+\. )? *<!-- [\w.]+ -->(?=.)", re.MULTILINE)
_SUBSTITUTION = re.compile(r"\{\{ .*? \}\}")


def pages() -> list[Path]:
    """README and the pages of the site."""
    return [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts)]


def written(text: str, values: Mapping[str, str]) -> str:
    """The text with the present values of all figures that are known."""
    return _MARKED.sub(lambda found: f"<!-- {found[1]} -->{values.get(found[1], found[2])}<!-- end -->", text)


def findings(text: str, values: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the figures of a page."""
    for name, value in _MARKED.findall(text):
        if name not in values:
            yield f"{name}: unknown"
        elif value != values[name]:
            yield f"{name}: expected {values[name]!r}, got {value!r}"
    for found in _MARKER.findall(_MARKED.sub("", text)):
        yield f"{found}: a marker without its partner"
    for found in _AT_START.findall(text):
        yield f"{found.strip()}: begins a line, so Markdown takes the line for HTML"
    for found in _SUBSTITUTION.findall(text):
        yield f"{found}: stands like this outside the site"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true")
    mode.add_argument("--check", action="store_true")
    write, values = parser.parse_args().write, figures()
    found = []
    for path in pages():
        text = path.read_text()
        if write and (new := written(text, values)) != text:
            path.write_text(new)
            print(f"written to {path.relative_to(ROOT)}")
            text = new
        found += [f"{path.relative_to(ROOT)}: {what}" for what in findings(text, values)]
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
