"""Evaluation on several processes: killed at random points and resumed, it ends at the records of an undisturbed run.

`HGLMM_KILLS=20 pytest tests/runs/test_workers.py` kills twenty times; make test a few times.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from hglmm.runs import workers
from hglmm.runs.benchmarks import Benchmark
from hglmm.runs.records import Records, _samples
from hglmm.runs.scores import png_scores
from hglmm.runs.tasks import Job

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("HGLMM_KILLS", 2))
RUN = "import sys; from pathlib import Path; from hglmm.runs import workers; from hglmm.runs.tasks import Job; p = Path(sys.argv[1]); workers.run(Job.read(p), p.parent, int(sys.argv[2]))"


def make_job(world: Path, folder: Path) -> Path:
    "A job of one benchmark, on disk."
    folder.mkdir()
    benchmark = Benchmark("PNG val", "png", str(world), str(folder / "val"), {"split": "val"})
    return Job("toy_llava", "checkpoints/toy_head", [benchmark], batch_size=2, device="cpu").write(folder / "job.json")


def start(job: Path, processes: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", RUN, str(job), str(processes)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def finish(zygote):
    "Do a job to its end, in a process that need not import torch, and workers that need not either."

    def run(job: Path, processes: int) -> str:
        status, said = zygote.run("python", "-c", RUN, str(job), str(processes), timeout=300)
        assert status == 0, said
        return said

    return run


def workers_of(job: Path) -> list[int]:
    "Process numbers of the workers of a job."
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"hglmm.runs.workers" in words and str(job).encode() in words:
            found.append(int(entry.parent.name))
    return found


def contents(job: Path) -> tuple[dict[str, list], dict]:
    "Table and scores; every sample must be noted once."
    records = Records(job.parent / "val")
    noted = Counter(rows[0]["sample"] for path in records.folder.glob("records-*.jsonl") for _, _, rows in _samples(path))
    assert set(noted.values()) == {1}
    table = records.table()
    return {name: column.tolist() for name, column in table.items()}, png_scores(table)


@pytest.fixture(scope="module")
def undisturbed(small_world, finish, tmp_path_factory):
    job = make_job(small_world, tmp_path_factory.mktemp("jobs") / "undisturbed")
    began = time.perf_counter()
    finish(job, 1)
    return *contents(job), 6 + time.perf_counter() - began  # about what the imports of another take


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_table(processes, finish, undisturbed, small_world, tmp_path):
    job = make_job(small_world, tmp_path / "job")
    said = finish(job, processes)
    assert contents(job) == undisturbed[:2]
    assert "PNG val: 12/12 (100%)" in said


@pytest.mark.parametrize("round_", range(KILLS))
def test_a_killed_run_goes_on_where_it_was(round_, finish, undisturbed, small_world, tmp_path):
    chance = random.Random(round_)
    job = make_job(small_world, tmp_path / "job")
    processes = chance.choice([2, 3])
    run = start(job, processes)
    time.sleep(chance.uniform(0.3, 1.0) * undisturbed[2])
    running = workers_of(job)
    if running and chance.random() < 0.5:
        os.kill(chance.choice(running), signal.SIGKILL)
        said, _ = run.communicate(timeout=120)
        assert run.returncode in (0, 1)  # 0: that worker was done already
        assert run.returncode == 0 or "was ended by signal 9 (SIGKILL), perhaps by the kernel for want of memory" in said
    else:
        run.kill()
        run.wait()
    until = time.monotonic() + 20
    while workers_of(job) and time.monotonic() < until:
        time.sleep(0.2)
    assert not workers_of(job), "a stopped run left workers behind"
    finish(job, chance.choice([1, 2, 3]))
    assert contents(job) == undisturbed[:2]


def test_a_worker_that_fails_fails_the_run_and_is_heard(small_world, tmp_path):
    job = make_job(small_world, tmp_path / "job")
    content = json.loads(job.read_text())
    job.write_text(json.dumps({**content, "head": "checkpoints/nowhere"}))
    run = start(job, 2)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 1 and "checkpoints/nowhere" in said and "no such file or folder" in said and not workers_of(job)


# what goes wrong in a worker: put in place of `tasks.measure` before workers are forked
FAULTY = """
import os, subprocess, sys, time
from pathlib import Path
from hglmm.runs import tasks, workers
from hglmm.runs.tasks import Job

def faulty(job, benchmark, data, process=0, processes=1, advance=None):
    fault = os.environ["FAULT"]
    if fault == "stray":
        os.write(1, b"loading kernels ... \\n[1, 2\\nnull\\n" + bytes(range(256)) + b"\\n")
        print("printed", [0, 1, 2]); subprocess.run(["echo", "[0, 12, 12]"])
    if fault == "stray_pipe":
        for fd in range(3, 64):  # whoever writes on anything that is open
            try:
                os.write(fd, b"\\nnonsense\\n[0, 1]\\n" + bytes(range(128, 256)) + b"\\n")
            except OSError:
                pass
    if fault == "grandchild" and os.fork() == 0:
        time.sleep(60); os._exit(0)
    if process == 1:
        if fault == "killed":
            os.kill(os.getpid(), 9)
        if fault == "hangs":
            time.sleep(600)
    elif fault == "killed":
        time.sleep(600)
    return measure(job, benchmark, data, process, processes, advance)

