"""JupyterLab or Notebook on this machine, in a real browser: Debian's Chromium, driven by Playwright for Python, which downloads nothing."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "hglmm"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SECONDS = 180  # for what takes a few, on a busy machine


def find_chromium() -> str:
    "Where Chromium is. CI installs it where it may; elsewhere the tests are skipped, saying what is missing."
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI") and shutil.which("apt-get") and os.geteuid() == 0:
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
            subprocess.run(["apt-get", *words], capture_output=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, timeout=600)
        found = shutil.which("chromium")
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH. Install one: apt-get install chromium")
    return found


@contextlib.contextmanager
def serve(folder: Path, program: str = "lab") -> Iterator[str]:
    "A Jupyter server on a folder; its address. Nothing of the user's settings is read or changed."
    home = folder / ".jupyter"
    settings = home / "settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "run", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "work", "IPYTHONDIR": "ipython"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", f"jupyter{program}" if program == "lab" else program, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    words += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    environment = {**os.environ, **{name: str(home / place) for name, place in places.items()}, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with (folder / ".jupyter/log").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment)
    try:
        wait(lambda: answers(f"{address}/api/status?token={TOKEN}") or server.poll() is not None, "the server to answer")
        assert server.poll() is None, (folder / ".jupyter/log").read_text()
        yield address
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
        return answer.status == 200
    return False


def wait(until: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    "Wait until something is so."
    end = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
    return found


class Lab:
    "A page of JupyterLab with a notebook in it."

    NOTEBOOK = "window.jupyterapp.shell.currentWidget"

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 1400):
        self.page, self.address, self.outside, self.errors = browser.new_page(viewport={"width": width, "height": height}), address, [], []
        self.page.set_default_timeout(1000 * SECONDS)
        self.page.on("request", lambda request: self.outside.append(request.url) if urlsplit(request.url).scheme.startswith(("http", "ws")) and urlsplit(request.url).hostname != "127.0.0.1" else None)
        self.page.on("websocket", lambda socket: self.outside.append(socket.url) if urlsplit(socket.url).hostname != "127.0.0.1" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)[:500]))

    def open(self, notebook: str) -> None:
        self.page.goto(f"{self.address}/lab/tree/{notebook}?reset&token={TOKEN}")
        self.page.wait_for_function("() => window.jupyterapp?.restored")
        self.page.evaluate("window.jupyterapp.restored.then(() => true)")
        self.page.wait_for_function(f"() => {self.NOTEBOOK}?.context?.isReady && {self.NOTEBOOK}?.sessionContext?.isReady")
        self.idle()

    def idle(self) -> None:
        self.page.wait_for_function(f"() => {{ const one = {self.NOTEBOOK}?.sessionContext; return one?.isReady && one.session?.kernel?.status === 'idle'; }}")

    def run_all(self) -> None:
        "Run every cell; an error in one fails the test."
        said = self.page.evaluate(f"window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => {self.NOTEBOOK}.content.model.toJSON().cells.flatMap(c => c.outputs ?? []).filter(o => o.output_type === 'error').map(o => o.evalue))")
        assert not said, said

    def theme(self, name: str) -> None:
        self.page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name)
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)

    def kernel(self, expression: str) -> Any:
        "A value of the notebook's kernel."
        code = f"import json as _j; print(_j.dumps({expression}, default=float))"
        said = self.page.evaluate(f"""async code => {{ const future = {self.NOTEBOOK}.sessionContext.session.kernel.requestExecute({{code, store_history: false}}); let said = '';
            future.onIOPub = m => {{ if (m.header.msg_type === 'stream') said += m.content.text; if (m.header.msg_type === 'error') said += JSON.stringify(m.content.ename + ': ' + m.content.evalue); }}; await future.done; return said; }}""", code)  # fmt: skip
        return json.loads(said.strip().splitlines()[-1])

    def part(self, name: str) -> Any:
        "What carries this `data-testid`."
        return self.page.locator(f"[data-testid={name}]").first

    def text(self, name: str) -> str:
        return self.part(name).inner_text()

    def ready(self, name: str = "explorer") -> None:
        self.page.wait_for_selector(f"[data-testid={name}][data-ready='1']")
        self.settled(name)

    def settled(self, name: str = "explorer") -> None:
        "Wait until nothing is drawn any more."
        seen, since = None, time.monotonic()
        while time.monotonic() - since < 0.4:
            now = self.part(name).get_attribute("data-frame")
            if now != seen:
                seen, since = now, time.monotonic()
            self.page.wait_for_timeout(50)

    def pixels(self, name: str) -> list[int]:
        "All of a canvas, as a few hundred grey levels."
        return self.page.evaluate("""name => { const from = document.querySelector(`[data-testid=${name}]`), to = new OffscreenCanvas(24, 24), pen = to.getContext('2d', { willReadFrequently: true });
            pen.drawImage(from, 0, 0, 24, 24); return Array.from(pen.getImageData(0, 0, 24, 24).data).filter((_, k) => k % 4 !== 3); }""", name)  # fmt: skip
