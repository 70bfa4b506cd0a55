"""Sphinx: pages in MyST, notebooks executed at each build; nothing is fetched."""

import os
import sys
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS)]  # the extensions of this folder

# notebooks compile much the same functions
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(DOCS / "_build" / ".jax_cache"))

project = "numpyro_flows"
author = "the numpyro_flows developers"
copyright = author
version = release = version_of("numpyro_flows")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "link_names",
    "reference",
    "run_seconds",
]
exclude_patterns = ["_build", "jupyter_execute", "**/.ipynb_checkpoints", "benchmarks/README.md"]

# notebooks: run where they changed, never left half run, and what they print to stderr is no part of the page
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / ".jupyter_cache")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # of cells' output: "commonmark" has no tables
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures have jaxtyping's shapes, which read worse than the text
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes are described once

toc_object_entries_show_parents = "hide"

default_role = "code"  # what docstrings have in backticks

html_theme = "pydata_sphinx_theme"
html_title = "numpyro_flows"
# formulas without network; as an extension this package would keep pages from being read side by side
mathjax = Path(str(find_spec("sphinx-mathjax-offline").origin)).parent / "static"
mathjax_path = "mathjax/tex-chtml.js"
html_static_path = ["_static", str(mathjax)]
html_css_files = ["site.css"]
html_sidebars = {page: [] for page in ("index", "start", "benchmarks", "coming-from")}  # no section navigation
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "tango",
}


def setup(app):
    """Reads pages, which is to run notebooks, side by side; the option `-j` is for other numbers."""
    app.parallel = max(app.parallel, 2)
