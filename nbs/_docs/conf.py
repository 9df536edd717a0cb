"""Settings of Sphinx. `docs_build.py` runs it, with the project's folder in DOCS_ROOT; by hand: see there."""

import configparser
import inspect
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.errors import SphinxError
from sphinx.pycode import ModuleAnalyzer

HERE, ROOT = Path(__file__).resolve().parent, Path(os.environ["DOCS_ROOT"]).resolve()
sys.path[:0] = [str(ROOT), str(HERE)]

import docs_api  # noqa: E402

settings = configparser.ConfigParser(interpolation=None)
settings.read(ROOT / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]
KNOWN = docs_api.modules(ROOT, settings["lib_name"])
NAMES = docs_api.spellings(KNOWN)
NAVIGATION: dict[str, str] = {}  # HTML, by what was asked for

project, release, html_title = settings["title"], settings["version"], settings["title"]
copyright = settings.get("copyright", "").replace("%(author)s", settings.get("author", ""))
extensions = ["myst_nb", "sphinx.ext.autodoc"]

suppress_warnings = ["misc.highlighting_failure"]  # JSON with `...` in it is text
nb_execution_mode = "off"  # pages show what notebooks keep
nb_merge_streams = True
nb_ipywidgets_js = {}  # nothing is fetched when a page is opened
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"  # which browsers draw themselves

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource", "no-value": True}
autodoc_typehints, autodoc_typehints_format, autodoc_typehints_description_target = "description", "short", "documented_params"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_static_path = [str(HERE / "style.css")]
html_css_files = ["style.css"]
html_show_sphinx = html_copy_source = html_show_sourcelink = False
pygments_style, pygments_dark_style = "friendly", "github-dark"


def comments(app: Any) -> None:
    "What stands beside names and fields counts as if it were written `#:`, as autodoc wants it."
    for module in KNOWN.values():
        analyzer = ModuleAnalyzer.for_module(module.name)
        analyzer.analyze()
        for name, text in module.comments.items():
            owner, _, inner = name.rpartition(".")
            analyzer.attr_docs[owner, inner] = [docs_api.escaped(text, NAMES), ""]


def explain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    "Docstrings are plain text here, and the comments beside parameters belong to them."
    if what in ("data", "attribute"):
        if not any(name == f"{module.name}.{inner}" for module in KNOWN.values() for inner in module.comments):
            lines.clear()  # autodoc has taken the docstring of the value's type
        return
    more = [] if what == "module" or hasattr(obj, "__dataclass_fields__") else docs_api.fields_of(obj, NAMES)  # fields of a dataclass are listed one by one
    lines[:] = [*(docs_api.escaped(line, NAMES) for line in lines), "", *more, ""]


def foreign(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    "Methods that a class got from elsewhere are not ours to explain."
    return True if what == "class" and inspect.isroutine(obj) and getattr(obj, "__module__", None) not in KNOWN else None


def math(self: Any, node: nodes.Element) -> None:
    "TeX as MathML; sizes of brackets are the browser's business."
    text = re.sub(r"\\[bB]igg?[lrm]?(?![A-Za-z])", "", node.astext())
    try:
        self.body.append(latex2mathml.tex2mathml(text, as_block=isinstance(node, nodes.math_block)))
    except ValueError as error:
        raise SphinxError(f"{self.builder.current_docname}: this formula cannot be shown: {text!r} ({error}). Write it with what docutils knows.") from error
    raise nodes.SkipNode


def turned(navigation: str, page: str) -> str:
    "The navigation as the front page has it, for another page: links from there, and the way to it open."
    soup = BeautifulSoup(navigation, "html.parser")
    for link in soup.find_all("a"):
        if link["href"] != f"{page}.html":
            link["href"] = posixpath.relpath(link["href"], posixpath.dirname(page) or ".")
            continue
        link["href"] = "#"
        for tag in (link, *link.find_parents("li")):
            tag["class"] = [*tag.get("class", []), "current"]
    return str(soup)


def navigate(app: Any, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    "Sphinx works the whole navigation out anew for each page, which takes most of the time; once is enough."

    def whole(**options: Any) -> str:
        key = str(sorted(options.items()))
        if key not in NAVIGATION:
            NAVIGATION[key] = str(app.builder._get_local_toctree(app.config.root_doc, **options) or "")
        return turned(NAVIGATION[key], page)

    context["toctree"] = whole


def setup(app: Any) -> None:
    app.connect("html-page-context", navigate, priority=400)  # before the theme asks for it
    app.add_html_math_renderer("mathml", (math, None), (math, None))
    app.connect("builder-inited", comments)
    app.connect("autodoc-process-docstring", explain)
    app.connect("autodoc-skip-member", foreign)
