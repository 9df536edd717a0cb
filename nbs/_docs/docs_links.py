"""Do all links lead somewhere? In the notebooks and texts as they are written, and in the pages that are made from them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mistune

TEXTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/README.md", "checkpoints/README.md")  # beside the notebooks, as far as they are there
ATTRIBUTES = {"a": "href", "area": "href", "img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "link": "href"}
SKIPPED = ("mailto", "data", "javascript", "tel", "attachment")  # schemes that name no place
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


def slug(
    heading: str,
) -> str:
    "The anchor of a heading in a text, as GitHub and MyST make it."
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@dataclass
class Page(HTMLParser):
    "What a page links to, and where one can link to in it."

    links: list[tuple[str, str]] = field(default_factory=list)  # tag, target
    anchors: set[str] = field(default_factory=set)
    headings: list[str] = field(default_factory=list)
    inside: bool = False  # a heading

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if values.get(ATTRIBUTES.get(tag)) is not None and not (tag == "link" and values.get("rel") in ("canonical", "next", "prev")):
            self.links.append((tag, values[ATTRIBUTES[tag]]))
        if tag in HEADINGS:
            self.inside = True
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in HEADINGS

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.headings[-1] += data


def read(html: str) -> Page:
    "A page, read."
    page = Page()
    page.feed(html)
    page.close()
    return page


def markdown_of(
    path: Path,  # a notebook or a text
) -> str:
    "What is text in it, and not code."
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return content
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(content)["cells"] if cell["cell_type"] == "markdown")


def read_text(
    path: Path,  # a notebook or a text
) -> Page:
    "What a text links to; its anchors are those of its headings."
    page = read(mistune.create_markdown(escape=False, plugins=["table"])(markdown_of(path)))
    page.anchors |= {slug(heading) for heading in page.headings}
    return page


def written(
    root: Path,  # of the project
) -> list[Path]:
    "The notebooks and texts of the project."
    notebooks = [p for p in sorted(root.glob("nbs/**/*.ipynb")) if not any(part[0] in "._" for part in p.relative_to(root).parts)]
    return [root / name for name in TEXTS if (root / name).is_file()] + notebooks


def _split(target: str) -> tuple[str, str]:
    "Path and anchor of a target."
    parts = urlsplit(target)
    return unquote(parts.path), unquote(parts.fragment)


def _outside(target: str) -> bool:
    "Does it lead to another place than these files?"
    parts = urlsplit(target)
    return bool(parts.scheme or parts.netloc)


def broken_in_texts(
    root: Path,  # of the project
) -> list[str]:  # where, and what is wrong
    "Links of notebooks and texts that lead to no file or to no heading of it."
    faults, pages = [], {}
    for path in written(root):
        page = pages.setdefault(path, read_text(path))
        for _, target in page.links:
            if _outside(target):
                continue
            name, anchor = _split(target)
            aim = (path.parent / name).resolve() if name else path
            if not aim.exists():
                faults.append(f"{path.relative_to(root)}: {target}: there is no {name}")
            elif anchor and aim.suffix in (".md", ".ipynb") and slug(anchor.replace("-", " ")) not in pages.setdefault(aim, read_text(aim)).anchors:
                faults.append(f"{path.relative_to(root)}: {target}: no heading with the anchor {anchor!r}")
    return faults


def _fault(
    site: Path,
    path: Path,  # of the page
    tag: str,
    target: str,
    pages: dict[Path, Page],
) -> str | None:
    "What is wrong with a link of a page."
    if _outside(target):
        away = tag not in ("a", "area") and urlsplit(target).scheme not in SKIPPED
        return "is fetched from the network when the page is opened" if away else None
    name, anchor = _split(target)
    aim = (path.parent / name).resolve() if name else path
    if not aim.is_relative_to(site):
        return "leads out of the site"
    if not aim.is_file():
        return "there is no such file"
    if anchor and aim.suffix == ".html" and anchor not in pages[aim].anchors:
        return f"no place {anchor!r} in that page"
    return None


def _faults(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        for tag, target in dict.fromkeys(page.links):
            if found := _fault(site, path, tag, target, pages):
                yield f"{path.relative_to(site)}: {target}: {found}"


def broken_in_site(
    site: Path,  # folder of pages
) -> tuple[list[str], int]:  # where, and what is wrong; how many links were looked at
    "Links of pages that lead nowhere, and what a page fetches from the network."
    site = site.resolve()
    pages = {path: read(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    return list(_faults(site, pages)), sum(len(page.links) for page in pages.values())
