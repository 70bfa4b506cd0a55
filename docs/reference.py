"""Sphinx: the directive `reference`, which makes a page of the reference from names: a table, then all entries.

    .. reference:: numpyro_flows
       FlowVI, FlowPosterior
       = Constants
       FlowVISettings

A line after `=` begins another table, with this heading.
"""

import importlib
import inspect
import re

from docutils import nodes
from docutils.statemachine import StringList
from names import PACKAGE, public
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_SENTENCE = re.compile(r"((?:`[^`]*`|[^`])+?\.)(?=\s+[A-Z`]|$)")  # a stop in code ends nothing


class Reference(SphinxDirective):
    """A table of names with their first sentences, and their entries."""

    required_arguments = 1  # the module
    has_content = True

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        table, entries = [f".. py:module:: {module}" if module.count(".") == 1 else "", ""], []
        for line in self.content:
            if line.startswith("="):
                table += ["", f".. rubric:: {line.removeprefix('=').strip()}", ""]
                continue
            if not table[-1].startswith("   "):
                table += [".. list-table::", "   :class: names", "   :widths: auto", ""]
            for name in filter(None, map(str.strip, line.split(","))):
                value = getattr(importlib.import_module(module), name)
                table += [f"   * - :py:obj:`{name} <{module}.{name}>`", f"     - {first_sentence(value)}"]
                kind = "autoclass" if inspect.isclass(value) else "autofunction"
                entries += ["", f".. {kind}:: {module}.{name}"]
                entries += options(value) if inspect.isclass(value) else []
        content = StringList([*table, *entries, ""], source=self.get_source_info()[0])
        node = nodes.Element()
        self.state.nested_parse(content, 0, node)
        return node.children


def options(kind: type) -> list[str]:
    """Options of a class's entry: members that it has from a class without an entry belong to it."""
    bases = kind.__mro__[1:]
    ours = [base for base in bases if base.__module__.startswith(PACKAGE) and base not in public().values()]
    elsewhere = [base.__name__ for base in bases if base not in ours]
    inherited = [f"   :inherited-members: {', '.join(elsewhere)}"] if ours else []
    return ["   :members:", "   :show-inheritance:", *inherited]


def first_sentence(value: object) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    found = _SENTENCE.match(paragraph)
    return found.group(1) if found else paragraph


def skip_fields(app: Sphinx, what: str, name: str, value: object, skip: bool, options: object) -> bool | None:
    """Leaves out fields of named tuples: the docstring of the class has them under Attributes."""
    return True if type(value).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Makes Sphinx use this extension."""
    app.add_directive("reference", Reference)
    app.connect("autodoc-skip-member", skip_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
