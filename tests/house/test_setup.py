"""`make setup` on other people's machines: which Python it takes, what it says where none fits, and that the versions of constraints.txt are what it installs.

The Pythons here are this one under other names and versions: shims that do not run, distributions' without venv, too old ones and too new ones.
"""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where Python has none

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = [f"3.{minor}" for minor in range(6, 30) if SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}.5")]

# A program that says it is Python `version`: it answers questions (-c) as that one would, makes a .venv that is a copy of itself, and writes down what it is asked to do.
PRETENDER = """#!{real} -I
import os, shutil, sys
arguments = sys.argv[1:]
with open("log", "a") as log:
    log.write(" ".join([os.path.basename(sys.argv[0]), *arguments]) + "\\n")
if arguments[:2] == ["-m", "venv"]:
    os.makedirs(".venv/bin")
    shutil.copy(sys.argv[0], ".venv/bin/python")
elif "-c" in arguments:
    sys.version_info = (*{version}, 0, "final", 0)
    sys.version = "%d.%d.0 (main, Jan  1 2026, 00:00:00) [{kind}GCC 12]" % {version}
    for name in {lacks}:
        sys.modules[name] = None
    at = arguments.index("-c")
    sys.argv = ["-c", *arguments[at + 2 :]]
    exec(arguments[at + 1])
elif arguments[:4] == ["-m", "pip", "config", "list"]:
    print(open("pip config").read() if os.path.exists("pip config") else "global.extra-index-url='file:///opt'")
elif arguments[:2] == ["-m", "pip"]:
    sys.exit(os.path.exists("no pip") and "install" in arguments)
"""


