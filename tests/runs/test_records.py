"""Records under kill -9 and on poor disks: real processes, really killed; many claimants at once."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hglmm.errors import DataError, SettingError
from hglmm.runs import records as module
from hglmm.runs.records import Records, _samples

PROGRAM = """
import sys, time
from hglmm.runs.records import Records
folder, process, processes, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
records = Records(folder, process, {"threshold": 0.5})
done = records.done()
for index in range(process, 240, processes):
    if str(index) not in done:
        records.add(str(index), index, [{"iou": index / 240 + k, "note": "x" * 3000} for k in range(index % 4)])
        time.sleep(pause)
"""


def start(folder: Path, process: int, processes: int, pause: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), str(process), str(processes), str(pause)], cwd=Path(__file__).parents[2])


def test_killed_runs_resume_to_the_same_table(tmp_path: Path) -> None:
    assert start(tmp_path / "whole", 0, 1, 0).wait() == 0
    expected = Records(tmp_path / "whole").table()
    resumed = tmp_path / "resumed"
    for processes in (3, 2):
        running = [start(resumed, p, processes, 0.03) for p in range(processes)]
        before = len(Records(resumed).done())
        own = [resumed / f"records-{p:05d}.jsonl" for p in range(processes)]
        deadline = time.time() + 120  # each has written: on a busy machine one of them is seconds behind the others
        while time.time() < deadline and (len(Records(resumed).done()) < before + 8 or any(not f.exists() or f.stat().st_size < 4000 for f in own)):
            time.sleep(0.01)
        for process in running:
            process.send_signal(signal.SIGKILL)
        assert [process.wait() for process in running] == [-signal.SIGKILL] * processes
    torn = resumed / "records-00000.jsonl"
    torn.write_bytes(torn.read_bytes()[:-1500])
    assert 8 < len(Records(resumed).done()) < 240, "killed before they were done, after they had begun"
    assert start(resumed, 0, 1, 0).wait() == 0
    table = Records(resumed).table()
    assert set(table) == set(expected) and all(np.array_equal(table[name], expected[name]) for name in table)
    assert Records(resumed).done() == {str(i) for i in range(240)}  # those without a phrase too


@pytest.fixture(params=[None, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK], ids=lambda code: errno.errorcode.get(code, "links"))
def disk(request, monkeypatch):
    "A disk with hard links, and those without."
    if request.param is not None:

        def link(*_, **__):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(os, "link", link)


def test_of_many_claimants_one_wins_and_the_others_hear_of_it(disk, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1234)  # as on two machines that share a disk
    for trial in range(20):
        folder, said, start = tmp_path / str(trial), {}, threading.Barrier(8)

        def claim(k: int, folder=folder, said=said, start=start) -> None:
            start.wait()
            try:
                Records(folder, 0, {"threshold": k // 2, "long": "x" * 5000})
            except SettingError as error:
                said[k] = str(error)

        claimants = [threading.Thread(target=claim, args=(k,)) for k in range(8)]
        for thread in claimants:
            thread.start()
        for thread in claimants:
            thread.join(30)
        won = json.loads((folder / "config.json").read_text())["threshold"]
        assert set(said) == {k for k in range(8) if k // 2 != won}
        assert all(f"threshold: recorded {won}, now {k // 2}" in message for k, message in said.items())
        assert [p.name for p in folder.iterdir()] == ["config.json"]


def test_what_killed_claimants_left_is_no_hindrance(disk, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    marker, fresh, stale = tmp_path / ".config.json.claim", tmp_path / ".config.json.5", tmp_path / ".config.json.6"
    for path in (marker, fresh, stale):
        path.write_text('{"thresho')
    os.utime(stale, (1e9, 1e9))
    Records(tmp_path, 0, {"threshold": 0.5})
    assert json.loads((tmp_path / "config.json").read_text()) == {"threshold": 0.5}
    assert fresh.exists() and not stale.exists()  # the fresh one may be another's who is still writing


@pytest.mark.parametrize("content", ["", '{"threshold": 0.', "[1]", "\xff"])
def test_a_damaged_config_is_named(content, tmp_path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"config\.json: cannot be read as the settings of records"):
        Records(tmp_path, 0, {"threshold": 0.5})


def test_two_runs_at_once_do_not_write_into_one_file(tmp_path) -> None:
    pens = [Records(tmp_path, 0, {"threshold": 0.5}) for _ in range(3)]
    for index in range(30):
        for pen in pens:
            pen.add(f"s{index}", index, [{"iou": index / 30, "note": "x" * 2000}])
            pen.fail(100 + index, ValueError("no"))
    files = sorted(tmp_path.glob("records-*.jsonl"))
    assert [f.name for f in files] == ["records-00000.jsonl", "records-00000_001.jsonl", "records-00000_002.jsonl"]
    assert all([first["index"] for _, first, _ in _samples(f)] == list(range(30)) for f in files)
    assert Records(tmp_path).table()["iou"].tolist() == [index / 30 for index in range(30)]
    assert [f.index for f in Records(tmp_path).failures()] == list(range(100, 130))


def test_a_torn_end_stays_and_counts_for_nothing(tmp_path) -> None:
    first = Records(tmp_path)
    first.add("a", 0, [{"iou": 0.5}, {"iou": 0.25}])
    first.add("b", 1, [{"iou": 0.5}, {"iou": 0.75}])
    whole = first._pen.name
    first.close()
    os.truncate(whole, Path(whole).stat().st_size - 20)
    assert Records(tmp_path).done() == {"a"}
    second = Records(tmp_path)
    second.add("b", 1, [{"iou": 0.5}, {"iou": 0.75}])
    assert Records(tmp_path).table()["iou"].tolist() == [0.5, 0.25, 0.5, 0.75]
