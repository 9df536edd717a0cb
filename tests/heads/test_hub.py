"Heads on the Hugging Face hub: pushed to and fetched from a hub of one process on this machine, by the ordinary mixin; and what `from_pretrained` refuses."

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin

from hglmm import heads, recipes
from hglmm.errors import CheckpointError
from hglmm.heads import loading

KINDS = list(heads.HEADS)
FILES = {"README.md", "config.json", "model.safetensors"}


def head_of(kind: str) -> heads.MaskHead:
    torch.manual_seed(0)
    return heads.build(recipes.replace("toy_llava", head=kind))


def same(head, other) -> bool:
    mine, theirs = head.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_goes_to_a_folder_and_back(kind, tmp_path):
    head = head_of(kind)
    assert isinstance(head, PyTorchModelHubMixin)
    head.save_pretrained(tmp_path / "mixin")
    loading.save_head(head, tmp_path / "ours")
    assert {path.name for path in (tmp_path / "mixin").iterdir()} == FILES
    for name in FILES - {"README.md"}:
        assert (tmp_path / "mixin" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    for load in (type(head).from_pretrained, heads.MaskHead.from_pretrained, heads.from_pretrained, loading.load_head):
        for folder in ("mixin", "ours"):
            again = load(tmp_path / folder)
            assert type(again) is type(head) and same(again, head) and not again.training and again.recipe == head.recipe


def test_the_card_claims_nothing(tmp_path):
    head_of("unet_sam").save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: hglmm" in card and "kind `unet_sam` for `toy_llava`" in card and "facebook/sam-vit-large" in card
    assert "None were recorded" in card and not any(word in card for word in ("IoU", "license", "state-of-the-art"))
    head_of("hg").save_pretrained(tmp_path / "scored", model_card_kwargs={"scores": "cIoU 12.3 on my own pictures"})
    assert (tmp_path / "scored/README.md").read_text().endswith("cIoU 12.3 on my own pictures")


def refused(load, *arguments, **named) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(*arguments, **named)
    return str(caught.value)


def test_what_is_refused(tmp_path):
    folder = tmp_path / "head"
    head_of("unet").save_pretrained(folder)
    assert "kind 'unet', expected 'hg'" in refused(heads.HGHead.from_pretrained, folder)
    assert "made for recipe 'toy_llava'" in refused(heads.from_pretrained, folder, recipe="llava_1_5_7b")
    assert "not to be had from the hub" in refused(heads.from_pretrained, "nobody/nothing", local_files_only=True)
    assert "not to be had from the hub" in refused(heads.from_pretrained, tmp_path / "none")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    assert "cut short" in refused(heads.from_pretrained, folder)
    (folder / "model.safetensors").write_bytes(weights)
    for config, said in [("[]", "not a valid config"), ("{", "not a valid config"), ('{"format": 1}', "is missing")]:
        (folder / "config.json").write_text(config)
        assert said in refused(heads.UNetHead.from_pretrained, folder)


def test_a_broken_head_is_not_saved_over_a_good_one(tmp_path):
    head = head_of("hg")
    head.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    torch.nn.init.constant_(head.text_layer_weights, torch.nan)
    assert "NaN" in refused(head.save_pretrained, tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


class Hub(BaseHTTPRequestHandler):
    "As much of the hub as is needed to make a repository, commit to it and fetch it."

    repositories: dict[str, dict[str, bytes]] = {}
    commit = "0" * 40

    def answer(self, content: bytes | dict, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": self.commit, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.strip("/").split("/")
        if parts[1:] == ["repos", "create"]:
            name = json.loads(sent)["name"]
            self.repositories.setdefault(f"me/{name}", {})
            return self.answer({"url": f"http://{self.headers['Host']}/me/{name}"})
        if parts[1] == "validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if parts[4] == "preupload":
            return self.answer({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(sent)["files"]]})
        lines = [json.loads(line) for line in sent.splitlines()]
        self.repositories["/".join(parts[2:4])].update({o["value"]["path"]: base64.b64decode(o["value"]["content"]) for o in lines if o["key"] == "file"})
        return self.answer({"success": True, "commitOid": self.commit, "commitUrl": f"http://{self.headers['Host']}/me/commit/{self.commit}", "hookOutput": ""})

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[0] == "api"
        name = "/".join(parts[2:4] if api else parts[:2])
        files = self.repositories.get(name)
        if files is None:
            return self.answer({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        if api:
            return self.answer({"id": name, "sha": self.commit, "siblings": [{"rfilename": file} for file in files]})
        content = files.get(parts[-1])
        if content is None:
            return self.answer({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
        return self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    do_HEAD = do_GET

    def log_message(self, *_) -> None: ...


PROGRAM = """
import sys, torch
from hglmm import Grounder, heads, recipes
from hglmm.errors import CheckpointError

folder = sys.argv[1]
def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)

for kind, head_class in heads.HEADS.items():
    torch.manual_seed(0)
    head = heads.build(recipes.replace("toy_llava", head=kind))
    head.push_to_hub(f"me/{kind}", token="hf_made_up")
    for load in (heads.from_pretrained, head_class.from_pretrained):
        again = load(f"me/{kind}", cache_dir=folder, token=False)
        assert type(again) is head_class and same(again, head)
    assert type(heads.from_pretrained(f"me/{kind}", cache_dir=folder, local_files_only=True)) is head_class
pushed = heads.from_pretrained("me/hg", cache_dir=folder)
for arguments in (("toy_llava", "me/hg"), ("toy_llava", f"me/hg@{'0' * 40}"), ("me/hg",)):
    grounder = Grounder.load(*arguments, device="cpu")
    assert same(grounder.head, pushed)
try:
    heads.from_pretrained("me/nothing", cache_dir=folder, token=False)
except CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
def test_to_a_hub_and_back(tmp_path):
    "In a process of its own, because where the hub is is read when huggingface_hub is imported."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "cache")], env=environment, capture_output=True, text=True, timeout=300)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "me/nothing: no such file or folder here, and not to be had from the hub" in done.stdout
    assert set(Hub.repositories) == {f"me/{kind}" for kind in KINDS}
    for kind in KINDS:
        pushed = Hub.repositories[f"me/{kind}"]
        loading.save_head(head_of(kind), tmp_path / kind)
        assert set(pushed) == FILES and f"kind `{kind}`" in pushed["README.md"].decode()
        assert all(pushed[name] == (tmp_path / kind / name).read_bytes() for name in FILES - {"README.md"})
