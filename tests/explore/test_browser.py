"""The explorer in a real browser: what is on the page is what the kernel says, every gesture arrives, and no request leaves the machine."""

import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from browser import OPTIONS, ROOT, Lab, find_chromium, serve, wait
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright (nothing else has to be downloaded)")
pytestmark = pytest.mark.slow
MAPS = "[float(v) for v in explorer.state.map().flatten()]"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_chromium(), args=OPTIONS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory, small_world):
    folder = tmp_path_factory.mktemp("lab")
    for name in ("attention_explorer", "grounded_chat"):
        shutil.copy(ROOT / f"nbs/explore/{name}.ipynb", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HGLMM_DATA", str(small_world))
        with serve(folder) as address:
            yield address


@pytest.fixture(scope="module")
def lab(browser, address):
    "The explorer's notebook, run. Tests go through it one after the other, as a user would."
    lab = Lab(browser, address)
    lab.open("attention_explorer.ipynb")
    lab.run_all()
    lab.ready()
    yield lab
    assert not lab.outside and not lab.errors


def shown(lab: Lab, which: str = "a") -> dict[str, float]:
    "Numbers below a picture."
    found = {}
    for part in lab.text(f"scores-{which}").split(" · ")[1:]:
        name, number = ("IoU", part[4:]) if part.startswith("IoU") else ("mask", part.split()[1]) if part.startswith("mask") else part.replace(" %", "").rsplit(" ", 1)
        found[name] = float(number)
    return found


def choice(lab: Lab, name: str):
    return lab.kernel(f"explorer.state.choice.{name}")


def number(lab: Lab, text: str, part: str = "answer") -> list[int]:
    "Numbers of the words that read so."
    return lab.kernel(f"[k for k, t in enumerate(explorer.state.tokens) if t.text.strip() == {text!r} and t.part == {part!r}]")


def test_it_opens_on_a_sample_and_says_what_the_kernel_has(lab):
    assert choice(lab, "a") == lab.kernel("explorer.state.phrases[0][1]") and lab.text("status").startswith("answered")
    assert lab.part("question").inner_text() and lab.kernel("len(explorer.state.tokens)") == lab.page.locator("[data-word]").count()
    numbers = shown(lab)
    assert numbers["IoU"] == pytest.approx(lab.kernel("explorer.state.iou()"), abs=6e-4)
    assert numbers["mask"] == pytest.approx(lab.kernel("100 * float(explorer.state.mask().mean())"), abs=0.6)
    assert numbers["brightest cell"] == pytest.approx(lab.kernel("float(explorer.state.map().max())"), rel=0.06)
    assert numbers["on the grid"] == pytest.approx(lab.kernel("100 * float(explorer.state.map().sum())"), abs=0.6)


def test_words_are_chosen_by_number(lab):
    words = lab.kernel("[k for k, t in enumerate(explorer.state.tokens) if t.part == 'answer']")
    lab.part(f"word-{words[2]}").click()
    lab.settled()
    assert choice(lab, "a") == [words[2]]
    before = lab.pixels("view-a")
    lab.part(f"word-{words[6]}").click(modifiers=["Shift"])
    lab.settled()
    assert choice(lab, "a") == words[2:7] and lab.pixels("view-a") != before
    lab.part(f"word-{words[4]}").click(modifiers=["Control"])
    lab.settled()
    assert choice(lab, "a") == [*words[2:4], *words[5:7]]
    blind = lab.kernel("[k for k, t in enumerate(explorer.state.tokens) if t.row is None]")
    assert blind and all(lab.part(f"word-{k}").get_attribute("aria-disabled") == "true" for k in blind)
    lab.part(f"word-{blind[-1]}").click(force=True)
    lab.settled()
    assert choice(lab, "a") == [*words[2:4], *words[5:7]]
    same = next((found for found in (number(lab, text) for text in ("the", "a", "on", ".")) if len(found) > 1), None)
    assert same, "no word stands twice in this answer: take another sample"
    for k in same:  # equal words are two
        lab.part(f"word-{k}").click()
        lab.settled()
        assert choice(lab, "a") == [k]
    lab.part("phrase-0").click()
    lab.settled()
    assert choice(lab, "a") == lab.kernel("explorer.state.phrases[0][1]")


def value_at(lab: Lab, row: int, column: int) -> float:
    "What the page says of a cell, with the mouse over it."
    side, (left, top, right, bottom) = lab.kernel("(explorer.session['side'], explorer.session['box'])")
    box = lab.part("view-a").bounding_box()
    x, y = (((column + 0.5) / side - left) / (right - left), ((row + 0.5) / side - top) / (bottom - top))
    lab.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    found = lab.text("value-a")
    assert found.startswith(f"row {row}, column {column}:")
    return float(found.split(": ")[1])


def test_layers_heads_merging_and_sinks_are_the_states(lab):
    rows, side = lab.kernel("explorer.state.map().topk(1).indices[:4].flatten().tolist()"), lab.kernel("explorer.session['side']")
    assert rows
    pictures = []
    for name, way, value, chosen in (("layer", "fill", "2", 2), ("head", "fill", "1", 1), ("merge", "select_option", "max", "max"), ("sinks", "select_option", "drop", "drop"), ("sinks", "select_option", "subtract", "subtract"), ("head", "fill", "-1", None), ("layer", "fill", "-1", None)):
        getattr(lab.part(name), way)(value)
        lab.settled()
        assert choice(lab, name) == chosen
        pictures.append(lab.pixels("view-a"))
        maps = np.array(lab.kernel(MAPS)).reshape(side, side)
        inside = lab.kernel("explorer.state.features.letterbox.box(explorer.session['side'])")
        for row, column in ((side // 2, side // 2), (side // 2 - 2, side // 2 + 3)):
            assert inside[1] <= row < inside[3] and value_at(lab, row, column) == pytest.approx(maps[row, column], abs=3e-4, rel=5e-3)
    assert len({tuple(one) for one in pictures}) == len(pictures)
    assert "less the mean over all words" in lab.text("scores-a")
    lab.part("sinks").select_option("keep")
    lab.part("merge").select_option("mean")
    lab.settled()


def test_the_grid_is_sorted_and_picks_a_head(lab):
    grid = lab.part("grid")
    by_layer = lab.pixels("grid")
    for name in ("mass", "focus", "fit"):
        lab.part("sort").select_option(name)
        lab.settled()
        box = grid.bounding_box()
        grid.click(position={"x": 4, "y": 4})  # the first is the best
        lab.settled()
        scores = np.array(lab.kernel(f"explorer.state.scores()[{name!r}].tolist()"))
        assert scores[choice(lab, "layer"), choice(lab, "head")] == pytest.approx(scores.max(), abs=2e-3)
        assert f"layer {choice(lab, 'layer')}, head {choice(lab, 'head')}" in lab.text("head-text")
        grid.click(position={"x": box["width"] - 4, "y": box["height"] - 4})  # and the last the worst
        lab.settled()
        assert scores[choice(lab, "layer"), choice(lab, "head")] == pytest.approx(scores.min(), abs=2e-3)
    assert lab.pixels("grid") != by_layer
    lab.part("sort").select_option("")
    lab.part("all-heads").click()
    lab.settled()
    assert choice(lab, "layer") is None and choice(lab, "head") is None


def drag(lab: Lab, start: tuple[float, float], end: tuple[float, float]) -> None:
    box, mouse = lab.part("view-a").bounding_box(), lab.page.mouse
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    mouse.move(*at[0])
    mouse.down()
    mouse.move(*at[1], steps=6)
    mouse.up()
    lab.settled()


def test_a_box_finds_the_words_that_look_there(lab):
    drag(lab, (0.7, 0.6), (0.2, 0.3))  # from any corner
    assert choice(lab, "region") == pytest.approx([0.2, 0.3, 0.7, 0.6], abs=0.01)
    best = lab.kernel("explorer.state.words_at()[:8]")
    wait(lambda: lab.page.locator("[data-testid^=place-]").count() == 8, "the words", 20)
    assert [lab.page.locator("[data-testid^=place-]").nth(k).get_attribute("data-testid") for k in range(8)] == [f"place-{k}" for k, _ in best]
    lab.part("layer").fill("3")
    lab.settled()
    best = lab.kernel("explorer.state.words_at()[:8]")
    wait(lambda: lab.page.locator("[data-testid^=place-]").nth(0).get_attribute("data-testid") == f"place-{best[0][0]}", "the words of that layer", 20)
    drag(lab, (0.5, 0.5), (0.5, 0.5))  # a click is a cell
    assert lab.kernel("int(explorer.state.cells().sum())") == 1
    lab.part("layer").fill("-1")
    lab.part("no-place").click()
    lab.settled()
    assert choice(lab, "region") is None


def test_other_ways_to_look_and_the_towers_levels(lab):
    for way in ("rollout", "relevancy"):
        before = lab.pixels("view-a")
        lab.part("way").select_option(way)
        wait(lambda way=way: way in lab.text("scores-a"), "the map", 60)
        lab.settled()
        assert choice(lab, "way") == way and lab.pixels("view-a") != before
        assert shown(lab)["brightest cell"] == pytest.approx(lab.kernel("float(explorer.state.map().max())"), rel=0.06)
    lab.part("layer").fill("1")  # of attention
    lab.settled()
    assert choice(lab, "way") == "attention" and "layer 1" in lab.text("scores-a")
    lab.part("layer").fill("-1")
    lab.page.locator(".hg summary").click()
    drag(lab, (0.3, 0.4), (0.3, 0.4))
    wait(lambda: lab.page.locator("[data-testid=levels] canvas").count() == lab.kernel("len(explorer.state.features.levels)"), "a picture a level", 30)
    lab.page.locator(".hg summary").click()
    lab.part("no-place").click()
    lab.settled()


def test_the_threshold_cuts_the_mask(lab):
    lab.part("opacity").fill("0")
    lab.settled()
    areas = []
    for value in (5, 50, 95):
        lab.part("threshold").fill(str(value))
        lab.settled()
        assert choice(lab, "threshold") == value / 100
        numbers = shown(lab)
        assert numbers["IoU"] == pytest.approx(lab.kernel("explorer.state.iou()"), abs=6e-4)
        areas.append((lab.pixels("view-a"), lab.kernel("float(explorer.state.mask().mean())")))
    assert areas[0][1] > areas[1][1] > areas[2][1] and areas[0][0] != areas[1][0] != areas[2][0]
    lab.part("mask").uncheck()
    lab.settled()
    plain = np.array(lab.pixels("view-a"))
    lab.part("mask").check()
    lab.part("threshold").fill("50")
    lab.part("opacity").fill("80")
    lab.settled()
    picture = np.array(lab.kernel("__import__('numpy').asarray(explorer.state.image.convert('RGB').resize((24, 24))).flatten().tolist()"))
    assert np.abs(plain - picture).mean() < 12  # no heat, no mask: the picture


def test_two_selections_stand_side_by_side(lab):
    assert not lab.part("view-b").is_visible()
    lab.part("which-b").click()
    lab.part("phrase-1").click()
    lab.settled()
    assert choice(lab, "b") == lab.kernel("explorer.state.phrases[1][1]") and choice(lab, "a") == lab.kernel("explorer.state.phrases[0][1]")
    assert lab.part("view-b").is_visible() and lab.pixels("view-b") != lab.pixels("view-a")
    assert shown(lab, "b")["IoU"] == pytest.approx(lab.kernel("explorer.state.iou('b')"), abs=6e-4)


def saved(lab: Lab, what: str, folder: Path) -> Path:
    with lab.page.expect_download() as download:
        lab.part(f"export-{what}").click()
    download.value.save_as(folder / f"view.{what}")
    return folder / f"view.{what}"


def test_it_is_taken_along_in_four_ways(lab, browser, tmp_path):
    assert Image.open(saved(lab, "png", tmp_path)).size[0] > 300
    with np.load(saved(lab, "npz", tmp_path)) as arrays:
        assert float(arrays["mask_a"].mean()) == pytest.approx(lab.kernel("float(explorer.state.mask().mean())"))
    whole = json.loads(saved(lab, "json", tmp_path).read_text())
    assert whole["choice"]["b"] == choice(lab, "b") and whole["looks"]["opacity"] == 0.8 and whole["picture"]
    carried = browser.new_context(offline=True).new_page()
    asked, errors = [], []
    carried.on("request", lambda request: asked.append(request.url) if not request.url.startswith(("blob:", "file:")) else None)
    carried.on("pageerror", lambda error: errors.append(str(error)))
    carried.goto(saved(lab, "html", tmp_path).as_uri())
    carried.wait_for_selector("[data-ready='1']")
    page = Lab.__new__(Lab)
    page.page = carried
    page.settled()
    assert page.text("scores-a") == lab.text("scores-a") and page.text("scores-b") == lab.text("scores-b") and not page.part("ask").is_visible()
    before = page.pixels("view-a")
    page.part("layer").fill("1")
    page.settled()
    assert page.pixels("view-a") != before and "layer 1" in page.text("scores-a")
    page.part("which-a").click()
    for k in (1, 2):  # phrases carry their masks
        page.part(f"phrase-{k}").click()
        page.settled()
        assert "IoU" in page.text("scores-a") and not page.text("fault")
    page.part("sort").select_option("focus")
    page.settled()
    assert not asked and not errors
    carried.close()


def test_keys_alone_do_and_jupyterlab_takes_none(lab):
    "Letters typed anywhere in the explorer must not cut cells, insert some, or run commands."
    cells = "window.jupyterapp.shell.currentWidget.content.widgets.length"
    before, page = lab.page.evaluate(cells), lab.page
    for name in ("word-12", "phrase-0", "layer", "merge", "threshold", "mask", "view-a", "grid", "prompt", "export-png", "sample", "which-a"):
        lab.part(name).focus()
        for key in ("x", "a", "b", "d", "d", "z"):
            page.keyboard.press(key)
    assert page.evaluate(cells) == before
    lab.part("clear-b").focus()
    page.keyboard.press("Enter")
    first = lab.page.locator(".hg-chip[data-word][tabindex='0']").first
    first.focus()
    start = int(first.get_attribute("data-word"))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    lab.settled()
    assert choice(lab, "a") == [start + 1] and choice(lab, "b") == []
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+Enter")
    lab.settled()
    assert choice(lab, "a") == [start + 1, start + 2, start + 3]
    lab.part("layer").focus()
    page.keyboard.press("ArrowRight")
    lab.settled()
    assert choice(lab, "layer") == 0
    lab.part("view-a").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    lab.settled()
    assert lab.kernel("int(explorer.state.cells().sum())") == 1 and lab.text("value-a").startswith("row")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    lab.settled()
    assert lab.kernel("int(explorer.state.cells().sum())") == 4
    page.keyboard.press("Escape")
    lab.settled()
    assert choice(lab, "region") is None
    lab.part("grid").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    lab.settled()
    assert choice(lab, "layer") is not None and choice(lab, "head") is not None
    lab.part("prompt").focus()
    reached = set()
    for _ in range(60):  # Tab leads to every part
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement?.dataset?.testid"))
    assert {"ask", "which-a", "which-b", "phrase-0", "layer", "head", "merge", "sinks", "threshold", "view-a", "sort", "grid", "export-html"} <= reached
    assert page.evaluate(cells) == before
    lab.part("all-heads").click()


def test_an_answer_is_seen_while_it_is_said_and_stopped(lab):
    lab.kernel("[setattr(explorer, '_slow', explorer._said), setattr(explorer, '_said', lambda text: (__import__('time').sleep(0.15), explorer._slow(text)))] and 1")
    lab.part("prompt").fill("Please describe the image.")
    lab.part("ask").click()
    wait(lambda: len(lab.text("status").split()) > 3 and lab.part("status").get_attribute("data-state") == "asking", "words of the answer", 60)
    assert not lab.part("ask").is_enabled()
    said = lab.text("status")
    began = time.monotonic()
    lab.part("stop").click()
    wait(lambda: lab.kernel("not explorer._asking.is_alive()"), "the answer to stop", 20)
    wait(lambda: lab.text("status").startswith("stopped"), "the page to say so", 20)
    print(f"stopped, read and shown {time.monotonic() - began:.2f} s after the click")
    answer = lab.kernel("explorer.state.answer.text")
    assert answer.strip().startswith(said.strip()[:20]) and lab.kernel("len(explorer.state.answer.tokens)") < 20
    lab.kernel("[setattr(explorer, '_said', explorer._slow)] and 1")
    lab.ready()
    assert lab.page.locator("[data-testid=answer] [data-word]").count() == lab.kernel("len(explorer.state.answer.tokens)")


def test_a_big_picture_is_scaled_down_before_it_is_sent(lab, tmp_path):
    "Messages of more than 10 MiB to the kernel are lost."
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (2600, 3900, 3), np.uint8)).save(tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 10 * 2**20
    lab.part("file").set_input_files(str(tmp_path / "noise.png"))
    wait(lambda: lab.text("status").startswith("noise.png, 3900 x 2600"), "the picture", 60)
    assert lab.kernel("explorer.image.size") == [1600, 1067]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lab.part("file").set_input_files(str(tmp_path / "broken.png"))
    wait(lambda: "broken.png" in lab.text("fault"), "what is wrong with it", 20)
    lab.part("ask").click()
    wait(lambda: lab.text("status").startswith("answered"), "the answer", 120)
    lab.ready()
    assert lab.kernel("explorer.state.image.size") == [1600, 1067] and not lab.text("fault")


def test_another_sample_and_what_is_meant_there(lab):
    lab.part("sample").fill("1")
    lab.part("sample").dispatch_event("change")
    wait(lambda: lab.text("status").startswith("sample 1 of"), "the sample", 20)
    lab.part("ask").click()
    wait(lambda: lab.text("status").startswith("answered"), "the answer", 120)
    lab.ready()
    first = shown(lab)["IoU"]
    assert first == pytest.approx(lab.kernel("explorer.state.iou()"), abs=6e-4)
    if lab.page.locator("[data-testid=meant] option").count() > 1:
        lab.part("meant").select_option("1")
        wait(lambda: lab.kernel("explorer.sample['phrase']") == 1, "what is meant", 20)
        lab.settled()
        assert shown(lab)["IoU"] == pytest.approx(lab.kernel("explorer.state.iou()"), abs=6e-4)
    lab.part("sample").fill("999999")
    lab.part("sample").dispatch_event("change")
    wait(lambda: "expected a number from 0" in lab.text("fault"), "the error", 20)


CONTRAST = """() => { const pen = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const rgba = colour => { pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); const d = pen.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255]; };
  const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = one => { const layers = []; for (let e = one; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor)); let found = [255, 255, 255];
    for (const [r, g, b, a] of layers.reverse()) found = [r, g, b].map((v, k) => v * a + found[k] * (1 - a)); return found; };
  const bad = [];
  for (const one of document.querySelectorAll('.hg *')) {
    if (!one.checkVisibility() || one.disabled || ![...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || one.tagName === 'OPTION') continue;
    const [x, y] = [light(rgba(getComputedStyle(one).color).slice(0, 3)), light(behind(one))], ratio = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    if (ratio < 4.5) bad.push([one.textContent.slice(0, 30), one.className, ratio.toFixed(2)]);
  }
  return bad; }"""


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_every_text_can_be_read_and_nothing_is_cut_off(lab, theme):
    lab.theme(theme)
    lab.part("which-b").click()
    lab.part("phrase-0").click()
    lab.part("which-a").click()
    for width in (1280, 1920):
        lab.page.set_viewport_size({"width": width, "height": 1400})
        lab.settled()
        assert lab.page.evaluate(CONTRAST) == []
        over = lab.page.evaluate("(() => { const root = document.querySelector('[data-testid=explorer]'), edge = root.getBoundingClientRect().right + 1; return [...root.querySelectorAll('*')].filter(e => e.checkVisibility() && e.getBoundingClientRect().right > edge).map(e => e.className || e.tagName); })()")
        assert over == []
    lab.page.set_viewport_size({"width": 1280, "height": 1400})


def test_without_a_kernel_it_says_so(lab):
    "Last: the kernel is started anew, and knows nothing of the widget."
    lab.page.evaluate(f"{Lab.NOTEBOOK}.sessionContext.session.kernel.restart().then(() => true)")
    lab.idle()
    lab.part("phrase-1").click()
    wait(lambda: "run the cell again" in lab.text("silent"), "the page to miss the kernel", 30)
    lab.run_all()
    lab.ready()
    lab.part("phrase-1").click()
    lab.settled()
    assert choice(lab, "a") == lab.kernel("explorer.state.phrases[1][1]") and not lab.page.locator("[data-testid=silent]").last.inner_text()


def test_a_picture_stands_beside_the_widget(lab):
    "The picture that stands where no widget can be shown."
    shown = lab.kernel("sorted(explorer._repr_mimebundle_()[0])")
    assert shown == ["application/vnd.jupyter.widget-view+json", "image/png", "text/plain"]
    assert Image.open(io.BytesIO(bytes(lab.kernel("list(explorer._repr_mimebundle_()[0]['image/png'])")))).size[0] > 300


@pytest.fixture(scope="module")
def chat(browser, address):
    lab = Lab(browser, address)
    lab.open("grounded_chat.ipynb")
    lab.run_all()
    lab.part("ask").click()
    lab.ready("chat")
    yield lab
    assert not lab.outside and not lab.errors


def turn(lab: Lab, number: int) -> dict:
    return lab.kernel(f"{{'text': chat.talk.replies[{number}].text, 'spans': chat.talk.replies[{number}].spans}}")


def test_what_an_answer_names_is_underlined_and_isolated(chat):
    first = turn(chat, 0)
    assert chat.text("said-0") == first["text"] and chat.page.locator("[data-testid^=span-0-]").count() == len(first["spans"]) > 1
    every = chat.pixels("view-chat")
    alone = []
    for k, (start, end) in enumerate(first["spans"][:2]):
        span = chat.part(f"span-0-{k}")
        assert span.inner_text() == first["text"][start:end]
        span.hover()
        chat.settled("chat")
        alone.append(chat.pixels("view-chat"))
        area = 100 * chat.kernel(f"float(chat.talk.replies[0].grounding.masks[{k}].mean())")
        assert float(chat.text("caption").rsplit(": ", 1)[1].split()[0]) == pytest.approx(area, abs=0.6)
    assert alone[0] != alone[1] and every not in alone
    chat.part("turns").hover(position={"x": 2, "y": 2})
    chat.settled("chat")
    assert chat.pixels("view-chat") == every
    chat.part("span-0-1").focus()
    chat.page.keyboard.press("Enter")  # stays
    chat.part("prompt").focus()
    chat.settled("chat")
    assert chat.pixels("view-chat") == alone[1] and chat.part("span-0-1").get_attribute("aria-pressed") == "true"
    chat.part("span-0-1").click()
    chat.page.mouse.move(2, 2)
    chat.settled("chat")
    assert chat.pixels("view-chat") == every
    chat.part("threshold").fill("1")
    wait(lambda: chat.pixels("view-chat") != every, "the masks at another threshold", 20)
    chat.part("threshold").fill("50")
    chat.settled("chat")
    assert chat.pixels("view-chat") == every


def test_any_stretch_that_is_marked_is_grounded(chat):
    before, text = len(turn(chat, 0)["spans"]), turn(chat, 0)["text"]
    end = text.index(" ", 8)  # some words at the start, with the mouse
    at = chat.page.evaluate("""places => { const said = document.querySelector('[data-testid=said-0]'), at = [];
        for (const place of places) { const walk = document.createTreeWalker(said, NodeFilter.SHOW_TEXT); let n = 0;
          for (let node; (node = walk.nextNode()); n += node.length) if (place >= n && place < n + node.length) { const one = document.createRange(); one.setStart(node, place - n); one.setEnd(node, place - n + 1); const box = one.getBoundingClientRect(); at.push([box.left + 1, box.top + box.height / 2]); } }
        return at; }""", [0, end])  # fmt: skip
    chat.page.mouse.move(*at[0])
    chat.page.mouse.down()
    chat.page.mouse.move(*at[1], steps=5)
    chat.page.mouse.up()
    wait(lambda: "marked" in chat.text("ground"), "the button to see what is marked", 20)
    chat.part("ground").click()
    wait(lambda: len(turn(chat, 0)["spans"]) > before, "the words to be grounded", 60)
    chat.settled("chat")
    assert turn(chat, 0)["spans"][-1] == [0, len(text[:end].rstrip())] and chat.text("caption").startswith(text[:end].strip())
    chat.part("words").fill(text.split()[-2])
    chat.page.keyboard.press("Enter")
    wait(lambda: chat.text("caption").startswith(text.split()[-2]), "the typed words to be grounded", 60)
    chat.part("words").fill("nothing of the kind")
    chat.part("ground").click()
    wait(lambda: "does not stand in the answer" in chat.text("fault"), "the error", 20)


def test_a_conversation_goes_on_and_begins_anew(chat, tmp_path):
    chat.part("prompt").fill("What is on the left?")
    chat.part("brief").check()
    chat.part("prompt").focus()
    chat.page.keyboard.press("Enter")
    wait(lambda: chat.page.locator(".hg-said").count() == 2, "the second answer", 120)
    chat.settled("chat")
    assert chat.kernel("len(chat.talk.replies[1].turns)") == 2 and chat.text("said-1") == turn(chat, 1)["text"] and chat.page.locator(".hg-asked").nth(1).inner_text() == "What is on the left?"
    assert len(turn(chat, 1)["spans"]) == 1 and chat.part("prompt").input_value() == ""
    wait(lambda: "of answer 2" in chat.text("caption"), "its mask", 20)
    with chat.page.expect_download() as download:
        chat.part("export-png").click()
    download.value.save_as(tmp_path / "talk.png")
    assert Image.open(tmp_path / "talk.png").size[1] > 300
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        chat.theme(theme)
        chat.settled("chat")
        assert chat.page.evaluate(CONTRAST) == []
    chat.part("fresh").click()
    wait(lambda: chat.kernel("len(chat.talk.replies)") == 0 and not chat.part("turns").is_visible(), "an empty page", 20)
    assert sorted(chat.kernel("chat._repr_mimebundle_()[0]")) == ["application/vnd.jupyter.widget-view+json", "text/plain"]
    chat.part("brief").uncheck()
    chat.part("sample").fill("2")
    chat.part("sample").press("Enter")
    wait(lambda: chat.text("status").startswith("sample 2 of"), "the sample", 20)
    chat.part("prompt").fill("Please give me a description of the image.")
    chat.part("ask").click()
    wait(lambda: chat.text("status").startswith("answered"), "the answer", 120)
    chat.part("span-0-0").hover()
    chat.settled("chat")
    area = 100 * chat.kernel("float(chat.talk.replies[0].grounding.masks[0].mean())")
    assert float(chat.text("caption").rsplit(": ", 1)[1].split()[0]) == pytest.approx(area, abs=0.6) and chat.part("prompt").input_value() == ""
