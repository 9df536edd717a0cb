"The site of `make docs`: its links, its navigation, its pages; and links of the notebooks and texts as they are written."

import base64
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "settings.ini").is_file())
sys.path.insert(0, str(ROOT / "nbs/_docs"))

import docs_api  # noqa: E402
import docs_build  # noqa: E402
import docs_links  # noqa: E402
import docs_pages  # noqa: E402

DOT = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==")  # a picture of one pixel
MODULE = '''"A room"

__all__ = ["SIDE", "Room", "area", "joined"]

from dataclasses import dataclass
from functools import cache
from os.path import join as joined

SIDE: int = 3  # metres


@dataclass
class Room:
    "Four walls."

    width: float = 2.0  # metres, (n, L*A, g_)

    def paint(self, colour: str = "red") -> str:  # what was painted  # noqa: ARG
        "Paint it."
        return colour


class Hall:
    "Many beds."

    def __init__(
        self,
        beds: int,  # how many
    ):
        self.beds = beds


class Barn(Hall):
    "As a hall."


@cache
def area(
    width: float,  # (n, C, g, g), in metres
    length: float = SIDE,
) -> float:  # square metres
    "How large it is, of all `Room`s: see `Room.paint`."
    return width * length


def tall(
    self: Room,
    height: float,  # of the ceiling
) -> bool:
    "Put into the class."
    return height > SIDE


Room.tall = tall
'''


def notebook(*cells: tuple) -> str:
    "A notebook of (source,) for text and (source, tags, outputs) for code."
    made = []
    for k, (source, *rest) in enumerate(cells):
        kind = {"cell_type": "code", "execution_count": None, "outputs": rest[1]} if rest else {"cell_type": "markdown"}
        made.append({**kind, "id": f"cell{k}", "metadata": {"tags": rest[0]} if rest else {}, "source": source.splitlines(keepends=True)})
    spoken = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": made, "metadata": spoken, "nbformat": 4, "nbformat_minor": 5})


def picture() -> list[dict]:
    "What a cell shows."
    data = {"image/png": base64.b64encode(DOT).decode(), docs_pages.WIDGET: {"model_id": "x"}, "text/plain": "<picture>"}
    return [{"output_type": "display_data", "metadata": {}, "data": data}]


