"""The wheel without its project: installed somewhere, used from another folder."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FIVE_LINES = """
from hglmm import Grounder
import hglmm, sys
grounder = Grounder.load("toy_llava", device="cpu")
from PIL import Image
found = grounder.ground(Image.new("RGB", (64, 48), "red"), ["the wall", "a mug"])
assert found.masks.shape == (2, 48, 64), found.masks.shape
print(hglmm.__file__)
"""
WORLD = "from hglmm.datasets import toycoco; print(toycoco.ensure(counts={'train': 3, 'val': 6, 'test': 2}))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "Run Python in an empty folder, with nothing of the project but its wheel."
    place = tmp_path_factory.mktemp("installed")
    built = subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)], cwd=ROOT, capture_output=True, text=True)
    assert not built.returncode, built.stderr
    (wheel,) = place.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(place / "site")
    (place / "elsewhere").mkdir()

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess:
        hidden = ("HGLMM_DATA", "HGLMM_RUNS")
        environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"PYTHONPATH": str(place / "site"), **variables}
        return subprocess.run([sys.executable, *words], cwd=place / "elsewhere", env=environment, capture_output=True, text=True, timeout=300)

    run.place, run.size = place, wheel.stat().st_size
    return run


def test_the_wheel_is_as_small_as_the_weights_allow(installed):
    weights = sum(path.stat().st_size for path in (ROOT / "checkpoints").glob("toy_*/model.safetensors"))
    assert installed.size < weights + 2**20


def test_five_lines_from_any_folder(installed):
    done = installed("-c", FIVE_LINES)
    assert not done.returncode, done.stderr
    assert done.stdout.strip() == str(installed.place / "site/hglmm/__init__.py")


def test_toycoco_doctor_and_an_evaluation(installed):
    drawn = installed("-c", WORLD)
    assert not drawn.returncode and drawn.stdout.splitlines()[-1] == str(installed.place / "elsewhere/data/toycoco"), drawn.stderr
    doctor = installed("-m", "hglmm.cli", "doctor", "data/toycoco", "--only", "png")
    assert "usable" in doctor.stdout.lower(), doctor.stdout + doctor.stderr
    done = installed("-m", "hglmm.cli", "run", "eval_png", "-p", "data", "data/toycoco", "-p", "limit", "4", "-p", "name", "mine", "-p", "device", "cpu")
    assert not done.returncode, done.stdout + done.stderr
    runs = installed.place / "elsewhere/runs/mine"
    assert json.loads((runs / "scores.json").read_text())["scores"] and (runs / "eval_png.ipynb").is_file()
    assert (done.stdout + done.stderr).count("data and runs are kept below it") == 1


def test_what_is_missing_or_misspelled_is_said(installed):
    assert "Did you mean 'doctor'?" in installed("-m", "hglmm.cli", "docter").stderr
    assert "Did you mean 'eval_res'?" in installed("-m", "hglmm.cli", "run", "eval_rse").stderr
    listed = installed("-m", "hglmm.cli", "run")
    assert "eval_gcg" in listed.stdout and "Train a mask head" in listed.stdout and not listed.returncode