class Machine:
    "A checkout and a PATH with nothing on it but what a test puts there."

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.early = root, root / "bin", root / "early"
        for folder in (root / "project/.ci", self.bin, self.early):
            folder.mkdir(parents=True)
        for name in (".ci/setup", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, root / "project" / name)
        for name in ("sh", "sed", "grep", "dirname"):
            (self.bin / name).symlink_to(shutil.which(name))

    def program(self, name: str, text: str, folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        path.write_text(text)
        path.chmod(0o755)

    def python(self, name: str, version: str, lacks: tuple[str, ...] = (), kind: str = "", folder: Path | None = None) -> None:
        numbers = tuple(int(n) for n in version.split("."))
        self.program(name, PRETENDER.format(real=sys.executable, version=numbers, lacks=lacks, kind=kind), folder)

    def shim(self, name: str) -> None:
        self.program(name, f"#!/bin/sh\necho 'pyenv: {name}: command not found' >&2\nexit 127\n", self.early)

    def setup(self, *arguments: str, **environment: str) -> tuple[int, str]:
        environment = {"PATH": f"{self.early}:{self.bin}", **environment}
        done = subprocess.run([self.bin / "sh", "project/.ci/setup", *arguments], cwd=self.root, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, (done.stdout + done.stderr).strip()

    @property
    def installs(self) -> list[str]:
        "What was installed, and by whom."
        lines = (self.root / "project/log").read_text().splitlines()
        return [line for line in lines if line.startswith(("python -m pip install ", "python -m compileall ", "uv pip install "))]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_one_range_of_versions_everywhere() -> None:
    setup = (ROOT / ".ci/setup").read_text()
    assert re.search(r'^VERSIONS="(.*?)"', setup, re.M)[1].split() == PYTHONS[::-1]
    assert re.search(r'^RANGE="(.*?)"', setup, re.M)[1] == f"Python {PYTHONS[0]} to {PYTHONS[-1]}"
    assert f"min_python = {PYTHONS[0]}\n" in (ROOT / "settings.ini").read_text()
    assert f"--python-version {PYTHONS[0]} " in (ROOT / "Makefile").read_text()
    assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in (ROOT / "README.md").read_text()


def test_the_newest_that_runs_and_has_venv(machine: Machine) -> None:
    machine.python("python3", "3.14")
    machine.python("python3.10", "3.10")
    assert machine.setup("which") == (0, str(machine.bin / "python3.10"))
    machine.python("python3.12", "3.12")
    assert machine.setup("which") == (0, str(machine.bin / "python3.12"))
    machine.shim("python3.13")
    machine.python("python3.12", "3.12", lacks=("ensurepip",))
    machine.python("python3.11", "3.11", lacks=("venv",))
    assert machine.setup("which") == (0, str(machine.bin / "python3.10"))


def test_a_shim_that_does_not_run_hides_nothing(machine: Machine) -> None:
    machine.python("python3.10", "3.10")
    machine.python("python3.12", "3.12")
    machine.shim("python3.12")
    assert machine.setup("which") == (0, str(machine.bin / "python3.12"))


@pytest.mark.parametrize("version", PYTHONS)
def test_plain_python3_will_do(machine: Machine, version: str) -> None:
    machine.python("python3", version)
    assert machine.setup("which") == (0, str(machine.bin / "python3"))


def test_where_none_fits_one_line_says_what_to_install(machine: Machine) -> None:
    status, said = machine.setup()
    assert status and "\n" not in said and "hglmm needs Python 3.10 to 3.13 with venv" in said and "apt-get install" in said and "PYTHON3=" in said
    machine.python("python3", "3.14")
    machine.python("python3.12", "3.12", lacks=("ensurepip",))
    machine.python("python3.11", "3.11", kind="PyPy 7.3 with ")
    status, said = machine.setup()
    assert status and "\n" not in said and "python3 is CPython 3.14" in said and "python3.11 is PyPy 3.11" in said
    assert "python3.12 lacks venv (Debian, Ubuntu: apt-get install python3.12-venv)" in said
    assert not (machine.root / "project/.venv").exists()


def test_python3_is_the_users_choice(machine: Machine) -> None:
    machine.python("python3.13", "3.13")
    machine.python("mine", "3.11")
    machine.python("old", "3.9")
    assert machine.setup("which", PYTHON3=str(machine.bin / "mine")) == (0, str(machine.bin / "mine"))
    status, said = machine.setup(PYTHON3="old")
    assert status and "PYTHON3=old does not do" in said and "CPython 3.9" in said and "\n" not in said
    status, said = machine.setup(PYTHON3="nowhere")
    assert status and said.startswith("PYTHON3=nowhere is not there")


def test_it_installs_at_the_versions_of_the_constraints(machine: Machine) -> None:
    machine.python("python3.12", "3.12")
    status, said = machine.setup()
    assert not status and said == f"Setting up .venv with Python 3.12.0, {machine.bin}/python3.12 (a few minutes, once) ..."
    uv, install = machine.installs  # uv comes by pip, and does not run here
    assert uv.startswith("python ") and "--constraint constraints.txt" in uv and uv.endswith(" uv")
    assert install.startswith("python ") and "--constraint constraints.txt" in install and install.endswith("--editable .[dev,gcg,explore]")
    assert machine.setup(PYTHONDONTWRITEBYTECODE="1") == (0, "Bringing .venv up to date ...")
    assert machine.installs[2:4] == [uv, install] and machine.installs[4].startswith("python -m compileall ")  # else every program would compile anew
    (machine.root / "project/no pip").touch()
    assert machine.setup()[0] != 0


def test_uv_installs_all_but_torch(machine: Machine) -> None:
    machine.python("python3.12", "3.12")
    machine.program("uv", '#!/bin/sh\necho "uv $*" >> log\n[ "$1" != pip ] || [ ! -e "no uv" ]\n')
    assert machine.setup()[0] == 0
    torch, rest = machine.installs
    (wanted,) = [name for name in PROJECT["dependencies"] if name.startswith("torch")]
    assert torch.startswith("python ") and "--constraint constraints.txt" in torch and torch.endswith(f" {wanted}")
    assert rest.startswith("uv ") and "--python .venv/bin/python" in rest and "--constraint constraints.txt" in rest and rest.endswith(".[dev,gcg,explore]")
    assert machine.setup(PYTHONDONTWRITEBYTECODE="1")[0] == 0
    assert machine.installs[-1].replace(" --compile-bytecode", "") == rest != machine.installs[-1]
    (machine.root / "project/no uv").touch()
    status, said = machine.setup()
    assert not status and "uv did not manage" in said
    assert machine.installs[-2] == rest and machine.installs[-1].startswith("python ") and machine.installs[-1].endswith("--editable .[dev,gcg,explore]")


def test_an_index_that_pip_was_told_of_is_for_pip(machine: Machine) -> None:
    machine.python("python3.12", "3.12")
    machine.program("uv", '#!/bin/sh\necho "uv $*" >> log\n')
    (machine.root / "project/pip config").write_text("global.index-url='https://mirror.example/simple'\n")
    assert machine.setup()[0] == 0
    (install,) = machine.installs
    assert install.startswith("python ") and install.endswith("--editable .[dev,gcg,explore]")


def test_a_python_that_only_uv_knows(machine: Machine) -> None:
    machine.python("3.11", "3.11", folder=machine.root)
    machine.program("uv", f'#!/bin/sh\n[ "$1" = --version ] && exit\nfor v in "$@"; do :; done\n[ -e "{machine.root}/$v" ] && echo "{machine.root}/$v"\n')
    assert machine.setup("which") == (0, f"{machine.root}/3.11")


def test_a_venv_that_is_there_stays_or_is_called_unfit(machine: Machine) -> None:
    machine.python("python3.13", "3.13")
    machine.python("mine", "3.11")
    assert machine.setup(PYTHON3="mine")[0] == 0
    before = (machine.root / "project/.venv/bin/python").read_text()
    status, said = machine.setup(PYTHON3="python3.13")
    assert not status and ".venv is there and stays, with Python 3.11.0" in said and "make clean setup PYTHON3=python3.13" in said
    assert (machine.root / "project/.venv/bin/python").read_text() == before
    machine.python("python", "3.14", folder=machine.root / "project/.venv/bin")
    status, said = machine.setup()
    assert status and said == ".venv does not do: .venv/bin/python is CPython 3.14. hglmm needs Python 3.10 to 3.13. Begin anew with: make clean setup"
    (machine.root / "project/.venv/bin/python").unlink()
    (machine.root / "project/.venv/bin/python").symlink_to(machine.root / "gone")
    status, said = machine.setup()
    assert status and ".venv does not do: its Python does not run any more." in said


PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] not in " #"]
MACHINES = [("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64")]


