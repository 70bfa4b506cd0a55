"""Prose that is hard to read: long sentences and words to avoid, in pages, README, CHANGELOG and docstrings.

    uv run --no-sync python docs/check_prose.py [PATH ...]

Prints `path:line: what` for each finding, and ends with status 1 if there is one. It skips code, tables and headings.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_WORDS = 35  # of a sentence
AVOID = {
    r"dear(er|est|ly)?": "expensive",
    r"by heart": "overfit",
    r"flatter(s|ed|ing)?": "optimistic",
    r"(?<!standard )(?<!absolute )deviations?": "standard deviation",
    r"weigh(s|ed|ing)? out": "say what happens",
    r"go(es)? by": "uses",
    r"com(e|es|ing) to": "approaches, reaches",
    r"who(ever)? knows": "name the reader",
    r"told": "given",
    r"judg(e|es|ed|ing)": "check",
    r"nowhere to be found|far off the mark": "say it plainly",
    r"says? (the|which|what) (page|file|table)": "subject first",
}
_AVOIDED = {re.compile(rf"\b({words})\b", re.IGNORECASE): advice for words, advice in AVOID.items()}
_SENTENCE_END = re.compile(r"(?<=[.!?:;])[\"')*]*\s+(?=[A-Z`\[*(\"'0-9])")
_NOT_PROSE = re.compile(r"^\s*(\||#|>>>|\.\.\. |:::|:\w+:|!\[|\$\$|<|```|---|\{|\w+ *=)")


def paragraphs(text: str, first_line: int = 1) -> Iterator[tuple[int, str]]:
    """Numbers of first lines with paragraphs of prose: code, tables, headings and items of lists are apart."""
    block: list[str] = []
    start, fenced = first_line, False
    for number, line in enumerate([*text.splitlines(), ""], first_line):
        stripped = line.strip()
        fence = stripped.startswith(("```", "~~~"))
        fenced ^= fence
        new_item = re.match(r"\s*([-*]|\d+\.) |\s+[\w, ]+:( |$)", line) is not None  # of a list, or an argument
        if fence or fenced or not stripped or _NOT_PROSE.match(line) or new_item:
            if block:
                yield start, " ".join(block)
            block = []
            if not new_item or fenced or fence:
                continue
        if not block:
            start = number
        block.append(stripped)


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and docstrings of a file, without the examples in them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                expression = node.body[0]
                yield expression.lineno, re.sub(r"^\s*(Example|Source):(.|\n)*", "", text, flags=re.MULTILINE)


def findings(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and what is wrong."""
    if path.suffix == ".py":
        blocks = [block for line, text in docstrings(path) for block in paragraphs(text, line)]
    else:
        text = re.sub(r"^---\n.*?\n---\n", lambda found: "\n" * found.group().count("\n"), path.read_text(), flags=re.S)
        blocks = list(paragraphs(text))
    for line, paragraph in blocks:
        plain = re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)", "CODE", re.sub("<!--.*?-->", "", paragraph))
        for pattern, advice in _AVOIDED.items():
            for found in pattern.finditer(plain):
                yield line, f"{found.group()!r}: {advice}"
        for sentence in _SENTENCE_END.split(plain):
            words = re.findall(r"[\w'-]+", sentence)
            if len(words) > MOST_WORDS:
                yield line, f"{len(words)} words: {' '.join(words[:8])} ..."


def everything() -> list[Path]:
    """All files with prose of the project."""
    pages = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    pages += [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]
    folders = ("numpyro_flows", "examples", "benchmarks")
    return pages + [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    found = [(path, *one) for path in parser.parse_args().paths or everything() for one in findings(path)]
    for path, line, what in found:
        print(f"{path.resolve().relative_to(ROOT)}:{line}: {what}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
