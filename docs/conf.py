"""Settings of the site that `scripts/build_site.py` builds from these pages (ADR 6)."""

from importlib import metadata

project = "mtp-verify"
author = "The mtp-verify authors"
try:
    release = metadata.version("mtp-verify")
except metadata.PackageNotFoundError:  # run from the sources
    release = ""

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["data"]
html_theme = "furo"
html_title = "mtp-verify"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# The index is a script, which a page opened as a file may load. Summaries would be fetched.
html_show_search_summary = False
html_show_sourcelink = False
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
# Annotations name classes without their modules; of two of one name the first is linked.
suppress_warnings = ["ref.python"]

# Docstrings write code between single backticks.
default_role = "code"
add_module_names = False
python_use_unqualified_type_names = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
