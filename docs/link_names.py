"""Sphinx: code in prose links to the reference, and to the documentation of NumPyro, JAX, ArviZ and optax."""

from collections.abc import Iterator
from typing import Any

from docutils import nodes
from names import Found, found
from sphinx.addnodes import desc, desc_parameter, desc_signature
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

logger = logging.getLogger(__name__)

# other libraries have names that ours has, too: below these headings of columns, and in "FlowJAX's `Chain`"
FOREIGN = ("FlowJAX", "Pyro", "zuko", "NumPyro")


class LinkNames(SphinxPostTransform):
    """Replaces the names in inline code by links."""

    default_priority = 700  # after cross references, so that what is a link already stays one

    def run(self, **kwargs: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            if not _within(literal, (nodes.reference, nodes.literal_block)):
                self._link(literal, _foreign(literal))

    def _link(self, literal: nodes.literal, foreign: str) -> None:
        code = literal.astext()
        children: list[nodes.Node] = []
        end = 0
        for name in found(code, _parameters(literal)):
            if foreign and not (name.address and foreign == "NumPyro"):
                continue
            link = self._reference(name, code[name.start : name.end], literal)
            if link is not None:
                children += [nodes.Text(code[end : name.start])] if name.start > end else []
                children.append(link)
                end = name.end
        if children:
            literal.children = []
            literal.extend([*children, nodes.Text(code[end:])] if end < len(code) else children)

    def _reference(self, name: Found, text: str, literal: nodes.literal) -> nodes.reference | None:
        if name.address:
            return nodes.reference("", text, refuri=name.address, internal=False)
        objects = self.env.domains["py"].objects
        entry = objects.get(name.name) or objects.get(name.name.rpartition(".")[0])  # a field is in its class's text
        if entry is None:
            logger.warning("%r names %s, which has no entry in the reference", text, name.name, location=literal)
            return None
        around = next((node for node in _ancestors(literal) if isinstance(node, desc)), None)
        if around is not None and any(
            entry.node_id in signature["ids"] for signature in around.findall(desc_signature)
        ):
            return None  # its own entry
        builder, here = self.app.builder, self.env.docname
        return make_refnode(builder, here, entry.docname, entry.node_id, nodes.Text(text), name.name)


def _ancestors(node: nodes.Node) -> Iterator[nodes.Element]:
    parent = node.parent
    while isinstance(parent, nodes.Element):
        yield parent
        parent = parent.parent


def _within(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    return any(isinstance(ancestor, kinds) for ancestor in _ancestors(node))


def _parameters(literal: nodes.literal) -> set[str]:
    """Names of the parameters of the entries around, whose docstrings call them by name."""
    entries = [node for node in _ancestors(literal) if isinstance(node, desc)]
    parameters = (parameter for entry in entries for parameter in entry.findall(desc_parameter))
    return {parameter.astext().partition("=")[0].partition(":")[0].strip(" *") for parameter in parameters}


def _foreign(literal: nodes.literal) -> str:
    """The other library whose code this is, by the text before it or by the heading of its column; else empty."""
    before = literal.previous_sibling()
    text = before.astext().rstrip() if isinstance(before, nodes.Text) else ""
    cell = next((node for node in _ancestors(literal) if isinstance(node, nodes.entry)), None)
    headings = _headings(cell) if cell is not None else []
    return next((name for name in FOREIGN if text.endswith(f"{name}'s") or name in headings), "")


def _headings(cell: nodes.entry) -> list[str]:
    """The headings of the column of a table's cell."""
    row = cell.parent
    table = next(node for node in _ancestors(cell) if isinstance(node, nodes.table))
    if not isinstance(row, nodes.row):
        return []
    return [
        head.children[row.index(cell)].astext() for top in table.findall(nodes.thead) for head in top.findall(nodes.row)
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Makes Sphinx use this extension."""
    app.add_post_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
