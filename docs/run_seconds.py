"""Sphinx: how long each notebook ran, and its first picture, in its row of the tables of `tutorials/index`."""

import posixpath

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx

PAGE = "tutorials/index"
WIDTH = "180px"


def add_seconds_and_picture(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """`beginner` becomes `beginner, 20 s`, above a picture. A page that was not executed keeps its cell."""
    if docname != PAGE:
        return
    for row in doctree.findall(nodes.row):
        for link in row.findall(nodes.reference):
            page = posixpath.join(posixpath.dirname(docname), link.get("refuri", "").removesuffix(".html"))
            page = posixpath.normpath(page)
            ran = NbMetadataCollector.get_exec_data(app.env, page)
            if ran and ran["runtime"]:
                row[-1][0] += nodes.Text(f", {ran['runtime']:.0f} s")
                picture = next(app.env.get_doctree(page).findall(nodes.image), None)
                if picture is not None:
                    alt = f"First picture of {link.astext()}"
                    row[-1] += nodes.image(uri=picture["uri"], candidates=picture["candidates"], width=WIDTH, alt=alt)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", add_seconds_and_picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
