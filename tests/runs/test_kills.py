"""Training on several processes under papermill, killed: nobody is left, the error says why, and it goes on to the bit.

make test kills a few times. `HGLMM_MATRIX=1 pytest tests/runs/test_kills.py` goes through every victim and signal, with and without processes that read ahead;
`HGLMM_KILLS=20 HGLMM_PROCESSES=2` kills that often at random. What was seen is printed with -s.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import nbformat
import pytest

from hglmm.runs import states, training

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
KILLS, PROCESSES = int(os.environ.get("HGLMM_KILLS", 1)), os.environ.get("HGLMM_PROCESSES", "2")
VICTIMS, SIGNALS = ("papermill", "kernel", "launcher", "rank"), (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
EVERY = [(*one, workers, False) for one in itertools.product(VICTIMS, SIGNALS) for workers in (0, 2)] + [("kernel", signal.SIGKILL, 0, True), ("launcher", signal.SIGKILL, 0, True)]
FEW = [("papermill", signal.SIGTERM, 1, False), ("kernel", signal.SIGKILL, 0, True)]
CELLS = EVERY if "HGLMM_MATRIX" in os.environ else FEW
HANGS = """
import os, sys
if os.environ.get("HANGS") and "hglmm.runs.training" in sys.orig_argv:  # a process that trains, just started
    import torch.distributed as dist
    from hglmm.runs import launch
    add_up, count = launch.add_up, []

    def hanging(row):
        count.append(row)
        if len(count) == 2 and launch.rank() == 1:
            print("hangs", flush=True)
            dist.recv(row)  # nobody sends
        return add_up(row)

    launch.add_up = hanging
