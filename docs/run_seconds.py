"""Sphinx: writes how long each notebook ran into the last cell of its row, in tables of `tutorials/index`."""

import posixpath

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx

PAGE = "tutorials/index"


def add_seconds(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """`beginner` becomes `beginner, 20 s`. A page that was not executed keeps its cell."""
    if docname != PAGE:
        return
    for row in doctree.findall(nodes.row):
        for link in row.findall(nodes.reference):
            page = posixpath.join(posixpath.dirname(docname), link.get("refuri", "").removesuffix(".html"))
            ran = NbMetadataCollector.get_exec_data(app.env, posixpath.normpath(page))
            if ran and ran["runtime"]:
                row[-1][0] += nodes.Text(f", {ran['runtime']:.0f} s")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", add_seconds)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