@pytest.fixture
def world(tmp_path) -> Path:
    "A project with three notebooks and a library of one module."
    shown = "# rooms.one\n> A room\n\n## What it does, in short\nSee [two](../02_two.ipynb#more), `Room.paint`, `area(2, 3)`, `nbs/02_two.ipynb` and $\\frac{a_1}{2}$."
    files = {
        "settings.ini": "[DEFAULT]\nlib_name = tiny\ntitle = tiny\nversion = 0.1\n",
        "README.md": "# tiny\nBegin with [one](nbs/rooms/01_one.ipynb#what-it-does-in-short). ![dot](files/dot.png) [code](tiny/rooms/one.py) [rooms](nbs/rooms)\n",
        "CHANGELOG.md": "# Changelog\n[front](README.md), [licence](LICENSE), [elsewhere](https://example.org/x#y)\n",
        "LICENSE": "None.",
        "nbs/index.ipynb": notebook(("# tiny",)),
        "nbs/02_two.ipynb": notebook(("# two\n> Another\n\n## More\n[up](index.ipynb)",), ("#| hide\nsecret = 1", [], []), ("hidden = 2", ["hide_input"], picture())),
        "nbs/rooms/01_one.ipynb": notebook(
            (shown,), ("#| default_exp rooms.one", [], []), ("#| export\ndef area(width, length):\n    return width * length", [], []), ("draw()", [], picture())
        ),
        "nbs/_more/03_left_out.ipynb": notebook(("# left out\n[nowhere](nothing.ipynb)",)),
        "tiny/__init__.py": '"Tiny."\n__all__ = []\n', "tiny/rooms/__init__.py": '"Rooms."\n__all__ = []\n', "tiny/rooms/one.py": MODULE, "tiny/_modidx.py": "",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/dot.png").write_bytes(DOT)
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    "Edit a file of the world."
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


# --- links ---------------------------------------------------------------------------------------------------------------------------------------


def test_links_of_our_own_notebooks_and_texts_lead_somewhere():
    assert len(docs_links.written(ROOT)) > 50
    assert docs_links.broken_in_texts(ROOT) == []


@pytest.mark.parametrize(
    "name, old, new, said",
    [
        ("nbs/rooms/01_one.ipynb", "../02_two.ipynb#more", "02_two.ipynb", "nbs/rooms/01_one.ipynb: 02_two.ipynb: there is no 02_two.ipynb"),
        ("nbs/rooms/01_one.ipynb", "02_two.ipynb#more", "02_two.ipynb#less", "no heading with the anchor 'less'"),
        ("README.md", "files/dot.png", "files/dash.png", "README.md: files/dash.png: there is no"),
        ("README.md", "(nbs/rooms)", "(nbs/halls)", "there is no nbs/halls"),
        ("CHANGELOG.md", "[licence](LICENSE)", '<a href="LICENCE">licence</a>', "there is no LICENCE"),
        ("CHANGELOG.md", "[licence](LICENSE)", "[licence]\n\n[licence]: LICENCE\n\nAlso", "there is no LICENCE"),
        ("CHANGELOG.md", "(README.md)", "(#chang)", "no heading with the anchor 'chang'"),
    ],
)
def test_broken_links_of_texts_are_found(world, name, old, new, said):
    assert docs_links.broken_in_texts(world) == []
    change(world / name, old, new)
    (fault,) = docs_links.broken_in_texts(world)
    assert said in fault


def test_links_in_code_are_code(world):
    change(world / "CHANGELOG.md", "[front]", "`[a](nowhere.md)`\n\n```\n[b](nowhere.md)\n```\n\n[front]")
    assert docs_links.broken_in_texts(world) == []


PAGE = '<html><head><link rel="stylesheet" href="style.css"></head><body><h2 id="here">Here</h2>{}</body></html>'


@pytest.mark.parametrize(
    "link, said",
    [
        ('<a href="two.html#there">x</a><a href="#here"></a><a href="two.html?q=1"></a><a href="https://example.org/#x"></a><img src="data:image/png;base64,AA==">', None),
        ('<a href="inner/three.html#h%C3%A9">x</a><a name="old"></a><a href="#old"></a><a href="mailto:a@b.c"></a>', None),
        ('<a href="four.html">x</a>', "one.html: four.html: there is no such file"),
        ('<a href="two.html#here">x</a>', "no place 'here' in that page"),
        ('<a href="#there">x</a>', "no place 'there'"),
        ('<a href="inner/">x</a>', "there is no such file"),
        ('<a href="../secret.html">x</a>', "leads out of the site"),
        ('<img src="picture.png">', "there is no such file"),
        ('<script src="https://cdn.example.org/x.js"></script>', "is fetched from the network"),
        ('<img src="//example.org/x.png">', "is fetched from the network"),
    ],
)
def test_links_of_pages(tmp_path, link, said):
    site = tmp_path / "site"
    (site / "inner").mkdir(parents=True)
    (tmp_path / "secret.html").write_text("no page of the site")
    (site / "style.css").write_text("")
    (site / "one.html").write_text(PAGE.format(link))
    (site / "two.html").write_text('<link rel="canonical" href="https://example.org"><p id="there">')
    (site / "inner/three.html").write_text('<p id="hé"><a href="../one.html#here">', encoding="utf-8")
    faults, count = docs_links.broken_in_site(site)
    assert count >= 3 and (faults == [] if said is None else len(faults) == 1 and said in faults[0])


# --- navigation and pages ------------------------------------------------------------------------------------------------------------------------


def test_navigation_follows_the_folders():
    names = ["nbs/10_b.ipynb", "nbs/02_a.ipynb", "nbs/zoo/01_x.ipynb", "nbs/lmm/01_y.ipynb", "nbs/lmm/deep/02_z.ipynb", "nbs/howto/01_h.ipynb"]
    found = docs_pages.folders(names)
    assert found["nbs"] == (["nbs/02_a.ipynb", "nbs/10_b.ipynb"], ["nbs/howto", "nbs/lmm", "nbs/zoo"])  # known folders in reading order, new ones after them
    assert found["nbs/lmm"] == (["nbs/lmm/01_y.ipynb"], ["nbs/lmm/deep"]) and found["nbs/lmm/deep"] == (["nbs/lmm/deep/02_z.ipynb"], [])
    assert set(docs_pages.folders(["nbs/a/b/1.ipynb"])) == {"nbs", "nbs/a", "nbs/a/b"}


def test_every_notebook_of_ours_is_in_the_navigation(tmp_path):
    docs_pages.stage(ROOT, tmp_path / "pages", "hglmm")
    notebooks = {path.relative_to(ROOT).as_posix() for path in docs_links.written(ROOT) if path.suffix == ".ipynb"} - {"nbs/index.ipynb"}
    listed, todo = set(), ["index"]
    while todo:  # walk the navigation as Sphinx does
        page = tmp_path / f"pages/{todo.pop()}.md"
        for block in page.read_text(encoding="utf-8").split("```{toctree}\n")[1:] if page.is_file() else ():
            entries = {line.strip("/") for line in block.split("```")[0].split("\n") if line and not line.startswith(":")}
            todo += [entry.removesuffix(".md") for entry in entries - listed]
            listed |= entries
    assert notebooks <= listed and {"CHANGELOG", "CONTRIBUTING", "api/hglmm"} <= listed
    assert {path.relative_to(tmp_path / "pages").as_posix() for path in (tmp_path / "pages").rglob("*.ipynb")} == notebooks


def test_a_notebook_is_made_ready_to_be_read(world):
    docs_pages.stage(world, world / "pages", "tiny")
    one, two = (json.loads((world / f"pages/nbs/{name}.ipynb").read_text()) for name in ("rooms/01_one", "02_two"))
    text, where, export, drawn = one["cells"]
    assert where["source"] == "`nbs/rooms/01_one.ipynb` writes {py:mod}`tiny.rooms.one`."
    assert export["source"].startswith("def area") and export["metadata"]["tags"] == ["export"] and drawn["metadata"]["tags"] == []
    assert set(drawn["outputs"][0]["data"]) == {"image/png", "text/plain"}
    assert "[two](/nbs/02_two.ipynb#more)" in text["source"] and "[`nbs/02_two.ipynb`](/nbs/02_two.ipynb)" in text["source"]
    assert "{py:obj}`Room.paint <tiny.rooms.one.Room.paint>`" in text["source"] and "{py:obj}`area(2, 3) " not in text["source"]  # `area` alone is a plain word
    assert [cell["metadata"]["tags"] for cell in two["cells"]] == [[], ["where"], ["remove-input"]]
    assert "secret" not in str(two) and "[up](/index.md)" in str(two)
    assert not (world / "pages/nbs/_more").exists() and (world / "pages/files/dot.png").read_bytes() == DOT and (world / "pages/LICENSE").is_file()
    assert "[code](/api/tiny.rooms.one.rst)" in (world / "pages/index.md").read_text() and "[rooms](/nbs/rooms/index.md)" in (world / "pages/index.md").read_text()


def test_names_are_written_short_where_only_one_is_meant(world):
    (world / "tiny/rooms/__init__.py").write_text('"Rooms."\n__all__ = ["Room", "area"]\nfrom .one import Room, area\n')
    (world / "tiny/two.py").write_text('"Two"\n__all__ = ["Hall", "paint_all"]\nclass Hall:\n    def paint(self): ...\ndef paint_all(): ...\n')
    (world / "tiny/three.py").write_text('"Three"\n__all__ = ["area"]\ndef area(): ...\n')
    short = docs_api.spellings(docs_api.modules(world, "tiny"))
    assert short["Room.paint"] == short["one.Room.paint"] == "tiny.rooms.one.Room.paint" and short["paint_all"] == "tiny.two.paint_all"
    assert short["Room"] == "tiny.rooms.one.Room" and short["one.area"] == short["rooms.area"] == short["tiny.rooms.area"] == "tiny.rooms.one.area"
    assert "paint" not in short and "area" not in short and "two" not in short and "joined" not in short


def test_comments_beside_parameters_and_fields(world):
    module = docs_api.modules(world, "tiny")["tiny.rooms.one"]
    assert module.own == ["SIDE", "Room", "area"] and module.borrowed == ["joined"] and sorted(module.below) == ["Room.paint", "Room.tall", "Room.width"]
    assert module.comments == {"SIDE": "metres", "Room.width": "metres, (n, L*A, g_)"}
    sys.path.insert(0, str(world))
    try:
        from tiny.rooms.one import Barn, Hall, Room, area
    finally:
        sys.path.remove(str(world))
    assert docs_api.fields_of(area) == [":param width: (n, C, g, g), in metres", ":param length:", ":returns: square metres"]
    assert docs_api.fields_of(Room.paint) == [":param colour:", ":returns: what was painted"]
    assert docs_api.fields_of(Hall) == [":param beds: how many"] and docs_api.fields_of(Barn) == []
    assert docs_api.escaped("a*b of `x*y` |n| width_", {"Room": "r.Room"}) == r"a\*b of \ ``x*y``\  \|n\| width\_"
    assert docs_api.escaped("see `Room(2)`", {"Room": "r.Room"}) == r"see \ :py:obj:`Room(2) <r.Room>`\ "


# --- the whole site ------------------------------------------------------------------------------------------------------------------------------

sphinx = pytest.mark.skipif(not all(map(find_spec, ("sphinx", "myst_nb", "furo"))), reason="the site's tools are not installed (make docs installs them)")


@sphinx
@pytest.mark.slow
def test_a_small_site(world):
    (world / "nbs/rooms/01_one.ipynb").write_text((world / "nbs/rooms/01_one.ipynb").read_text().replace("draw()", "raise SystemExit('nothing is run')"))
    faults, links = docs_build.build(world, world / "_docs")
    assert faults == [] and links > 50
    site = world / "_docs/html"
    front, one, api = ((site / f"{name}.html").read_text(encoding="utf-8") for name in ("index", "nbs/rooms/01_one", "api/tiny.rooms.one"))
    assert 'href="nbs/rooms/01_one.html#what-it-does-in-short"' in front and 'href="CHANGELOG.html"' in front and 'href="api/tiny.rooms.one.html"' in front
    assert "<mfrac>" in one and "api/tiny.rooms.one.html#tiny.rooms.one.Room.paint" in one and one.count("_images/") >= 1 and "nothing is run" in one
    for said in ("(n, C, g, g), in metres", "square metres", "metres, (n, L*A, g_)", "what was painted", "of the ceiling"):
        assert said in api, said
    assert '<li class="toctree-l2 current current-page"><a class="reference internal current" href="#">rooms.one</a>' in one  # the way to this page is open
    assert 'href="../02_two.html"' in one and 'href="../../api/tiny.html"' in one
    assert "noqa" not in api and (site / "searchindex.js").is_file()
    shutil.rmtree(world / "_docs/pages")


@sphinx
@pytest.mark.slow
def test_a_broken_site_is_refused(world):
    change(world / "CHANGELOG.md", "[front]", "{doc}`/nowhere` [front]")
    faults, _ = docs_build.build(world, world / "_docs")
    assert faults and "nowhere" in "\n".join(faults)


def test_a_broken_link_stops_the_build(world, monkeypatch):
    monkeypatch.setattr(docs_build, "sphinx", lambda *_: pytest.fail("not to be reached"))
    change(world / "README.md", "files/dot.png", "files/dash.png")
    faults, links = docs_build.build(world, world / "_docs")
    assert len(faults) == 1 and "files/dash.png" in faults[0] and links == 0
