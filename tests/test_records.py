"""Records under kill -9: real processes, really killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hglmm.records import Records

PROGRAM = """
import sys, time
from hglmm.records import Records
folder, process, processes, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
records = Records(folder, process, {"threshold": 0.5})
done = records.done()
for index in range(process, 60, processes):
    if str(index) not in done:
        records.add(str(index), index, [{"iou": index / 60 + k, "note": "x" * 3000} for k in range(index % 4)])
        time.sleep(pause)
"""


def start(folder: Path, process: int, processes: int, pause: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), str(process), str(processes), str(pause)], cwd=Path(__file__).parents[1])


def test_killed_runs_resume_to_the_same_table(tmp_path: Path) -> None:
    assert start(tmp_path / "whole", 0, 1, 0).wait() == 0
    expected = Records(tmp_path / "whole").table()
    resumed = tmp_path / "resumed"
    for processes in (3, 2):
        running = [start(resumed, p, processes, 0.03) for p in range(processes)]
        before = len(Records(resumed).done())
        deadline = time.time() + 60
        while len(Records(resumed).done()) < before + 8 and time.time() < deadline:
            time.sleep(0.01)
        for process in running:
            process.send_signal(signal.SIGKILL)
        assert [process.wait() for process in running] == [-signal.SIGKILL] * processes
    torn = resumed / "records-00000.jsonl"
    torn.write_bytes(torn.read_bytes()[:-1500])
    assert 8 < len(Records(resumed).done()) < 60
    assert start(resumed, 0, 1, 0).wait() == 0
    table = Records(resumed).table()
    assert set(table) == set(expected) and all(np.array_equal(table[name], expected[name]) for name in table)
    assert Records(resumed).done() == {str(i) for i in range(60)}  # those without a phrase too
