"A revision of the hub reaches all that is fetched: configuration, tokenizer, picture settings and weights alike; SAM, a tower and a head have their own. The hub is a process on this machine."

import json
import os
import re
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from test_hub import Hub

from hglmm import recipes
from hglmm.errors import CheckpointError, SettingError
from hglmm.lmm.frozen import FrozenLMM
from hglmm.lmm.hub import find_weights

TOY = Path(find_weights("checkpoints/toy_llava"))
COMMITS = {"main": "a" * 40, "before": "b" * 40}


class Versions(Hub):
    "The same repositories at two revisions."

    repositories: dict[str, dict[str, bytes]] = {}
    asked: list[str] = []

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        self.asked.append(self.path)
        if "revision" in parts or "resolve" in parts:
            at = parts.index("revision" if "revision" in parts else "resolve") + 1
            revision = {commit: name for name, commit in COMMITS.items()}.get(parts[at], parts[at])
            if revision not in COMMITS:
                return self.answer({"error": "Revision not found"}, 404, **{"X-Error-Code": "RevisionNotFound"})
            self.path, self.commit = re.sub(r"(me/\w+)", rf"\1-{revision}", self.path, count=1), COMMITS[revision]
        else:
            self.path, self.commit = re.sub(r"(me/\w+)", r"\1-main", self.path, count=1), COMMITS["main"]
        super().do_GET()

    do_HEAD = do_GET


PROGRAM = """
import json, sys
from hglmm import recipes
from hglmm.errors import CheckpointError
from hglmm.heads import sam_parts
from hglmm.heads.files import find_head
from hglmm.lmm import authors
from hglmm.lmm.frozen import FrozenLMM
from hglmm.recognition import recognise

toy = recipes.replace("toy_llava", lmm="me/toy")
said = {}
asked = [
    ("newest", toy, None, None), ("given", toy, None, "before"), ("recipe", recipes.replace(toy, revision="before"), None, None), ("commit", toy, None, "b" * 40),
    ("behind the name", toy, "me/toy@before", None), ("its own goes first", toy, "me/toy@before", "main"), ("in the recipe", recipes.replace(toy, lmm="me/toy@before"), None, None),
    ("recognised", *recognise("me/toy@before")[:2], None),
]
for name, recipe, path, revision in asked:
    lmm = FrozenLMM.load(recipe, path, device="cpu", revision=revision)
    bias = float(lmm.model.multi_modal_projector.linear_1.bias[0])
    said[name] = [lmm.source["revision"], bias, float(lmm.mean[0]), lmm.tokenizer.model_max_length, lmm.reach, lmm.source["path"], len(lmm.source["files"])]
try:
    FrozenLMM.load(toy, device="cpu", revision="never")
except CheckpointError as error:
    said["never"] = str(error)
for place in ("me/sam", "me/sam@main", "me/sam@before"):
    said[place] = json.loads((sam_parts.find(place) / "config.json").read_text())["mark"]
for place in ("me/sam@main", "me/sam@before"):
    said[f"tower {place}"] = json.loads((authors.tower_folder(place, sam_parts.Path("nowhere")) / "config.json").read_text())["mark"]
    said[f"head {place}"] = json.loads((find_head(place) / "config.json").read_text())["mark"]
print(json.dumps(said))
"""


def files_of(mark: float) -> dict[str, bytes]:
    "toy_llava's files with the mark in every one of the four parts."
    from safetensors.torch import load, save

    content = {file.name: file.read_bytes() for file in TOY.iterdir() if file.suffix in (".json", ".safetensors")}
    for name, change in {
        "config.json": lambda c: c["text_config"].update(max_position_embeddings=int(1000 * mark)),
        "tokenizer_config.json": lambda c: c.update(model_max_length=int(1000 * mark)),
        "preprocessor_config.json": lambda c: c.update(image_mean=[mark / 4] * 3),
    }.items():
        settings = json.loads(content[name])
        change(settings)
        content[name] = json.dumps(settings).encode()
    weights = load(content["model.safetensors"])
    weights["multi_modal_projector.linear_1.bias"][0] = mark
    return content | {"model.safetensors": save(weights, {"format": "pt"})}


def test_a_revision_reaches_everything(tmp_path):
    small = {"me/sam-main": 1.0, "me/sam-before": 2.0}  # what is read of it here is its config.json
    Versions.repositories = {"me/toy-main": files_of(1.0), "me/toy-before": files_of(2.0)}
    Versions.repositories |= {name: {"config.json": json.dumps({"mark": mark}).encode(), "model.safetensors": b"x"} for name, mark in small.items()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Versions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert "me/toy at revision 'never': cannot be fetched from the hub" in said.pop("never")
    marks = {place: said.pop(place) for place in [*said] if "me/sam" in place}
    assert len(marks) == 7 and marks == {place: 2.0 if "before" in place else 1.0 for place in marks}
    assert len(said) == 8
    for name, (revision, bias, mean, most_tokens, reach, path, files) in said.items():
        mark = 1.0 if name == "newest" else 2.0
        assert revision == COMMITS["main" if name == "newest" else "before"] and path.partition("@")[0] == "me/toy" and files > 5, name
        assert (bias, mean, most_tokens, reach) == (mark, mark / 4, 1000 * mark, 1000 * mark), name


def test_a_folder_has_no_revisions():
    with pytest.raises(SettingError, match="revision='main' says which of the hub's versions to fetch, but .* is a folder here"):
        FrozenLMM.load("toy_llava", TOY, device="cpu", revision="main")
    pinned = recipes.replace("llava_1_5_7b", revision="a272c74")  # of the hub's repository; the folder given instead has nothing to do with it
    with pytest.raises(CheckpointError, match="layers: recipe 32, weights 4"):
        FrozenLMM.load(pinned, TOY, device="cpu")


def test_what_was_loaded_is_told(tmp_path):
    lmm = FrozenLMM.load("toy_llava", device="cpu", dtype="bfloat16")
    assert lmm.source["path"] == "checkpoints/toy_llava" and lmm.source["revision"] is None and lmm.source["dtype"] == "bfloat16"
    assert lmm.source["files"]["model.safetensors"]["size"] == (TOY / "model.safetensors").stat().st_size
    for file in TOY.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert FrozenLMM.load("toy_llava", tmp_path, device="cpu").source["files"] == lmm.source["files"]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "right"}))
    assert FrozenLMM.load("toy_llava", tmp_path, device="cpu").source["files"] != lmm.source["files"]