"""


class Run:
    "A training run under papermill, and every process that came of it."

    def __init__(self, world: Path, folder: Path, name: str = "run", processes: str = PROCESSES, hangs: bool = False, **parameters: object):
        self.folder, self.mark, self.runs = folder / name, uuid.uuid4().hex, folder
        told = {"name": name, "data": world, "num_processes": processes, "batch_size": 1, "global_batch": 4, "save_every": 1, "device": "cpu", "benchmarks": "[png]", **parameters}
        (folder / "site").mkdir(exist_ok=True)
        (folder / "site/sitecustomize.py").write_text(HANGS)
        path = os.pathsep.join([str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "HGLMM_RUNS": str(folder), "MARK": self.mark, "PYTHONPATH": path, "HANGS": "1" if hangs else "", "IPYTHONDIR": str(folder / "ipython")}
        self.output = folder / f"{name}.ipynb"
        words = [str(ROOT / "nbs/runs/train.ipynb"), str(self.output), "--cwd", str(ROOT), "--log-output", "--no-progress-bar"]
        words += [word for key, value in told.items() for word in ("-p", key, str(value))]
        self.log = folder / f"{name}-{self.mark[:4]}.log"
        with self.log.open("w") as file:
            self.papermill = subprocess.Popen([sys.executable, "-m", "papermill", *words], env=environment, stdout=file, stderr=file, start_new_session=True)

    def alive(self) -> dict[int, tuple[str, int]]:
        "Process numbers: command line and parent, of all that carry the mark."
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if f"MARK={self.mark}".encode() in (place / "environ").read_bytes():
                    state, parent = (place / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                    if state != "Z":
                        found[int(place.name)] = ((place / "cmdline").read_bytes().replace(b"\0", b" ").decode(), int(parent))
            except OSError:
                continue
        return found

    def find(self, who: str, which: int = -1) -> int:
        "The process number of a victim."
        if who == "papermill":
            return self.papermill.pid
        found = self.alive()
        named = {"kernel": "ipykernel_launcher", "launcher": "hglmm.runs.launcher", "rank": "-m hglmm.runs.training"}[who]
        having = sorted(number for number, (words, parent) in found.items() if named in words and (who != "rank" or "hglmm.runs.launcher" in found.get(parent, ("", 0))[0]))
        return having[which] if having else 0

    def wait_for(self, what: object, seconds: float = 180) -> None:
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until and self.papermill.poll() is None, self.said()
            time.sleep(0.05)

    def saved(self) -> bool:
        return (self.folder / states.BEFORE).exists()  # twice

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def gone(self, seconds: float = 10.0) -> float:
        "How long it takes until nobody is alive; fails if it takes longer."
        began = time.monotonic()
        while self.alive():
            if time.monotonic() - began > seconds:
                left = self.alive()
                for number in left:
                    os.kill(number, signal.SIGKILL)
                self.papermill.wait()
                pytest.fail(f"alive after {seconds:g} s: {left}\n{self.said()[-3000:]}")
            self.papermill.poll()
            time.sleep(0.05)
        return time.monotonic() - began

    def finish(self) -> None:
        assert self.papermill.wait(300) == 0, self.said()


@pytest.mark.parametrize("victim, number, workers, hangs", CELLS, ids=lambda value: getattr(value, "name", str(value)))
def test_nobody_is_left(victim, number, workers, hangs, small_world, tmp_path):
    run = Run(small_world, tmp_path, max_steps=1000, workers=workers, hangs=hangs)
    run.wait_for((lambda: "hangs" in run.said()) if hangs else run.saved)
    time.sleep(0.5 * hangs)
    several = len(run.alive())
    assert several >= 4 + int(PROCESSES) * workers - 1
    os.kill(run.find(victim), number)
    took = run.gone()
    status = run.papermill.wait()
    print(f"{victim:9} {number.name:7} workers {workers} hangs {hangs!s:5}: {several} processes gone after {took:.1f} s, papermill's status {status}")
    assert status != 0
    if victim in ("launcher", "rank") and not hangs:
        said = run.said()
        assert "HGLMMError" in said and ("What was saved is kept" in said)


@pytest.fixture(scope="module")
def undisturbed(small_world, tmp_path_factory):
    "The state of a run that nothing happened to, and its folder."
    run = Run(small_world, tmp_path_factory.mktemp("undisturbed"), max_steps=8)
    run.finish()
    return run


def content(folder: Path) -> dict:
    "All of the last state that must be the same, as text and bytes."
    state = states.read(folder / states.LAST)
    flat = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, dict):
            [add(f"{name}.{key}", one) for key, one in value.items()]
        elif isinstance(value, list | tuple):
            [add(f"{name}.{key}", one) for key, one in enumerate(value)]
        else:
            flat[name] = value.numpy().tobytes() if hasattr(value, "numpy") else value

    add("", {name: state[name] for name in ("head", "optimizer", "step", "position", "generators", "skipped")})
    return flat


def test_the_notebook_shows_what_the_processes_do(undisturbed):
    said = undisturbed.said()
    assert "32 samples" not in said and f"8 steps of 4 on {PROCESSES} processes, 1 at a time" in said and f"in each of {PROCESSES} processes" in said
    cells = nbformat.read(undisturbed.output, 4).cells
    pictures = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 4  # a sample, live curves, curves, a gallery
    assert [line["step"] for line in training.read_log(undisturbed.folder)] == [8]
    assert not undisturbed.alive()


def test_a_killed_process_is_started_again(undisturbed, small_world, tmp_path):
    "`max_restarts`: the run goes on from the last state as if nothing had happened."
    run = Run(small_world, tmp_path, max_steps=8, max_restarts=1, workers=1)
    run.wait_for(run.saved)
    victim = run.find("rank", 0)
    os.kill(victim, signal.SIGKILL)
    run.finish()
    assert "resumed at step" in run.said() and content(run.folder) == content(undisturbed.folder)


@pytest.mark.parametrize("round_", range(KILLS))
def test_killed_at_random_it_goes_on_to_the_bit(round_, undisturbed, small_world, tmp_path):
    chance = random.Random(f"{round_} {PROCESSES}")
    victims = []
    while True:
        run = Run(small_world, tmp_path, max_steps=8, workers=chance.choice([0, 1, 2]))
        if len(victims) == (1 if KILLS == 1 else chance.choice([1, 2])):
            break
        if KILLS > 1:
            run.wait_for(lambda run=run: run.find("rank"))
            time.sleep(chance.uniform(1, 16))
        else:
            run.wait_for(run.saved)
        victim, number = (chance.choice(["rank", "launcher", "kernel"]), chance.choice(SIGNALS)) if KILLS > 1 else ("kernel", signal.SIGKILL)
        found = run.find(victim, chance.choice([0, -1]))
        if not found:
            break  # it was faster
        step = states.read(run.folder / states.LAST)["step"] if (run.folder / states.LAST).exists() else 0
        victims.append(f"{victim} {number.name} at step {step}")
        os.kill(found, number)
        run.gone()
        run.papermill.wait()
    run.finish()
    print(f"round {round_}: {', '.join(victims) or 'nobody'}; gone on with to step {states.read(run.folder / states.LAST)['step']}")
    assert content(run.folder) == content(undisturbed.folder)


def test_the_error_is_of_the_process_that_failed(small_world, tmp_path, run_notebook):
    "A picture that cannot be read: the traceback of the process that met it is in the notebook, and not that of the others."
    world = shutil.copytree(small_world, tmp_path / "world")
    for path in sorted((world / "coco/train2017").glob("*.jpg"))[5:-5]:  # the first and the last one are looked at before
        path.write_bytes(path.read_bytes()[:300])
    status, said, runs = run_notebook("train", name="faulty", data=world, num_processes=2, batch_size=1, global_batch=4, max_steps=50, device="cpu", benchmarks="[png]")
    assert status != 0 and "HGLMMError: process" in said.replace("\x1b", "") and "of 2 failed: DataError" in said, said[-3000:]
    assert "Its traceback:" in said and "PeerLost" not in said.partition("Its traceback:")[2]
