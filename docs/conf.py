"""Sphinx configuration: MyST pages, the furo theme, nothing from the network."""

from memfit import __version__

project = "memfit"
author = "the memfit authors"
copyright = "the memfit authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "*-table.md"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"memfit {release}"
html_show_copyright = False
pygments_style = "friendly"