def pins(python: str, system: tuple[str, str, str]) -> dict[str, str]:
    "What constraints.txt holds there."
    names = ("sys_platform", "platform_system", "platform_machine")
    there = {**default_environment(), **dict(zip(names, system, strict=True)), "python_version": python, "python_full_version": f"{python}.5"}
    held = [(canonicalize_name(pin.name), str(pin.specifier).removeprefix("==")) for pin in PINS if not pin.marker or pin.marker.evaluate(there)]
    assert len(held) == len(dict(held)), "a name has two versions"
    return dict(held)


@pytest.mark.parametrize("system", MACHINES, ids="-".join)
@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_hold_what_the_project_asks_for(python: str, system: tuple[str, str, str]) -> None:
    held = pins(python, system)
    asked = [Requirement(r) for r in [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]]
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        assert name == "torch" or requirement.specifier.contains(held[name]), f"{requirement}: run make constraints"
    assert not [name for name in held if name in ("torch", "torchvision", "triton") or name.startswith(("nvidia-", "cuda-"))]  # a machine's own build of torch


def needed(name: str, extras: set[str], found: set[tuple[str, frozenset[str]]]) -> set[str]:
    "Names of all that an installed package needs here; what torch needs is left out, as torch is."
    for requirement in map(Requirement, metadata.requires(name) or ()):
        wanted = not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in extras or {""})
        one = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if wanted and one[0] != "torch" and one not in found:
            found.add(one)
            needed(one[0], requirement.extras, found)
    return {key for key, _ in found}


def test_constraints_hold_all_that_is_installed() -> None:
    installed = needed("hglmm", {"dev", "gcg"}, set())
    there = default_environment()
    held = pins(there["python_version"], (there["sys_platform"], there["platform_system"], there["platform_machine"]))
    assert len(installed) > 100 and not installed - set(held), "run make constraints"
