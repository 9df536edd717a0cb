"""What `from hglmm import Grounder` loads: what it uses, and nothing that is paid for elsewhere."""

import subprocess
import sys

import pytest

ELSEWHERE = (  # libraries that are loaded by those who use them
    "spacy", "papermill", "nbformat", "nbconvert", "IPython", "ipywidgets", "tensorboard", "torch.utils.tensorboard", "pycocoevalcap", "pandas", "scipy", "pydantic",
    "jupyterlab", "hglmm.runs", "hglmm.metrics", "hglmm.toy", "nbdev", "tensorflow",
)  # fmt: skip
LIGHT = ("torch", "transformers", "numpy", "matplotlib")  # not even these, before a name is asked for


def loaded(program: str, names: tuple[str, ...]) -> list[str]:
    "Which of these modules a fresh process has loaded after a program."
    report = f"import sys; print([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, check=True)
    return eval(done.stdout)


def test_the_grounder_loads_nothing_that_it_does_not_use():
    assert loaded("from hglmm import Grounder", ELSEWHERE) == []


@pytest.mark.parametrize("program", ["import hglmm", "import hglmm.cli", "import hglmm.errors, hglmm.paths", "import hglmm.pickles"])
def test_light_things_are_light(program):
    assert loaded(program, LIGHT) == []

