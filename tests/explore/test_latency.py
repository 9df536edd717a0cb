"""From a click to the painted frame, measured in the page, with toy_llava and with 500 words of 384 maps: `HGLMM_LATENCY=1 pytest -s tests/explore/test_latency.py`."""

import os
import statistics
from pathlib import Path

import nbformat
import pytest
from browser import OPTIONS, Lab, find_chromium, serve

sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright (nothing else has to be downloaded)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif("HGLMM_LATENCY" not in os.environ, reason="times of an idle machine; HGLMM_LATENCY=1 asks for them")]
TOY = """
from hglmm.explore import Explorer
from hglmm.grounder import Grounder
from hglmm.toy.files import split_scene

explorer = Explorer(Grounder.load("toy_llava", device="cpu"), split_scene(0, "val", 1).image)
explorer
"""
LARGE = """
import numpy as np
import torch
from hglmm.explore.maps import MapStore
from hglmm.explore.state import Exploration
from hglmm.explore.view import View
from hglmm.geometry import Letterbox
from hglmm.grounder import Grounder
from hglmm.lmm.answers import Token
from hglmm.toy.files import split_scene

explored = Exploration(Grounder.load("toy_llava", device="cpu"), split_scene(0, "val", 1).image)
explored.tokens = [Token(f"w{k} ", 0, "answer", 5 * k, 5 * k + 4, k) for k in range(500)]
explored.store = MapStore(torch.rand(500, 384, 24, 24, dtype=torch.bfloat16) / 576, 24)
explored.features.letterbox = Letterbox.fit(*explored.image.size, 384, 14)
Exploration.probabilities = lambda self, which="a": np.linspace(0, 1, self.image.width * self.image.height, dtype=np.float32).reshape(self.image.height, self.image.width)  # of a head of that size: not what is measured
explored.phrases = [("all of it", list(range(500)))]
explorer = View(explored)
explorer
"""
CLICKS = """async how => { const root = document.querySelector('[data-testid=explorer]'), spent = [], until = async before => { while (+root.dataset.frame === before) await new Promise(r => requestAnimationFrame(r)); await new Promise(r => requestAnimationFrame(r)); };
  const chips = [...root.querySelectorAll('.hg-chip[data-word]')].filter(c => c.getAttribute('aria-disabled') !== 'true'), layer = root.querySelector('[data-testid=layer]');
  for (let k = 0; k < 20; k++) {
    const before = +root.dataset.frame, began = performance.now();
    if (how === 'word') chips[(k * 7 + 3) % chips.length].click();
    else if (how === 'all') { chips[k % 5].click(); await until(+root.dataset.frame); }
    else { layer.value = k % (+layer.max + 1); layer.dispatchEvent(new Event('input')); }
    await until(before);
    spent.push(performance.now() - began);
    await new Promise(r => setTimeout(r, 400));
  }
  return spent; }"""


def memory(folder: Path) -> dict[str, float]:
    "MiB of the browser, and of the kernels below a folder; pages shared by several counted once."
    found = {"browser": 0.0, "kernel": 0.0}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode(errors="replace")
            which = "browser" if "chromium" in words else "kernel" if "ipykernel_launcher" in words and str(folder) in words else None
            if which:
                found[which] += next(int(line.split()[1]) for line in (place / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:")) / 1024
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("name", "cell", "click", "slide"), [("toy", TOY, 100, 30), ("500 words x 384 maps", LARGE, 150, 30)])
def test_click_to_painted_frame(name, cell, click, slide, tmp_path):
    nbformat.write(nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}, cells=[nbformat.v4.new_code_cell(cell)]), tmp_path / "one.ipynb")
    with sync_api.sync_playwright() as playwright, serve(tmp_path) as address:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=OPTIONS)
        lab = Lab(browser, address)
        lab.open("one.ipynb")
        lab.run_all()
        if name != "toy":
            lab.ready()
            lab.part("phrase-0").click()  # all 500 words at once
        lab.ready()
        spent = {how: sorted(lab.page.evaluate(CLICKS, how)) for how in ("word", "layer")}
        used = memory(tmp_path)
        assert not lab.errors and not lab.outside and not lab.text("fault")
        browser.close()
    print(f"\n{name}: " + "; ".join(f"{how} median {statistics.median(times):.0f} ms, 90 % {times[17]:.0f} ms" for how, times in spent.items()) + f"; {used['browser']:.0f} MiB browser, {used['kernel']:.0f} MiB kernel; load {os.getloadavg()[0]:.1f}")
    assert statistics.median(spent["word"]) < click and statistics.median(spent["layer"]) < slide
    assert name == "toy" or sum(used.values()) < 1280  # JupyterLab in the browser has 500 of it, torch with toy_llava 460
