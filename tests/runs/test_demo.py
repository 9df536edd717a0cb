"`make demo`, with a few steps: the notebooks in a row, the score table, the pages."

import pytest

from hglmm import paths
from hglmm.runs import demo


@pytest.mark.slow
def test_the_demo_trains_measures_and_reports(small_world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HGLMM_RUNS", str(tmp_path))
    monkeypatch.setenv("HGLMM_DATA", str(small_world))
    scores = demo.main("small", evaluation={"limit": 3}, max_steps=3, batch_size=2)
    said = capsys.readouterr().out
    assert set(scores) == set(demo.TASKS) and "toycoco refcoco val (hg)" in scores["eval_res"]["scores"]
    for name in ("train", *demo.TASKS):
        assert f"{tmp_path / 'small' / name}.html" in said and (tmp_path / "small" / f"{name}.html").stat().st_size > 10_000
    assert "cIoU" in said and not [noise for noise in ("Executing Cell", "WARNING", "Warning") if noise in said]
    assert paths.run_folder("small") == tmp_path / "small"
