"""The pages of the site before Sphinx makes HTML of them: navigation by folder, notebooks made ready to be read, one page for each module."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from docs_api import Module, modules, spellings
from docs_links import TEXTS, markdown_of, slug, written

ORDER = ("howto", "explore", "runs", "datasets", "lmm", "heads", "metrics", "toy", "checkpoints", "look")  # folders of nbs/ as one reads them; others come after
FRONT = ("README.md", "nbs/index.ipynb")  # the same text: the front page
WIDGET = "application/vnd.jupyter.widget-view+json"  # would fetch its code from the network
DROPPED = ("hide", "remove_cell")  # tags and directives of a cell that is not shown
SHOWN = {"hide_input": "remove-input", "hide_output": "remove-output"}  # our tags and directives: MyST-NB's tags


def page_name(
    name: str,  # of a file, from the project's folder
) -> str:
    "What a file of the project is called among the pages."
    return "index.md" if name in FRONT else name


# --- texts ---------------------------------------------------------------------------------------------------------------------------------------


def outside_fences(
    text: str,
    change: Callable[[str], str],  # of a line
) -> str:
    "A text with its lines changed, those of code blocks excepted."
    fence, lines = "", []
    for line in text.split("\n"):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
        elif not fence:
            line = change(line)
        lines.append(line)
    return "\n".join(lines)


def aim(
    target: str,  # of a link
    folder: str,  # of the page, from the project's folder
    pages: dict[str, str],  # file or folder of the project: its page
) -> str:
    "The target as the pages have it: files that became pages under another name, folders, modules."
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not parts.path:
        return target
    whole = PurePosixPath(folder, parts.path)
    name = str(PurePosixPath(*_normal(whole.parts)))
    fragment = f"#{slug(parts.fragment.replace('-', ' '))}" if parts.fragment else ""
    return f"/{pages[name]}{fragment}" if name in pages else target


def _normal(parts: tuple[str, ...]) -> list[str]:
    "Path without `..`."
    found: list[str] = []
    for part in parts:
        if part == ".." and found:
            found.pop()
        elif part != ".":
            found.append(part)
    return found


def linked(
    text: str,  # Markdown
    folder: str,  # of the page, from the project's folder
    pages: dict[str, str],  # file or folder of the project: its page
    names: dict[str, str],  # as `docs_api.spellings` gives them
) -> str:
    "The text with its links as the pages need them, and code that names a notebook or a part of the library made a link to it."

    def code(span: str, before: str, after: str) -> str:
        inner = span.strip("`")
        if before.endswith("[") or after.startswith("]") or span.startswith("``"):
            return span
        if inner in pages and "/" in inner:
            return f"[{span}](/{pages[inner]})"
        name = names.get(re.split(r"[( ]", inner)[0])
        return f"{{py:obj}}`{inner.replace('<', '')} <{name}>`" if name and "<" not in inner else span

    def line(text: str) -> str:
        parts = re.split(r"(`+[^`]+`+)", text)
        plain = [re.sub(r"(\]\()([^)\s]+)", lambda m: m[1] + aim(m[2], folder, pages), part) for part in parts]
        heading = text.startswith("#")
        return "".join(code(part, parts[k - 1], parts[k + 1]) if k % 2 and not heading else plain[k] if not k % 2 else part for k, part in enumerate(parts))

    return outside_fences(text, line)


# --- notebooks -----------------------------------------------------------------------------------------------------------------------------------


def _directives(source: str) -> tuple[list[str], str]:
    "nbdev's `#|` lines, and the rest."
    lines = source.split("\n")
    return [line[2:].strip() for line in lines if line.startswith("#|")], "\n".join(line for line in lines if not line.startswith("#|")).strip("\n")


def module_of(notebook: dict[str, Any], package: str) -> str | None:
    "The dotted name of the module that a notebook writes."
    for cell in notebook["cells"]:
        for directive in _directives("".join(cell["source"]))[0] if cell["cell_type"] == "code" else ():
            if directive.startswith("default_exp"):
                return f"{package}.{directive.split()[1]}".removesuffix(".__init__")
    return None


def _outputs(cell: dict[str, Any]) -> list[dict[str, Any]]:
    "What a cell shows, without what needs the network."
    for output in cell["outputs"]:
        if isinstance(output.get("data"), dict):
            output["data"].pop(WIDGET, None)
    return [output for output in cell["outputs"] if output.get("data") != {}]


def _ready(cell: dict[str, Any], text: Callable[[str], str]) -> dict[str, Any] | None:
    "A cell as it is shown; None: it is not."
    directives, source = _directives("".join(cell["source"])) if cell["cell_type"] == "code" else ([], text("".join(cell["source"])))
    marks = {directive.split()[0].rstrip(":").replace("-", "_") for directive in directives if directive} | set(cell["metadata"].get("tags", []))
    if marks & set(DROPPED) or (cell["cell_type"] == "code" and not source.strip()):
        return None
    tags = [shown for mark, shown in SHOWN.items() if mark in marks] + [mark for mark in ("export", "parameters") if mark in marks]
    cell = {**cell, "source": source, "metadata": {"tags": tags}}
    return {**cell, "outputs": _outputs(cell)} if cell["cell_type"] == "code" else cell


def ready(
    notebook: dict[str, Any],
    name: str,  # of its file, from the project's folder
    text: Callable[[str], str],  # what is done to Markdown
    module: str | None = None,  # that it writes
) -> dict[str, Any]:
    "A notebook as it is shown: its directives gone, cells that are to be hidden too."
    cells = [shown for cell in notebook["cells"] if (shown := _ready(cell, text))]
    note = f"`{name}`" + (f" writes {{py:mod}}`{module}`." if module else "")
    cells.insert(1, {"cell_type": "markdown", "id": "where", "metadata": {"tags": ["where"]}, "source": note})
    kept = {key: value for key, value in notebook["metadata"].items() if key != "widgets"}
    return {**notebook, "cells": cells, "metadata": kept}


def headline(
    path: Path,  # a notebook or a text
) -> tuple[str, str]:  # title, one line about it
    "What a page calls itself and says of itself."
    lines = [line for line in markdown_of(path).split("\n") if line.strip()]
    title = next((line[2:].strip() for line in lines if line.startswith("# ")), path.stem)
    said = [line for line in lines if not line.startswith("#")]
    about = next((line[2:].strip() for line in said if line.startswith("> ")), said[0].split(". ")[0].rstrip(".:") if said else "")
    return title, about


# --- navigation ----------------------------------------------------------------------------------------------------------------------------------


def toctree(
    entries: list[str],
    caption: str = "",
) -> str:
    "A part of the navigation, in MyST."
    lines = ["```{toctree}", ":hidden:"] + ([f":caption: {caption}"] if caption else [])
    return "\n".join([*lines, "", *entries, "```", ""])


def folders(
    names: list[str],  # of notebooks, from the project's folder
) -> dict[str, tuple[list[str], list[str]]]:  # folder: its notebooks, the folders in it
    "Which folders there are, and what is in them, in reading order."
    found: dict[str, tuple[list[str], list[str]]] = {}
    for name in sorted(names):
        folder = PurePosixPath(name).parent
        found.setdefault(str(folder), ([], []))[0].append(name)
        for inner, outer in zip((folder, *folder.parents), folder.parents, strict=False):
            if str(outer) != "." and str(inner) not in found.setdefault(str(outer), ([], []))[1]:
                found[str(outer)][1].append(str(inner))
    place = {name: k for k, name in enumerate(ORDER)}
    for _, inner in found.values():
        inner.sort(key=lambda name: (place.get(name.rpartition("/")[2], len(ORDER)), name))
    return found


def folder_page(
    folder: str,
    root: Path,  # of the project
    notebooks: list[str],
    inner: list[str],  # folders
) -> str:
    "The page of a folder: what is in it, with a line about each, and its part of the navigation."
    title = folder.rpartition("/")[2] if "/" in folder else "Ground floor"
    about = [(f"/{one}/index.md", one.rpartition("/")[2] + "/", "") for one in inner]
    about = [(f"/{name}", *headline(root / name)) for name in notebooks] + about
    rows = [f"| [{title}]({target}) | {said.replace('|', chr(92) + '|')} |" for target, title, said in about]
    return "\n".join([f"# {title}", "", "| | |", "|---|---|", *rows, "", toctree([target for target, _, _ in about])])


def module_page(
    module: Module,
    inner: list[str],  # modules in it
    notebook: str | None,  # that writes it
) -> str:
    "The page of a module, in reStructuredText: Sphinx's autodoc fills it."
    lines = [module.name, "=" * len(module.name), ""]
    lines += [f"Written in :doc:`{notebook} </{notebook.removesuffix('.ipynb')}>`.", ""] if notebook else []
    lines += [f".. automodule:: {module.name}"] + ([f"   :exclude-members: {', '.join(module.borrowed)}"] if module.borrowed else []) + [""]
    lines += ["Also to be had from here: " + ", ".join(f"``{name}``" for name in module.borrowed) + ".", ""] if module.borrowed else []
    lines += [".. toctree::", "   :maxdepth: 1", "", *(f"   {name}" for name in inner), ""] if inner else []
    return "\n".join(lines)


def front(
    text: str,  # of README.md
    tops: list[str],  # pages of the folders of nbs/
    texts: list[str],
    package: str,
) -> str:
    "The front page: README.md, and the whole navigation."
    parts = {"Notebooks": tops, "Library": [f"api/{package}"], "Project": texts}
    return "\n".join([text, "", *(toctree(entries, caption) for caption, entries in parts.items() if entries)])


# --- all of it -----------------------------------------------------------------------------------------------------------------------------------


def _files_linked(path: Path) -> Iterator[Path]:
    "Files beside the pages that a text links to: pictures, and what one may want to download."
    for target in re.findall(r"\]\(([^)\s]+)", markdown_of(path)):
        parts = urlsplit(target)
        if not parts.scheme and parts.path and (path.parent / parts.path).is_file():
            yield (path.parent / parts.path).resolve()


def stage(
    root: Path,  # of the project
    target: Path,  # a folder for the pages, which is emptied first
    package: str,  # the library
) -> None:
    "Write all pages of the site, to be read by Sphinx."
    shutil.rmtree(target, ignore_errors=True)
    root, known = root.resolve(), modules(root, package)
    names = [path.relative_to(root).as_posix() for path in written(root)]
    notebooks = [name for name in names if name.endswith(".ipynb") and name not in FRONT]
    tree = folders(notebooks)
    pages = {name: page_name(name) for name in names} | {folder: f"{folder}/index.md" for folder in tree}
    pages |= {f"{module.replace('.', '/')}{end}": f"api/{module}.rst" for module in known for end in (".py", "/__init__.py")}
    short = spellings(known)

    def put(name: str, content: str) -> None:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(content, encoding="utf-8")

    writers = {}
    for name in notebooks:
        notebook = json.loads((root / name).read_text(encoding="utf-8"))
        if (module := module_of(notebook, package)) in known:
            writers[module] = name
        folder = str(PurePosixPath(name).parent)
        text = lambda source, folder=folder: linked(source, folder, pages, short)  # noqa: E731
        put(name, json.dumps(ready(notebook, name, text, module if module in known else None), ensure_ascii=False))
    texts = [name for name in names if name in TEXTS]
    for name in texts[1:] if "README.md" in texts else texts:
        put(name, linked((root / name).read_text(encoding="utf-8"), str(PurePosixPath(name).parent), pages, short))
    for folder, (inside, inner) in tree.items():
        put(f"{folder}/index.md", folder_page(folder, root, inside, inner if folder != "nbs" else []))
    for name, module in known.items():
        inner = [other for other in known if other.rpartition(".")[0] == name]
        put(f"api/{name}.rst", module_page(module, inner, writers.get(name)))
    tops = (["nbs/index"] if tree.get("nbs", ([],))[0] else []) + [f"{folder}/index" for folder in tree.get("nbs", ([], []))[1]]
    readme = linked((root / "README.md").read_text(encoding="utf-8"), ".", pages, short)
    put("index.md", front(readme, tops, [name.removesuffix(".md") for name in texts if name not in FRONT], package))
    for path in {file for name in names for file in _files_linked(root / name) if file.is_relative_to(root)}:
        if (name := path.relative_to(root).as_posix()) not in pages:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name)
