"""Training on several processes under papermill, killed: nobody is left, the error says why, and it goes on to the bit.

make test kills a few times. `HGLMM_MATRIX=1 pytest tests/runs/test_kills.py` goes through every victim and signal, with and without processes that read ahead;
`HGLMM_KILLS=5 HGLMM_ROUNDS=4 HGLMM_PROCESSES=2` kills four runs up to five times each, at random. What was seen is printed with -s.
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
from functools import partial
from pathlib import Path

import nbformat
import pytest

from hglmm.checkpoints import states
from hglmm.runs import training

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow_heads")]

ROOT = Path(__file__).resolve().parents[2]
KILLS, ROUNDS, PROCESSES = int(os.environ.get("HGLMM_KILLS", 1)), os.environ.get("HGLMM_ROUNDS", "1"), os.environ.get("HGLMM_PROCESSES", "2")
ROUNDS = range(*map(int, ROUNDS.split(":"))) if ":" in ROUNDS else range(int(ROUNDS))  # 4, or 2:4 for the last two of four
STEPS = 6 if KILLS == 1 else 30
VICTIMS, SIGNALS = ("papermill", "kernel", "launcher", "rank"), (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
EVERY = [(*one, workers, False) for one in itertools.product(VICTIMS, SIGNALS) for workers in (0, 2)] + [("kernel", signal.SIGKILL, 0, True), ("launcher", signal.SIGKILL, 0, True)]
SMALL = {"epochs": 1000, "batch_size": 1, "global_batch": 4, "save_every": 1, "device": "cpu", "benchmarks": "[png]"}
FULL = """
import os, torch
save, count = torch.save, []

def full(state, part, **more):
    if not hasattr(part, "write_bytes"):  # what torch writes into memory, to send it
        return save(state, part, **more)
    count.append(part)
    if len(count) == int(os.environ["FULL"]):
        part.write_bytes(bytes(1000))
        raise OSError(28, "No space left on device", str(part))
    save(state, part)

torch.save = full
"""
FAULT = """
import os
import torch.distributed as dist
from hglmm.runs import launch
add_up, count = launch.add_up, []

def faulty(row):
    count.append(row)
    if len(count) == 4 and launch.rank() == 1:
        if os.environ["FAULT"] == "hangs":
            print("hangs", flush=True)
            dist.recv(row)  # nobody sends
        elif os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), 9)
    return add_up(row)

launch.add_up = faulty
"""
SITE = f"""
import os, sys  # in a process that trains, just started
if "hglmm.runs.training" in sys.orig_argv:
    from zygote import narrow_recipes
    narrow_recipes()
    os.environ.get("FULL") and exec({FULL!r}, {{}})
    os.environ.get("FAULT") and exec({FAULT!r}, {{}})
