"""Pictures of explorer, chat and exported page for nbs/howto/04_look_inside.ipynb: `python tests/explore/screenshots.py` takes them anew.

It needs what test_browser.py needs, and is run by hand when the page looks different.
"""

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from browser import OPTIONS, ROOT, Lab, find_chromium, serve, wait  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

PLACE = ROOT / "nbs/howto/look_inside"


def explored(lab: Lab) -> None:
    lab.part("sample").fill("3")
    lab.part("sample").dispatch_event("change")
    lab.part("ask").click()
    wait(lambda: lab.text("status").startswith("answered"), "the answer")
    lab.ready()
    lab.part("which-b").click()
    lab.part("phrase-1").click()
    lab.part("which-a").click()
    lab.part("sort").select_option("fit")
    lab.settled()
    box, mouse = lab.part("view-a").bounding_box(), lab.page.mouse
    mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
    mouse.down()
    mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.45 * box["height"], steps=4)
    mouse.up()
    wait(lambda: lab.page.locator("[data-testid^=place-]").count() > 3, "words")
    lab.settled()


def talked(lab: Lab) -> None:
    lab.part("ask").click()
    lab.ready("chat")
    lab.part("prompt").fill("What color is the boat?")
    lab.part("ask").click()
    wait(lambda: lab.page.locator(".hg-said").count() == 2, "the second answer")
    lab.page.wait_for_timeout(1500)
    lab.part("span-0-0").hover()
    lab.settled("chat")


def shot(page: Any, name: str) -> bytes:
    "The widget as a PNG of few colours."
    image = Image.open(io.BytesIO(page.locator(f"[data-testid={name}]").first.screenshot())).convert("RGB")
    file = io.BytesIO()
    image.quantize(200, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def take(folder: Path) -> dict[str, bytes]:
    "Every picture by its name."
    found = {}
    for name in ("attention_explorer", "grounded_chat"):
        shutil.copy(ROOT / f"nbs/explore/{name}.ipynb", folder)
    with serve(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=OPTIONS)
        for name, widget, do in (("attention_explorer", "explorer", explored), ("grounded_chat", "chat", talked)):
            lab = Lab(browser, address, 1280)
            lab.open(f"{name}.ipynb")
            lab.run_all()
            if widget == "explorer":
                lab.ready()
            do(lab)
            for theme, width in (("Light", 1280), ("Dark", 1920)):
                lab.theme(f"JupyterLab {theme}")
                lab.page.set_viewport_size({"width": width, "height": 1500})
                lab.settled(widget)
                found[f"{widget}_{theme.lower()}_{width}.png"] = shot(lab.page, widget)
            if widget == "explorer":
                with lab.page.expect_download() as download:
                    lab.part("export-html").click()
                download.value.save_as(folder / "view.html")
                page = browser.new_context(offline=True, color_scheme="dark", viewport={"width": 1280, "height": 1100}).new_page()
                page.goto((folder / "view.html").as_uri())
                page.wait_for_selector("[data-ready='1']")
                page.wait_for_timeout(1000)
                found["page_dark_1280.png"] = shot(page, "explorer")
            lab.theme("JupyterLab Light")
            lab.page.close()
        browser.close()
    return found


if __name__ == "__main__":
    os.environ.setdefault("HGLMM_DATA", str(ROOT / "data/toycoco"))
    with tempfile.TemporaryDirectory() as place:
        pictures = take(Path(place))
    for name, data in pictures.items():
        (PLACE / name).write_bytes(data)
    print({name: f"{len(data) / 1024:.0f} KB" for name, data in pictures.items()})
