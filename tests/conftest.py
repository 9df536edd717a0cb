"Worlds and helpers that several tests share."

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from zygote import Zygote, narrow_recipes

from hglmm import recipes
from hglmm.datasets import toycoco

ROOT = Path(__file__).resolve().parent.parent
CONFORMANCE = ROOT.parent / "shared" / "conformance"


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background of a shell: tests that send Ctrl-C are to be heard
    signal.signal(signal.SIGINT, signal.default_int_handler)

FIRST = ("test_demo.py", "test_runs.py", "test_kills.py", "test_deepseek.py", "test_browser.py", "test_several.py", "test_paper.py")  # files that take longest: whoever has one at the end keeps the others waiting


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Long files first; the rest as it was."
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def small_world(tmp_path_factory) -> Path:
    "A data root with a small toycoco. Tests that break something copy it first."
    return toycoco.generate(tmp_path_factory.mktemp("data") / "world", counts={"train": 40, "val": 12, "test": 8})


@pytest.fixture(scope="module")
def narrow_heads():
    "Heads for toy_llava are narrow, here and in what `zygote` runs: for tests that train and do not care what is learnt."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))
        narrow_recipes()
        patch.setenv("NARROW_HEADS", "1")
        yield


@pytest.fixture(scope="session")
def zygote():
    "Runs notebooks in processes of their own that need not import torch."
    started = Zygote()
    yield started
    started.close()


@pytest.fixture(scope="session")
def run_notebook(tmp_path_factory, request):
    "Run a program of nbs/runs or nbs/explore with papermill in a folder of its own: exit status, all it said, the folder with its runs."
    runs = tmp_path_factory.mktemp("runs")

    def run(notebook: str, /, real: bool = False, **parameters) -> tuple[int, str, Path]:
        options = [text for key, value in parameters.items() for text in ("-y", f"{key}: {value}")]
        (source,) = (path for room in ("runs", "explore") if (path := ROOT / f"nbs/{room}/{notebook}.ipynb").is_file())
        words = ["--log-output", "--no-progress-bar", "--cwd", str(source.parent)]
        words += [str(source), str(runs / f"{notebook}-{len(list(runs.iterdir()))}.ipynb"), *options]
        environment = {**os.environ, "HGLMM_RUNS": str(runs)}
        if real:  # papermill as one types it, with a kernel
            done = subprocess.run([sys.executable, "-m", "papermill", *words], capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT)
            return done.returncode, done.stdout + done.stderr, runs
        return *request.getfixturevalue("zygote").run("papermill", *words, environment=environment), runs

    return run


@pytest.fixture(scope="session")
def seeded():
    "The conformance material's module that makes weights and inputs from names."
    if not CONFORMANCE.is_dir():
        pytest.skip(f"no conformance material at {CONFORMANCE}")
    spec = importlib.util.spec_from_file_location("seeded", CONFORMANCE / "seeded.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
