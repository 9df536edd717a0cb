"""The plan of the house, and that the code keeps to it: imports go down the floors, never up, never round, and none hides in a function.

`FLOORS` is the one place where the plan is written down in code; CONTRIBUTING.md shows it.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = (  # from the ground up; a room may use the floors below it, and what stands before it on its own floor
    ("errors", "pickles", "paths", "progress", "fingerprints", "devices", "recipes", "geometry", "user_text", "phrases", "noun_phrases", "losses"),
    ("look",),
    ("checkpoints", "datasets"),
    ("metrics", "heads", "lmm"),
    ("inference", "recognition", "grounding", "grounder", "toy", "runs"),
    ("explore",),
    ("cli",),
)
LATE = {  # libraries that a module imports where it uses them: where, what, why
    ("hglmm.noun_phrases", "spacy"): "an extra, and a second to import",
    ("hglmm.metrics.captions", "pycocoevalcap"): "an extra",
    ("hglmm.metrics.similarity", "transformers"): "seconds to import, for whoever compares runs and encodes no text",
    ("hglmm.runs.parameters", "IPython"): "there is a notebook to ask, or there is no IPython",
}
LONGEST = 350  # lines of a module
SCREEN = 50  # lines of an exported cell
TOY_DOOR = "hglmm.datasets.toycoco"
PLACE = {room: (floor, place) for floor, rooms in enumerate(FLOORS) for place, room in enumerate(rooms)}


class Arrow(NamedTuple):
    "An import."

    source: str  # hglmm.runs.training
    target: str
    line: int
    inside: bool  # of a function


def modules(package: Path) -> dict[str, Path]:
    "Every module of a package by its dotted name."
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if not name.endswith("._modidx")}


def doors(known: dict[str, Path]) -> dict[str, str]:
    "Names that a package's front door opens to another room: `hglmm.Grounder` is `hglmm.grounder`. Such tables are `_FRONT`, `_MOVED` and `_UPSTAIRS`."
    found = {}
    for module, path in known.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body if path.name == "__init__.py" else ():
            if isinstance(node, ast.Assign) and node.targets[0].id in ("_FRONT", "_MOVED", "_UPSTAIRS"):
                found |= {f"{module}.{name}": f"{module.split('.')[0]}.{room}" for name, room in ast.literal_eval(node.value).items()}
    return found


def imported(node: ast.Import | ast.ImportFrom, source: str, is_package: bool) -> Iterator[str]:
    "What a statement names, with the names that may be modules themselves."
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parts = source.split(".") if is_package else source.split(".")[:-1]
        parts = parts[: len(parts) - node.level + 1]
        base = ".".join([*parts, *([node.module] if node.module else [])])
    yield from (f"{base}.{alias.name}" for alias in node.names)


def arrows(package: Path) -> list[Arrow]:
    "Every import in a package; of the package's own modules by the module's name, of others by the library's."
    known, found = modules(package), []
    opened = doors(known)
    for source, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        hidden = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) for n in ast.walk(f)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name in imported(node, source, path.name == "__init__.py"):
                    name = opened.get(name, name)
                    while name not in known and "." in name and name.split(".")[0] == package.name:
                        name = name.rpartition(".")[0]
                    target = name if name in known else name.split(".")[0]
                    found.append(Arrow(source, target, node.lineno, id(node) in hidden))
    return list(dict.fromkeys(found))


def room(module: str) -> str:
    return (module.split(".") + [""])[1]


def upward(found: list[Arrow], package: str = "hglmm") -> list[str]:
    "Arrows that lead up, in words."
    said = []
    for arrow in found:
        if arrow.target.split(".")[0] != package or (room(arrow.source) == room(arrow.target) and arrow.target != TOY_DOOR):
            continue
        if "" in (room(arrow.source), room(arrow.target)):  # the front door: it holds the version and opens the rooms when somebody knocks
            continue
        ours, theirs = PLACE.get(room(arrow.source)), PLACE.get(room(arrow.target))
        if arrow.target == TOY_DOOR:  # the old name of the toy world, for people outside
            theirs = PLACE["toy"]
        if ours is None or theirs is None or theirs >= ours:
            said.append(f"{arrow.source}, line {arrow.line}: imports {arrow.target}, which stands above it (floor {theirs and theirs[0] + 1}, ours {ours and ours[0] + 1})")
    return said


def circles(found: list[Arrow], package: str = "hglmm") -> list[list[str]]:
    "Modules that import each other, round in a circle."
    graph: dict[str, set[str]] = {}
    for arrow in found:
        if arrow.target.split(".")[0] == package and arrow.target != arrow.source:
            graph.setdefault(arrow.source, set()).add(arrow.target)
    state: dict[str, int] = {}
    rounds: list[list[str]] = []

    def visit(node: str, way: list[str]) -> None:
        state[node] = 1
        for other in sorted(graph.get(node, ())):
            if state.get(other) == 1:
                rounds.append([*way[way.index(other) :], other])
            elif other not in state:
                visit(other, [*way, other])
        state[node] = 2

    for node in sorted(graph):
        if node not in state:
            visit(node, [node])
    return rounds


def hidden(found: list[Arrow], package: str = "hglmm") -> list[str]:
    "Imports inside functions that have no leave to be there."
    return [f"{a.source}, line {a.line}: imports {a.target} inside a function" for a in found if a.inside and (a.source, a.target) not in LATE]


def table() -> str:
    "The plan as CONTRIBUTING.md shows it."
    rows = [f"| {floor + 1} | {', '.join(f'`{name}`' for name in rooms)} |" for floor, rooms in reversed(list(enumerate(FLOORS)))]
    return "\n".join(["| floor | rooms |", "|---|---|", *rows])


FOUND = arrows(ROOT / "hglmm")


def test_every_room_has_a_place_in_the_plan():
    rooms = {room(name) for name in modules(ROOT / "hglmm")} - {""}
    assert rooms <= set(PLACE), f"not in FLOORS: {sorted(rooms - set(PLACE))}"
    assert set(PLACE) - rooms <= {"explore"}, "FLOORS has rooms that are not there"  # being built


def test_no_import_leads_up():
    assert not upward(FOUND), "\n" + "\n".join(upward(FOUND))


def test_no_imports_go_round_in_a_circle():
    assert not circles(FOUND), "\n" + "\n".join(" -> ".join(one) for one in circles(FOUND))


def test_no_import_hides_in_a_function():
    assert not hidden(FOUND), "\n" + "\n".join(hidden(FOUND))


def test_leave_to_import_late_is_given_only_where_it_is_used():
    used = {(arrow.source, arrow.target) for arrow in FOUND if arrow.inside}
    assert set(LATE) <= used, f"nothing is imported late there: {sorted(set(LATE) - used)}"


def test_contributing_shows_the_plan():
    assert table() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), f"CONTRIBUTING.md should hold:\n{table()}"


def test_no_module_is_too_long():
    long = {name: lines for name, path in modules(ROOT / "hglmm").items() if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST}
    assert not long


def test_no_exported_cell_is_longer_than_a_screen():
    long = []
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"]).strip()
            if cell["cell_type"] == "code" and source.startswith("#| export") and len(source.splitlines()) > SCREEN:
                long.append(f"{path.relative_to(ROOT)}: {len(source.splitlines())} lines from {source.splitlines()[1]!r}")
    assert not long, "\n" + "\n".join(long)


def test_the_notebooks_are_the_same_tree():
    odd = []
    for path in sorted((ROOT / "nbs").rglob("[0-9]*.ipynb")):
        named = re.search(r'"#\| default_exp ([\w.]+)', path.read_text(encoding="utf-8"))
        if named:
            folder, _, name = named[1].removesuffix(".__init__").rpartition(".")
            where = path.relative_to(ROOT / "nbs").parent
            stem = path.stem.split("_", 1)[1]
            fits = (where.as_posix().replace("/", ".").strip("."), stem) == (folder, name)
            door = named[1].endswith("__init__") and stem in (where.name, "package")
            odd += [] if fits or door else [f"{path.relative_to(ROOT)} writes {named[1]}"]
    assert not odd, "\n".join(odd)


PROGRAMS = [path for room in ("runs", "explore") for path in sorted((ROOT / "nbs" / room).glob("[a-z]*.ipynb")) if '"parameters"' in path.read_text(encoding="utf-8")]


def test_programs_are_no_tests():
    "papermill runs them; nbdev_test would for hours."
    for path in PROGRAMS:
        first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
        assert first["cell_type"] == "raw" and "skip_exec: true" in "".join(first["source"]), path


def test_the_wheel_brings_every_program():
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = [path.relative_to(ROOT).as_posix() for path in PROGRAMS]
    assert {"nbs/runs/train.ipynb", "nbs/explore/heads_that_ground.ipynb"} <= set(names)
    assert [name for name in names if f'"{name}" = "hglmm/shipped/{name}"' not in listed] == []


def house(folder: Path, **sources: str) -> list[Arrow]:
    "The arrows of a small made-up package; a name's first part is its room."
    for name, source in sources.items():
        path = folder / "hglmm" / (f"{name.replace('__', '/')}.py" if "__" in name or name == "grounder" else f"{name}/__init__.py" if name else "__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return arrows(folder / "hglmm")


@pytest.mark.parametrize("source", [
    "from hglmm.runs import training", "from ..runs.training import fit", "import hglmm.runs.training", "from .. import runs", "def late():\n    from hglmm.runs.training import fit",
    "try:\n    from hglmm.runs import training\nexcept ImportError:\n    pass",
])  # fmt: skip
def test_an_arrow_up_is_found(tmp_path, source):
    found = house(tmp_path, heads__hg=source, runs__training="def fit(): ...", runs="")
    assert len(upward(found)) == 1 and upward(found)[0].startswith("hglmm.heads.hg, line ")


def test_an_arrow_up_through_a_door_is_found(tmp_path):
    rooms = {"grounder": "class Grounder: ...", "heads__loading": "load_head = 1", "": '_FRONT = {"Grounder": "grounder"}', "checkpoints": '_UPSTAIRS = {"load_head": "heads.loading"}'}
    for number, (source, room) in enumerate({"from hglmm import Grounder": "heads__hg", "from ..checkpoints import load_head": "datasets__x", "from .toycoco import ensure": "datasets__y"}.items()):
        found = house(tmp_path / str(number), **rooms, **{room: source, "datasets__toycoco": "", "heads": ""})
        assert len(upward(found)) == 1, (source, found)


def test_on_one_floor_too_the_way_leads_one_way(tmp_path):
    assert not upward(house(tmp_path / "down", datasets__refs="from hglmm.checkpoints.store import read", checkpoints__store="read = 1"))
    assert upward(house(tmp_path / "up", checkpoints__store="from hglmm.datasets.refs import read", datasets__refs="read = 1"))


def test_a_circle_is_found(tmp_path):
    found = house(tmp_path, heads__a="from .b import x", heads__b="from hglmm.heads.c import x", heads__c="from . import a")
    assert circles(found) == [["hglmm.heads.a", "hglmm.heads.b", "hglmm.heads.c", "hglmm.heads.a"]] and not upward(found)


def test_a_hidden_import_is_found(tmp_path):
    found = house(tmp_path, heads__a="class A:\n    def f(self):\n        import torch\n        return lambda: __import__('os')\nimport json")
    assert hidden(found) == ["hglmm.heads.a, line 3: imports torch inside a function"]
