"""Evaluation on several processes: killed at random points and resumed, it ends at the records of an undisturbed run.

`HGLMM_KILLS=20 pytest tests/test_workers.py` kills twenty times; make test a few times.
"""

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

from hglmm.evaluation import png_scores
from hglmm.records import Records, _samples
from hglmm.tasks import Benchmark, Job

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("HGLMM_KILLS", 3))
RUN = "import sys; from pathlib import Path; from hglmm import workers; from hglmm.tasks import Job; p = Path(sys.argv[1]); workers.run(Job.read(p), p.parent, int(sys.argv[2]))"


def make_job(world: Path, folder: Path) -> Path:
    "A job of one benchmark, on disk."
    folder.mkdir()
    benchmark = Benchmark("PNG val", "png", str(world), str(folder / "val"), {"split": "val"})
    return Job("toy_llava", "checkpoints/toy_head", [benchmark], batch_size=2, device="cpu").write(folder / "job.json")


def start(job: Path, processes: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", RUN, str(job), str(processes)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(job: Path, processes: int) -> str:
    run = start(job, processes)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said
    return said


def workers_of(job: Path) -> list[int]:
    "Process numbers of the workers of a job."
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"hglmm.workers" in words and str(job).encode() in words:
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
def undisturbed(small_world, tmp_path_factory):
    job = make_job(small_world, tmp_path_factory.mktemp("jobs") / "undisturbed")
    began = time.perf_counter()
    finish(job, 1)
    return *contents(job), time.perf_counter() - began


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_table(processes, undisturbed, small_world, tmp_path):
    job = make_job(small_world, tmp_path / "job")
    said = finish(job, processes)
    assert contents(job) == undisturbed[:2]
    assert "PNG val: 12/12 (100%)" in said


@pytest.mark.parametrize("round_", range(KILLS))
def test_a_killed_run_goes_on_where_it_was(round_, undisturbed, small_world, tmp_path):
    chance = random.Random(round_)
    job = make_job(small_world, tmp_path / "job")
    processes = chance.choice([2, 3])
    run = start(job, processes)
    time.sleep(chance.uniform(0.3, 1.0) * undisturbed[2])
    workers = workers_of(job)
    if workers and chance.random() < 0.5:
        os.kill(chance.choice(workers), signal.SIGKILL)
        said, _ = run.communicate(timeout=120)
        assert run.returncode in (0, 1)  # 0: that worker was done already
        assert run.returncode == 0 or "was killed by signal 9" in said
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
    assert run.returncode == 1 and "checkpoints/nowhere: no such folder" in said and not workers_of(job)