"""


def site(folder: Path) -> str:
    "A path for Python on which `SITE` is the first thing that happens."
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site/sitecustomize.py").write_text(SITE)
    return os.pathsep.join([str(folder / "site"), str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])


class Run:
    "A training run under papermill, and every process that came of it."

    def __init__(self, world: Path, folder: Path, name: str = "run", processes: str = PROCESSES, hangs: bool = False, full: int = 0, **parameters: object):
        self.folder, self.mark, self.full = folder / name, uuid.uuid4().hex, full
        told = {"name": name, "data": world, "num_processes": processes, **SMALL, **parameters}
        environment = {**os.environ, "HGLMM_RUNS": str(folder), "MARK": self.mark, "PYTHONPATH": site(folder), "FAULT": "hangs" if hangs else "", "FULL": str(full or ""), "IPYTHONDIR": str(folder / "ipython")}
        self.output = folder / f"{name}.ipynb"
        words = [str(ROOT / "nbs/runs/train.ipynb"), str(self.output), "--cwd", str(ROOT), "--log-output", "--no-progress-bar"]
        words += [word for key, value in told.items() for word in ("-p", key, str(value))]
        self.log = folder / f"{name}-{self.mark[:4]}.log"
        with self.log.open("w") as file:
            hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background ignore Ctrl-C, and what they start would too
            command = [sys.executable, "-m", "papermill", *words]
            self.papermill = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True, preexec_fn=hear)

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


@pytest.mark.skipif("HGLMM_MATRIX" not in os.environ, reason="ten minutes; HGLMM_MATRIX=1 asks for it")
@pytest.mark.parametrize("victim, number, workers, hangs", EVERY, ids=lambda value: getattr(value, "name", str(value)))
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
def undisturbed(narrow_heads, small_world, run_notebook):
    "A run that nothing happened to: its folder, and what was said."
    status, said, runs = run_notebook("train", name="undisturbed", data=small_world, num_processes=PROCESSES, max_steps=STEPS, **SMALL)
    assert status == 0, said
    return runs / "undisturbed", said


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
    folder, said = undisturbed
    assert f"{STEPS} steps of 4 on {PROCESSES} processes, 1 at a time" in said and f"in each of {PROCESSES} processes" in said
    assert said.count(f"training the head: {STEPS}/{STEPS} (100%)") == 1 and "from png val" in said
    executed = max(folder.parent.glob("train-*.ipynb"), key=os.path.getmtime)
    pictures = [o for c in nbformat.read(executed, 4).cells if c.cell_type == "code" for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3  # a sample, curves, a gallery
    assert training.read_log(folder)[-1]["step"] == STEPS and (folder / "head/model.safetensors").exists()


def test_a_killed_process_is_started_again(undisturbed, small_world, run_notebook, monkeypatch):
    "`max_restarts`: the run goes on from the last state as if nothing had happened."
    monkeypatch.setenv("FIRST", FAULT)
    monkeypatch.setenv("FAULT", "killed")
    status, said, runs = run_notebook("train", name="again", data=small_world, num_processes=2, max_steps=STEPS, max_restarts=1, workers=1, **SMALL)
    assert status == 0 and "resumed at step 3" in said, said
    assert PROCESSES != "2" or content(runs / "again") == content(undisturbed[0])


def disturb(run: Run, chance: random.Random) -> str:
    "Kill something of a run at random; what it was."
    if run.full:
        if not run.papermill.wait(300):  # it was faster
            return ""
        assert "No space left on device" in run.said() and not run.alive(), run.said()
        return f"disk full at save {run.full}"
    victim, number = chance.choice(VICTIMS[1:]), chance.choice(SIGNALS)
    if KILLS == 1:
        victim, number = "papermill", signal.SIGTERM  # kernel, launcher, processes and their readers have to notice one after the other
        run.wait_for(run.saved)
    else:
        run.wait_for(lambda: run.find("rank"))
        time.sleep(chance.uniform(1, 14))
    found = run.find(victim, chance.choice([0, -1]))
    step = states.read(run.folder / states.LAST)["step"] if (run.folder / states.LAST).exists() else 0
    if found:
        os.kill(found, number)
        took = run.gone()
        run.papermill.wait()
    return f"{victim} {number.name} at step {step}, gone after {took:.1f} s" if found else ""


@pytest.mark.parametrize("round_", ROUNDS)
def test_killed_at_random_it_goes_on_to_the_bit(round_, undisturbed, small_world, tmp_path):
    chance, done = random.Random(f"{round_} {PROCESSES}"), []
    for kill in range(KILLS):
        full = chance.choice([2, 3, 5]) if KILLS > 1 and kill == KILLS - 1 else 0
        run = Run(small_world, tmp_path, max_steps=STEPS, full=full, workers=chance.choice([0, 1, 2]) if KILLS > 1 else 1)
        done.append(disturb(run, chance))
    run = Run(small_world, tmp_path, max_steps=STEPS, workers=chance.choice([0, 1, 2]))
    run.finish()
    assert not run.alive()
    print(f"round {round_}, {PROCESSES} processes: {'; '.join(filter(None, done))}; ended at step {states.read(run.folder / states.LAST)['step']}")
    assert content(run.folder) == content(undisturbed[0])


def test_the_error_is_of_the_process_that_failed(small_world, tmp_path, run_notebook):
    "A picture that cannot be read: the traceback of the process that met it is in the notebook, and not that of the others."
    world = shutil.copytree(small_world, tmp_path / "world")
    for path in sorted((world / "coco/train2017").glob("*.jpg"))[5:-5]:  # the first and the last one are looked at before
        path.write_bytes(path.read_bytes()[:300])
    status, said, runs = run_notebook("train", name="faulty", data=world, num_processes=2, batch_size=1, global_batch=4, max_steps=50, device="cpu", benchmarks="[png]")
    assert status != 0 and "HGLMMError: process" in said.replace("\x1b", "") and "of 2 failed: DataError" in said, said[-3000:]
    assert "Its traceback:" in said and "PeerLost" not in said.partition("Its traceback:")[2]
