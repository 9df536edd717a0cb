"SAM's attention in the 7B's tower: equal to transformers', in a fraction of its memory."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionAttention

from hglmm.lmm import deepseek_vision
from hglmm.lmm.deepseek_vision import SAMAttention
from hglmm.runs.speed import Meter
from hglmm.runs.tally import tally, without_numbers


def pair(side: int, heads: int = 2) -> tuple[SamVisionAttention, SAMAttention]:
    "transformers' attention over side x side cells, and ours with its weights."
    config = SamVisionConfig(hidden_size=16 * heads, num_attention_heads=heads, image_size=8 * side, patch_size=8)
    torch.manual_seed(0)
    theirs, ours = SamVisionAttention(config, 0), SAMAttention(config, 0)
    for place in (theirs.rel_pos_h, theirs.rel_pos_w):
        torch.nn.init.normal_(place, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return theirs.requires_grad_(False), ours.requires_grad_(False)


@pytest.mark.parametrize("bias", [1, 7 * 2 * 2 * 144, 2**24], ids=["one query", "seven queries", "all"])
def test_equal_in_portions_of_any_size(monkeypatch, bias):
    monkeypatch.setattr(deepseek_vision, "BIAS", bias)
    theirs, ours = pair(12)
    x = torch.randn(2, 12, 12, 32)
    assert torch.allclose(ours(x)[0], theirs(x)[0], atol=1e-5)


def main() -> None:
    "Bytes at the highest, ours and theirs, over those before: on 48 x 48 cells, of two pictures."
    deepseek_vision.BIAS = 2**20
    theirs, ours = pair(48)
    x, meter = torch.randn(2, 48, 48, 32), Meter(torch.device("cpu"))
    with torch.no_grad():
        ours(x[:1]), theirs(x[:, :4, :4].repeat(1, 12, 12, 1)[:1])  # code is loaded
        print(json.dumps([meter.measure(lambda one=one: one(x)[0])[2] for one in (ours, theirs)]))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_at_the_highest():
    "Theirs keeps maps of 85 MB, several at a time. In a process that gives freed memory back."
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, check=True)
    ours, theirs = json.loads(done.stdout)
    whole = 2 * 2 * 48**4 * 4
    assert theirs > 2 * whole and ours < whole / 4, (ours, theirs)


def test_a_batch_of_full_size_has_no_whole_map():
    "Eight pictures of 64 x 64 cells and twelve heads, counted: a single map would be 6.4 GB."
    with without_numbers(), torch.no_grad():
        attention = SAMAttention(SamVisionConfig(), 0)
        _, count = tally(lambda: attention(torch.empty(8, 64, 64, 768))[0])
    assert count.highest < 1.2 * 10**9 and count.products > 8 * 4 * 4096**2 * 768


def test_every_block_of_the_tower_reads_so():
    deepseek_vision.SAM_SIZES["small_sam"] = dict(deepseek_vision.SAM_SIZES["sam_b_downsample"], hidden_size=12, num_attention_heads=2, patch_size=8, window_size=3)
    try:
        tower = deepseek_vision.SAMTower(dict(model_name="small_sam", image_size=64), grid=4)
    finally:
        del deepseek_vision.SAM_SIZES["small_sam"]
    assert len(tower.encoder.layers) == 12 and all(type(layer.attn) is SAMAttention for layer in tower.encoder.layers)


if __name__ == "__main__":
    main()
