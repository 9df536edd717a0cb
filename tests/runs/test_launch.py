"Parameters of run notebooks, under papermill, and in a real kernel."

import os
import re
import subprocess
import sys

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from papermill import cli

from hglmm import devices, paths
from hglmm.errors import SettingError
from hglmm.runs import parameters

CELL = """\
recipe: str = "toy_llava"  # which frozen LMM and head
lr: float = 1e-4  # AdamW learning rate
protocol: str = "hg"  # how sentences are joined
limit: int | None = None  # first samples only (None: all)
"""
SETTINGS = 'from hglmm.runs import parameters\nsettings = parameters.parameters(lr=(0, 1), protocol=["hg", "standard"], limit=(1, None))'
REPORT = 'print("settings:", settings.as_dict())'


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    "A run notebook that only reads its parameters."
    cells = [nbformat.v4.new_code_cell(source) for source in (CELL, SETTINGS, REPORT)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}, "language_info": {"name": "python"}}
    path = tmp_path_factory.mktemp("launch") / "run.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


@pytest.fixture
def papermill(notebook, zygote):
    "Run the notebook with papermill; its exit status and everything it said. `real`: with a kernel."

    def run(*options, real=False):
        words = ["--log-output", "--no-progress-bar", str(notebook), str(notebook.with_name("out.ipynb")), *options]
        if not real:
            return zygote.run("papermill", *words, timeout=120)
        done = subprocess.run([sys.executable, "-m", "papermill", *words], capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    return run


TYPES = {"name": "run", "lmm_path": "", "splits": ["val"], "lr": 1e-4, "steps": 3, "control": False}
TYPED_CELL = """
name: str = "run"
lmm_path: str = ""
splits: list = ["val"]
lr: float = 1e-4
steps: int = 3
control: bool = False
"""


@pytest.mark.parametrize(
    "name, typed, message",
    [
        *[("name", typed, "`-r name <what you typed>` passes it as text") for typed in ("2024_01_01", "007", "1e5", "True", "None", "nan", "inf", "-3")],
        ("lmm_path", "None", "`-r lmm_path <what you typed>`"),
        ("splits", "2024", "`-r splits <what you typed>`"),
        ("splits", "True", "`-r splits <what you typed>`"),
        ("splits", "[]", "an empty list, expected at least one value"),
        ("splits", "[val, val]", "more than once"),
        ("lr", "nan", "is nan, expected a"),
        ("lr", "None", "expected float"),
        ("steps", "1e3", "Write it as 1000."),
        ("steps", "nan", "expected int"),
        ("control", "true", "Write True or False."),
        ("control", "1", "Write True or False."),
    ],
)
def test_what_papermill_makes_of_a_value_is_explained(name, typed, message):
    value = cli._resolve_type(typed)  # what -p makes of it
    with pytest.raises(SettingError, match=re.escape(message)) as error:
        parameters.read_parameters([TYPED_CELL, f"# Parameters\n{name} = {value!r}"], {**TYPES, name: value}, splits=["val", "test"])
    assert f"parameter {name!r}" in str(error.value)
    if name in ("name", "lmm_path"):  # as text it is taken, whatever it looks like
        assert getattr(parameters.read_parameters([TYPED_CELL], {**TYPES, name: typed}), name) == typed


def test_words_that_yaml_takes_for_truth_values():
    "`-y 'autocast: off'` arrives as False."
    cell = 'autocast: str = "auto"\nname: str = "run"'
    assert parameters.read_parameters([cell], {"autocast": False, "name": "a"}, autocast=list(devices.AUTOCAST)).autocast == "off"
    for wrong in ({"autocast": True, "name": "a"}, {"autocast": "auto", "name": False}):
        with pytest.raises(SettingError, match="with -y, quotes do"):
            parameters.read_parameters([cell], wrong, autocast=list(devices.AUTOCAST))


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)  # on two machines that share a disk
    with paths.writing(tmp_path / "state.pt") as mine:
        mine.write_text("mine")
        with paths.writing(tmp_path / "state.pt") as theirs:
            theirs.write_text("theirs")
        assert mine.read_text() == "mine" and (tmp_path / "state.pt").read_text() == "theirs"
    assert (tmp_path / "state.pt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_good_parameters_reach_the_notebook(papermill):
    status, said = papermill("-p", "lr", "1", "-p", "protocol", "standard", "-p", "limit", "None", real=True)
    assert status == 0, said
    assert "{'recipe': 'toy_llava', 'lr': 1, 'protocol': 'standard', 'limit': None}" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, message",
    [
        (["-p", "recip", "x"], "unknown parameter 'recip'. Did you mean 'recipe'?"),
        (["-p", "lr", "fast"], "parameter 'lr' is 'fast' (str), expected float"),
        (["-p", "recipe", "2024_01_01"], "`-r recipe <what you typed>` passes it as text"),
        (["-p", "lr", "3"], "parameter 'lr' is 3, expected a value from 0 to 1"),
        (["-p", "protocol", "standart"], "Did you mean 'standard'?"),
    ],
    ids=["misspelled", "wrong_type", "text_that_looks_like_a_number", "out_of_range", "not_a_choice"],
)
def test_bad_parameters_stop_the_run(papermill, options, message):
    status, said = papermill(*options)
    assert status != 0
    assert message in said
    assert "settings:" not in said
    if "unknown" in message:
        assert "lr: float = 0.0001  # AdamW learning rate" in said


@pytest.fixture(scope="module")
def run():
    "Run a cell by hand in a kernel, as JupyterLab does; what it printed, or the error's text."
    manager, client = start_new_kernel(kernel_name="python3")

    def run_cell(source):
        said = []

        def listen(message):
            content = message["content"]
            said.append(content.get("text", "") or content.get("evalue", ""))

        client.execute_interactive(source, timeout=60, output_hook=listen)
        return "".join(said)

    yield run_cell
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_by_hand_in_a_kernel(run):
    assert "no parameters cell has run" in run(SETTINGS)
    run(CELL)
    assert run(SETTINGS) == ""
    run("lr = 0.5")  # a scratch cell may change a value
    run("anything = 1")  # and make variables of its own
    run(SETTINGS)
    assert "'lr': 0.5" in run(REPORT)
    run(CELL.replace("1e-4", "2e-4"))  # the parameters cell edited and run again
    run(SETTINGS)
    assert "'lr': 0.0002" in run(REPORT)
    run("# Parameters\nlrr = 1")  # an executed notebook opened again, with papermill's cell
    assert "Did you mean 'lr'?" in run(SETTINGS)
    run(CELL)
    assert run(SETTINGS) == ""
    run(CELL.replace("lr: float", "lrr: float"))  # misspelled in the parameters cell itself
    assert "unknown parameter 'lr'. Did you mean 'lrr'?" in run(SETTINGS)
    run(CELL.replace("lr: float = 1e-4", "lr = 1e-4"))
    assert "parameter 'lr' has no type" in run(SETTINGS)