measure, tasks.measure = tasks.measure, faulty
path = Path(sys.argv[1])
workers.run(Job.read(path), path.parent, 2, patience=float(sys.argv[2]))
"""


@pytest.fixture
def faulty(tmp_path, zygote, small_world):
    "Run a job with two workers of which something is the matter: the job, did it end well, what was said."
    path = make_job(small_world, tmp_path / "job")

    def run(fault: str, patience: float = 3600) -> tuple[Path, bool, str]:
        status, said = zygote.run("python", "-c", FAULTY, str(path), str(patience), timeout=300, environment={**os.environ, "FAULT": fault, "MARK": str(path)})
        return path, status == 0, said

    yield run
    assert not marked(path), "a worker is left"


def marked(path: Path) -> list[int]:
    "Process numbers of what came of a job that `faulty` ran, but for the grandchild."
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"MARK={path}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("fault", ["stray", "stray_pipe"])
def test_stray_lines_are_no_messages(fault, faulty, undisturbed):
    path, good, said = faulty(fault)
    assert good and contents(path) == undisturbed[:2] and "PNG val: 12/12 (100%)" in said, said
    assert fault != "stray" or "printed [0, 1, 2]\n[0, 12, 12]" in (path.parent / "worker-00001.log").read_text(errors="replace")


def test_a_killed_worker_is_noticed_while_another_hangs(faulty):
    _, good, said = faulty("killed")
    assert not good and "worker 1 was ended by signal 9 (SIGKILL), perhaps by the kernel for want of memory; the others were stopped" in said


def test_what_a_worker_leaves_behind_holds_nobody_up(faulty, undisturbed):
    began = time.monotonic()
    path, good, said = faulty("grandchild")
    assert good and contents(path) == undisturbed[:2], said
    assert time.monotonic() - began < 50  # of its child's 60 s


def test_a_worker_that_hangs_is_stopped_and_says_where(faulty):
    path, good, said = faulty("hangs", patience=10)
    assert not good and "worker 1 has said nothing for 10 s, so it was taken to hang" in said and "The end of" in said, said
    assert " in faulty" in (path.parent / "worker-00001.log").read_text(errors="replace")


def test_an_outer_jobs_variables_mean_nothing(finish, undisturbed, small_world, tmp_path, monkeypatch):
    outer = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in outer.items():
        monkeypatch.setenv(name, value)
    for processes in (1, 2):
        job = make_job(small_world, tmp_path / str(processes))
        finish(job, processes)
        assert contents(job) == undisturbed[:2]


def test_another_launcher_starts_workers_too(undisturbed, small_world, tmp_path):
    job = make_job(small_world, tmp_path / "job")
    started = [
        subprocess.Popen([sys.executable, "-m", "hglmm.runs.workers", str(job)], env={**os.environ, "RANK": str(k), "WORLD_SIZE": "2"}, stdout=subprocess.PIPE, text=True)
        for k in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0] and contents(job) == undisturbed[:2]
    assert "PNG val: 6/6 (100%)" in said[0] and not said[1]


ORPHAN = """
import subprocess, sys, time
child = "import sys, time; from hglmm.runs import workers; workers.work = lambda *_: (print('at work', flush=True), time.sleep(600)); workers.main(sys.argv[1])"
worker = subprocess.Popen([sys.executable, "-c", child, sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(worker.pid, worker.stdout.readline(), flush=True)
time.sleep(600)
"""


def test_a_worker_ends_with_the_process_that_started_it(small_world, tmp_path):
    job = make_job(small_world, tmp_path / "job")
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN, str(job)], stdout=subprocess.PIPE, text=True)
    worker, *said = parent.stdout.readline().split()
    assert said == ["at", "work"]
    time.sleep(1)
    assert alive(int(worker))
    parent.kill()
    parent.wait()
    until = time.monotonic() + 15
    while alive(int(worker)) and time.monotonic() < until:
        time.sleep(0.1)
    if alive(int(worker)):
        os.kill(int(worker), signal.SIGKILL)
        pytest.fail("the worker goes on without its parent")


def alive(pid: int) -> bool:
    "Is this process running? One that has ended and was not waited for is not."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_whose_parent_was_gone_before_it_began_ends_too(small_world, tmp_path):
    job = make_job(small_world, tmp_path / "job")
    gone = subprocess.Popen(["true"])
    gone.wait()
    orders = {"HGLMM_WORKER": f"1 {workers._digest(job.read_bytes())}", "HGLMM_PARENT": str(gone.pid)}
    child = "import sys, time; from hglmm.runs import workers; workers.work = lambda *_: time.sleep(600); workers.main(sys.argv[1])"
    assert subprocess.run([sys.executable, "-c", child, str(job)], env={**os.environ, **orders}, timeout=60).returncode == 3


def test_a_job_that_another_run_replaced_is_not_done(small_world, tmp_path):
    job = make_job(small_world, tmp_path / "job")
    done = subprocess.run(
        [sys.executable, "-m", "hglmm.runs.workers", str(job)], env={**os.environ, "HGLMM_WORKER": "1 other"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "replaced by another run" in done.stderr and not (job.parent / "val").exists()
