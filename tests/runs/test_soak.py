"""Training and evaluation in a loop, in one process: `HGLMM_SOAK=30 pytest -s tests/runs/test_soak.py` does it for thirty minutes and looks that nothing grows and nothing is left."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from hglmm.runs import tasks, training, training_data, training_plan, workers
from hglmm.runs.benchmarks import choose

MINUTES = float(os.environ.get("HGLMM_SOAK", 0))
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow_heads"), pytest.mark.skipif(not MINUTES, reason="minutes; HGLMM_SOAK=30 asks for thirty")]


def held() -> dict[str, float]:
    "What this process holds: memory of its own in MiB, open files, pieces of shared memory of the machine, processes below it."
    status = Path("/proc/self/smaps_rollup").read_text()
    below = [place for place in Path("/proc").glob("[0-9]*/stat") if _parent(place) == os.getpid()]
    return {
        "memory": next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Anonymous:")) / 1024,
        "files": len(os.listdir("/proc/self/fd")), "shared": len(os.listdir("/dev/shm")), "processes": len(below),
    }  # fmt: skip


def _parent(stat: Path) -> int:
    try:
        state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return 0
    return 0 if state == "Z" else int(parent)


def test_nothing_grows_and_nothing_is_left(small_world, tmp_path, monkeypatch):
    monkeypatch.setenv("HGLMM_RUNS", str(tmp_path))
    begun, rows, turn = time.monotonic(), [], 0
    while time.monotonic() - begun < 60 * MINUTES:
        words = {"name": f"run{turn}", "data": small_world, "max_steps": 8, "batch_size": 2, "workers": 2, "save_every": 4, "validate_every": 4, "validate_pictures": 4, "feature_cache": "levels", "device": "cpu"}
        settings = training_plan.asked(training_plan.read_words([text for key, value in words.items() for text in ("-p", key, str(value))]))
        data = training_data.open_data(small_world, settings.benchmarks, settings.draw_once)
        training.open_trainer(settings, training_plan.plan(settings, len(data), 1, 0), data, small_world).fit()
        folder = tmp_path / f"eval{turn}"
        chosen = choose("res", small_world, folder, [{"dataset": "refcoco", "split": "val", "protocol": "standard"}], 8)
        workers.run(tasks.Job("toy_llava", str(tmp_path / f"run{turn}/head"), list(chosen.values()), device="cpu"), folder, 1, 600)
        rows.append({"minute": (time.monotonic() - begun) / 60, **held()})
        turn += 1
    settled = rows[len(rows) // 4 :]  # pools and caches have filled
    minutes, memory = np.array([row["minute"] for row in settled]), np.array([row["memory"] for row in settled])
    slope = np.polyfit(minutes, memory, 1)[0] * (minutes[-1] - minutes[0]) / memory.mean()
    print(f"\n{turn} rounds of training and evaluation in {rows[-1]['minute']:.1f} minutes: memory {memory[0]:.0f} to {memory[-1]:.0f} MiB, {100 * slope:+.2f} % over the last three quarters; "
          + ", ".join(f"{name} {settled[0][name]:.0f} to {settled[-1][name]:.0f}" for name in ("files", "shared", "processes")))  # fmt: skip
    assert abs(slope) < 0.01 or slope < 0
    assert settled[-1]["files"] <= settled[0]["files"] and settled[-1]["shared"] <= settled[0]["shared"] and settled[-1]["processes"] <= settled[0]["processes"]
