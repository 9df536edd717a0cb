"""The downloader against a server of its own, with everything that goes wrong on the way."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from hglmm.datasets.download import CATALOGUE, CHUNK, Item, Remote, download, fetch
from hglmm.errors import DataError

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server(ThreadingHTTPServer):
    "Serves `files`; `cuts` says after how many bytes each of the next answers breaks off, `fails` which status they have."

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/val2017.zip": CONTENT}
        self.ranges, self.lengths = True, True  # does it know Range? does it say how long a file is?
        self.cuts: list[int] = []
        self.fails: list[int] = []
        self.asked: list[str | None] = []  # the Range of every request

    def remote(self, name: str = "val2017.zip", **known) -> Remote:
        return Remote(f"http://127.0.0.1:{self.server_address[1]}/{name}", **known)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        content = server.files.get(self.path)
        if content is None or server.fails:
            self.send_error(server.fails.pop(0) if server.fails else 404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: server.cuts.pop(0)] if server.cuts else rest)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def test_a_file_is_fetched_and_checked(server: Server, tmp_path: Path) -> None:
    known = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    path = fetch(server.remote(**known), tmp_path / "a/val2017.zip")
    assert path.read_bytes() == CONTENT and not part(path).exists() and server.asked == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_taken_up_again(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges, server.cuts = ranges, [16 * CHUNK, 11 * CHUNK, 0, 13 * CHUNK]
    path = fetch(server.remote(size=len(CONTENT)), tmp_path / "val2017.zip", pause=0)
    assert path.read_bytes() == CONTENT and len(server.asked) == 5
    assert server.asked[1] == f"bytes={16 * CHUNK}-" and server.asked[2] == f"bytes={(27 if ranges else 11) * CHUNK}-"


def test_a_stopped_fetch_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "val2017.zip"
    part(path).write_bytes(CONTENT[:2_000_000])
    assert fetch(server.remote(), path).read_bytes() == CONTENT and server.asked == ["bytes=2000000-"]
    part(path).write_bytes(CONTENT)  # all there, only the name is lacking; its size was never known
    path.unlink()
    assert fetch(server.remote(), path).read_bytes() == CONTENT and server.asked[-1] == "bytes=3000000-"


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_of_something_longer_is_begun_anew(server: Server, tmp_path: Path, size: int | None) -> None:
    path = tmp_path / "val2017.zip"
    part(path).write_bytes(CONTENT + b"more")
    assert fetch(server.remote(size=size), path, pause=0).read_bytes() == CONTENT


def test_a_part_of_another_file_does_not_pass(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "val2017.zip"
    part(path).write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="SHA-256 .* it was removed"):
        fetch(server.remote(size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()), path)
    assert not path.exists() and not part(path).exists()


def test_a_file_of_another_size_is_not_fetched(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val2017\.zip: has 3,000,000 bytes, expected 3,000,001"):
        fetch(server.remote(size=len(CONTENT) + 1), tmp_path / "val2017.zip")
    server.lengths = False  # the server does not say: it shows at the end
    with pytest.raises(DataError, match="got 3,000,000 bytes, expected 2,999,999"):
        fetch(server.remote(size=len(CONTENT) - 1), tmp_path / "val2017.zip")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_says_so_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val2071\.zip: the server answers 404.*data/README\.md"):
        fetch(server.remote("val2071.zip"), tmp_path / "val2071.zip")
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again_and_a_dead_one_given_up(server: Server, tmp_path: Path) -> None:
    server.fails = [503, 429]
    assert fetch(server.remote(), tmp_path / "val2017.zip", pause=0).read_bytes() == CONTENT
    server.asked, server.cuts = [], [CHUNK] + [0] * 20
    with pytest.raises(DataError, match="Gave up after 5 attempts that brought nothing; run again"):
        fetch(server.remote(), tmp_path / "b.zip", pause=0)
    assert len(server.asked) == 6 and part(tmp_path / "b.zip").stat().st_size == CHUNK


def item(server: Server, *names: str, **fields) -> Item:
    contains = {"coco/val2017": 2, "coco/annotations/panoptic_val2017": 1, "coco/annotations/panoptic_val2017.json": None}
    fields = {"contains": contains, "nested": ("coco/annotations/panoptic_val2017.zip",), **fields}
    return Item("pictures", "https://example.org", "coco", files=tuple(server.remote(name) for name in names), **fields)


@pytest.fixture
def archive() -> dict[str, bytes]:
    inner = zipped({"panoptic_val2017/1.png": b"png", "__MACOSX/panoptic_val2017/._1.png": b"rubbish"})
    return {"val2017/1.jpg": b"one" * 999, "val2017/2.jpg": b"two" * 999, "annotations/panoptic_val2017.json": b"{}", "annotations/panoptic_val2017.zip": inner}


def test_an_archive_with_an_archive_in_it(server: Server, tmp_path: Path, archive: dict[str, bytes]) -> None:
    server.files["/a.zip"], catalogue = zipped(archive), {"a": item(server, "a.zip")}
    assert [o.state for o in download(["a"], tmp_path, catalogue=catalogue)] == ["fetched"]
    there = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert there == ["coco/annotations/panoptic_val2017.json", "coco/annotations/panoptic_val2017/1.png", "coco/val2017/1.jpg", "coco/val2017/2.jpg"]
    assert [o.state for o in download(["a"], tmp_path, catalogue=catalogue)] == ["complete"] and len(server.asked) == 1
    (tmp_path / "coco/val2017/1.jpg").unlink()  # what is lacking is put back, and the archive kept this time
    assert [o.state for o in download(["a"], tmp_path, keep_archives=True, catalogue=catalogue)] == ["fetched"]
    assert (tmp_path / "archives/a.zip").read_bytes() == server.files["/a.zip"] and (tmp_path / "coco/val2017/1.jpg").read_bytes() == b"one" * 999


def test_a_plain_file_goes_to_its_place(server: Server, tmp_path: Path) -> None:
    server.files["/png.json"] = b"[]"
    catalogue = {"png": item(server, "png.json", contains={"coco/png.json": None}, nested=())}
    assert [o.state for o in download(["png"], tmp_path, catalogue=catalogue)] == ["fetched"]
    assert (tmp_path / "coco/png.json").read_bytes() == b"[]" and not (tmp_path / "archives").exists()


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_broken_archive_is_removed_and_fetched_anew(server: Server, tmp_path: Path, archive: dict[str, bytes], damage: str) -> None:
    whole = zipped(archive)
    server.files["/a.zip"] = whole[:-100] if damage == "cut" else whole[:50] + bytes([whole[50] ^ 255]) + whole[51:]
    catalogue = {"a": item(server, "a.zip")}
    (outcome,) = download(["a"], tmp_path, catalogue=catalogue)
    assert outcome.state == "failed" and "a.zip: broken archive" in outcome.note and not (tmp_path / "archives/a.zip").exists()
    server.files["/a.zip"] = whole
    assert [o.state for o in download(["a"], tmp_path, catalogue=catalogue)] == ["fetched"]


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "val2017/../../../outside.txt", "..\\outside.txt"])
def test_an_archive_cannot_leave_its_folder(server: Server, tmp_path: Path, archive: dict[str, bytes], name: str) -> None:
    server.files["/a.zip"] = zipped({**archive, name: b"hostile"})
    (outcome,) = download(["a"], tmp_path / "data", catalogue={"a": item(server, "a.zip")})
    assert outcome.state == "failed" and "outside of its folder" in outcome.note
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "a.zip"]  # not even the harmless ones


def test_a_link_in_an_archive_is_refused(server: Server, tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        link = zipfile.ZipInfo("val2017")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc")
        file.writestr("val2017/passwd", "hostile")
    server.files["/a.zip"] = content.getvalue()
    (outcome,) = download(["a"], tmp_path, catalogue={"a": item(server, "a.zip")})
    assert outcome.state == "failed" and "is a link or device" in outcome.note and not (tmp_path / "coco/val2017").exists()


def test_a_full_disk_is_noticed_before(server: Server, tmp_path: Path) -> None:
    remote = Remote(server.remote().url, size=10**18)
    (outcome,) = download(["a"], tmp_path, catalogue={"a": Item("much", "https://example.org", "coco", {"coco/x": None}, (remote,))})
    assert outcome.state == "failed" and "GB are free" in outcome.note and server.asked == []


def test_one_that_fails_does_not_stop_the_others(server: Server, tmp_path: Path, archive: dict[str, bytes]) -> None:
    server.files["/a.zip"] = zipped(archive)
    by_hand = Item("pictures", "https://example.org", "GCG", {"GCG/images": None})
    catalogue = {"gone": item(server, "gone.zip"), "a": item(server, "a.zip"), "hand": by_hand}
    outcomes = download(["gone", "a", "hand"], tmp_path, catalogue=catalogue)
    assert [o.state for o in outcomes] == ["failed", "fetched", "by hand"] and "404" in outcomes[0].note


@pytest.mark.slow
def test_the_notebook_says_what_there_is_and_fails_for_a_wrong_name(run_notebook, tmp_path: Path) -> None:
    code, said, _ = run_notebook("download", real=True, data=str(tmp_path))
    assert code == 0 and "coco_train2017" in said and "19.3 GB" in said, said[-3000:]
    code, said, _ = run_notebook("download", data=str(tmp_path), what='["coco_val2071"]')
    assert code != 0 and "Did you mean 'coco_val2017'?" in said
    code, said, _ = run_notebook("download", data=str(tmp_path), what='["reasonseg"]')
    assert code == 0 and "github.com/dvlab-research/LISA" in said and "by hand" in said


# Complete, half and foreign


def test_an_archive_with_backslashes(server: Server, tmp_path: Path) -> None:
    server.files["/a.zip"] = zipped({"val2017\\": b"", "val2017\\1.jpg": b"one", "val2017\\deep\\2.jpg": b"two", "val2017\\._1.jpg": b"rubbish"})
    catalogue = {"a": item(server, "a.zip", contains={"coco/val2017": 1}, nested=())}
    assert [o.state for o in download(["a"], tmp_path, catalogue=catalogue)] == ["fetched"]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == ["coco/val2017/1.jpg", "coco/val2017/deep/2.jpg"]


@pytest.mark.parametrize("name", ["C:\\outside.txt", "\\outside.txt", "\\\\server\\share\\outside.txt", "val2017\\..\\..\\..\\outside.txt", "../.bashrc", "__MACOSX/../../outside.txt", "."])
def test_names_that_lead_out_of_the_folder(server: Server, tmp_path: Path, archive: dict[str, bytes], name: str) -> None:
    server.files["/a.zip"] = zipped({**archive, name: b"hostile"})
    (outcome,) = download(["a"], tmp_path / "data", catalogue={"a": item(server, "a.zip")})
    assert outcome.state == "failed" and "outside of its folder" in outcome.note and repr(name) in outcome.note
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "a.zip"]


def test_an_encrypted_archive(server: Server, tmp_path: Path, archive: dict[str, bytes]) -> None:
    content = bytearray(zipped(archive))
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    server.files["/a.zip"] = bytes(content)
    (outcome,) = download(["a"], tmp_path, catalogue={"a": item(server, "a.zip")})
    assert outcome.state == "failed" and "broken archive" in outcome.note and "encrypted" in outcome.note


@pytest.mark.parametrize("left", [b"", b"PK", b"<html>", None], ids=["empty", "short", "page", "half"])
def test_half_an_archive_that_was_left_here(server: Server, tmp_path: Path, archive: dict[str, bytes], left: bytes | None) -> None:
    server.files["/a.zip"] = zipped(archive)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/a.zip").write_bytes(server.files["/a.zip"][:-200] if left is None else left)
    assert [o.state for o in download(["a"], tmp_path, catalogue={"a": item(server, "a.zip")})] == ["fetched"] and len(server.asked) == 1
    assert (tmp_path / "coco/val2017/2.jpg").read_bytes() == b"two" * 999


@pytest.mark.parametrize("left", [b"", b"[{", b"<html>Please log in</html>"], ids=["empty", "half", "page"])
def test_half_a_file_that_was_left_here(server: Server, tmp_path: Path, left: bytes) -> None:
    """Only what is not whole is fetched: of two files, the one."""
    server.files |= {"/a.json": b'[{"a": 1}]', "/b.json": b"[2]"}
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/a.json").write_bytes(left)
    (tmp_path / "coco/b.json").write_bytes(b"[0]")
    catalogue = {"png": item(server, "a.json", "b.json", contains={"coco/a.json": None, "coco/b.json": None}, nested=())}
    assert [o.state for o in download(["png"], tmp_path, catalogue=catalogue)] == ["fetched"] and len(server.asked) == 1
    assert (tmp_path / "coco/a.json").read_bytes() == b'[{"a": 1}]' and (tmp_path / "coco/b.json").read_bytes() == b"[0]"


def test_a_page_instead_of_a_file(server: Server, tmp_path: Path) -> None:
    server.files["/a.json"] = b"<html>Quota exceeded</html>"
    (outcome,) = download(["a"], tmp_path, catalogue={"a": item(server, "a.json", contains={"coco/a.json": None}, nested=())})
    assert outcome.state == "failed" and "coco/a.json: not valid JSON" in outcome.note


def test_a_folder_where_the_file_should_go(server: Server, tmp_path: Path) -> None:
    server.files["/a.json"] = b"[]"
    (tmp_path / "coco/a.json").mkdir(parents=True)
    (outcome,) = download(["a"], tmp_path, catalogue={"a": item(server, "a.json", contains={"coco/a.json": None}, nested=())})
    assert outcome.state == "failed" and "coco/a.json: is a folder" in outcome.note and server.asked == []


def test_the_rest_of_the_descriptions_goes_beside_the_others(server: Server, tmp_path: Path) -> None:
    """GranD-f in the older tree, one of its four files gone: the one is fetched to where the others are."""
    names = [f"{split}_gcg_coco_{kind}_gt.json" for split in ("val", "test") for kind in ("caption", "mask")]
    server.files |= {f"/{name}": b"{}" for name in names}
    folder = tmp_path / "GCG/annotations/val_test"
    folder.mkdir(parents=True)
    for name in names[:-1]:
        (folder / name).write_bytes(b'{"a": 1}')
    usual = CATALOGUE["grandf"]
    known = Item(usual.title, usual.page, usual.folder, usual.contains, tuple(server.remote(name) for name in names))
    assert [o.state for o in download(["grandf"], tmp_path, catalogue={"grandf": known})] == ["fetched"] and len(server.asked) == 1
    assert (folder / names[-1]).read_bytes() == b"{}" and not (tmp_path / "GCG/GranDf").exists()


def test_a_stopped_fetch_of_two_files_goes_on(server: Server, tmp_path: Path) -> None:
    server.files |= {"/a.json": b"[" + b"1," * 99_999 + b"1]", "/b.json": b"[2]"}
    server.cuts = [CHUNK] + [0] * 20
    catalogue = {"png": item(server, "a.json", "b.json", contains={"coco/a.json": None, "coco/b.json": None}, nested=())}
    first = Remote(server.remote("a.json").url)
    with pytest.raises(DataError, match="Gave up"):
        fetch(first, tmp_path / "coco/a.json", pause=0)
    assert part(tmp_path / "coco/a.json").stat().st_size == CHUNK and not (tmp_path / "coco/a.json").exists()
    server.asked, server.cuts = [], []
    assert [o.state for o in download(["png"], tmp_path, catalogue=catalogue)] == ["fetched"]
    assert server.asked == [f"bytes={CHUNK}-", None] and (tmp_path / "coco/a.json").read_bytes() == server.files["/a.json"]
