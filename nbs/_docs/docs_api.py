"""What the pages of the modules say: which names there are, and the comments that stand beside parameters and fields."""

import ast
import inspect
import io
import re
import tokenize
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOOLS = re.compile(r"(^|\s*#\s*)(noqa\b|(fmt|type|ruff|pragma)\s*:).*$")  # comments that are meant for tools


def comments_of(
    source: str,
) -> dict[int, str]:  # by line number
    "The comment on each line, without those for tools."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {t.start[0]: TOOLS.sub("", t.string.lstrip("# ")).strip() for t in tokens if t.type == tokenize.COMMENT}
    return {line: text for line, text in found.items() if text}


@dataclass
class Module:
    "A module as its source says it."

    name: str  # dotted
    summary: str  # first line of its docstring
    own: list[str] = field(default_factory=list)  # public names that are made here
    borrowed: list[str] = field(default_factory=list)  # public names that come from elsewhere
    below: list[str] = field(default_factory=list)  # names within the classes: `Class.name`
    comments: dict[str, str] = field(default_factory=dict)  # of `NAME` and `Class.field`

    @property
    def names(self) -> list[str]:
        "All that one could link to, dotted."
        return [self.name, *(f"{self.name}.{name}" for name in (*self.own, *self.below))]


def _targets(node: ast.stmt) -> list[ast.expr]:
    "What a statement assigns to."
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]


def _public(tree: ast.Module) -> list[str]:
    "What `__all__` lists."
    lists = [node.value for node in tree.body if isinstance(node, ast.Assign) and "__all__" in [getattr(t, "id", "") for t in node.targets]]
    return [name for value in lists for name in ast.literal_eval(value)]


def _patched(node: ast.stmt) -> str | None:
    "`Class.name` of a function that fastcore's `patch` puts into a class."
    if not isinstance(node, ast.FunctionDef) or not any(ast.unparse(d).split("(")[0] in ("patch", "fastcore.basics.patch") for d in node.decorator_list):
        return None
    owner = node.args.args[0].annotation if node.args.args else None
    return f"{ast.unparse(owner)}.{node.name}" if owner is not None else None


def _within(node: ast.ClassDef) -> list[tuple[str, int]]:
    "Public names of a class, and the line where each ends."
    names = [(item.name, 0) for item in node.body if isinstance(item, ast.FunctionDef)]
    names += [(target.id, item.end_lineno) for item in node.body for target in _targets(item) if isinstance(target, ast.Name)]
    return [(f"{node.name}.{name}", line) for name, line in names if not name.startswith("_")]


def read_module(
    name: str,  # dotted
    source: str,
) -> Module:
    "The public names of a module and the comments beside them."
    tree, said = ast.parse(source), comments_of(source)
    module = Module(name, (ast.get_docstring(tree) or "").split("\n")[0])
    made: dict[str, int] = {}  # public or not: name and the line where it ends
    for node in tree.body:
        made |= {target.id: node.end_lineno for target in _targets(node) if isinstance(target, ast.Name)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            made[node.name] = 0
        if isinstance(node, ast.ClassDef):
            within = _within(node)
            module.below += [inner for inner, _ in within]
            module.comments |= {inner: said[line] for inner, line in within if line in said}
        module.below += [ast.unparse(target) for target in _targets(node) if isinstance(target, ast.Attribute)] + ([_patched(node)] if _patched(node) else [])
    public = _public(tree)
    module.own, module.borrowed = [n for n in public if n in made], [n for n in public if n not in made]
    module.comments |= {n: said[made[n]] for n in module.own if made[n] in said}
    return module


def modules(
    root: Path,  # of the project
    package: str,  # its library
) -> dict[str, Module]:  # by dotted name
    "Every module of a library. Nothing is imported."
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            found[".".join(parts)] = read_module(".".join(parts), path.read_text(encoding="utf-8"))
    return found


def _places(known: dict[str, Module]) -> Iterator[tuple[str, str, int]]:
    "Each way to reach something: dotted name, dotted name where it is made, how many of its parts belong together."
    made = defaultdict(list)
    for module in known.values():
        for name in module.own:
            made[name].append(f"{module.name}.{name}")
        yield from ((name, name, 1 + (name.removeprefix(f"{module.name}.") in module.below)) for name in module.names)
    for module in known.values():
        for name in module.borrowed:
            near = [place for place in made[name] if place.startswith(f"{module.name}.")] or made[name]
            if len(near) == 1:
                yield f"{module.name}.{name}", near[0], 1


def spellings(
    known: dict[str, Module],
) -> dict[str, str]:  # as it may be written: dotted name in full
    "Short ways to write a name that can mean but one thing: `heads.build`, `Grounder.load`, and `Features`, but no plain word."
    short, full = defaultdict(set), {}
    for name, made, together in _places(known):
        full[name], parts = made, name.split(".")
        for k in range(1, len(parts) + 1 - together):  # what is in a class is written with the class
            short[".".join(parts[k:])].add(made)
    plain = re.compile(r"[a-z]+|[A-Z]")  # a word of the language, or one letter
    return {text: next(iter(names)) for text, names in short.items() if len(names) == 1 and not plain.fullmatch(text)} | full


def escaped(
    text: str,  # as docstrings and comments are written: plain, with `code`
    names: dict[str, str] | None = None,  # as `spellings` gives them
) -> str:  # for docutils
    "Text in which nothing but backticks means something: code, and a link where the code is a name of the library."

    def part(span: str) -> str:
        if not span.startswith("`"):
            return re.sub(r"([\\*_|`<>])", r"\\\1", span)
        full = (names or {}).get(re.split(r"[( ]", span.strip("`"))[0])
        return f"\\ :py:obj:`{span.strip('`')} <{full}>`\\ " if full and "<" not in span else f"\\ `{span}`\\ "  # `a`s: the blanks go

    return "".join(part(span) for span in re.split(r"(`[^`]+`)", text) if span)


def fields_of(
    obj: Any,  # a function, a method, a property, or a class that is no dataclass
    names: dict[str, str] | None = None,  # as `spellings` gives them
) -> list[str]:  # lines for docutils
    "The docments of something that is called: what each parameter is, with shapes and units, and what comes back."
    from fastcore.docments import docments  # here, since the rest of this file needs the standard library alone

    if inspect.isclass(obj) and "__init__" not in vars(obj):
        return []
    called = obj.fget if isinstance(obj, property) else obj if inspect.isclass(obj) else inspect.unwrap(getattr(obj, "__func__", obj))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it takes every docstring for one of numpy's
            found = docments(called, returns=not inspect.isclass(obj), args_kwargs=True)
    except (OSError, TypeError, SyntaxError):  # there is no source
        return []
    said = {name: escaped(" ".join(TOOLS.sub("", text or "").split()), names) for name, text in found.items() if name not in ("self", "cls")}
    back = said.pop("return", "")
    return [f":param {name}: {text}".rstrip() for name, text in said.items()] + ([f":returns: {back}"] if back else [])
