// The chat: a conversation about a picture, what is named in it underlined in the colours of its masks. Stands behind common.js.

class Chat extends Page {
  get name() { return "chat"; }
  known() { return Boolean(this.session.turns?.length); }
  constructor(model, el) { super(model, el, { turn: -1, only: null, planes: new Map(), marked: null }); }

  build() {
    const p = this.parts;
    p.turns = make("div", { className: "hg-turns", data: { testid: "turns" }, aria: { role: "log", label: "conversation" } });
    p.canvas = make("canvas", { className: "hg-view", data: { testid: "view-chat" }, aria: { role: "img" } });
    p.caption = make("div", { className: "hg-value", data: { testid: "caption" }, aria: { live: "polite" } });
    p.threshold = slider("threshold", [0, 100, 1], value => this.choose({ threshold: value / 100 }));
    p.words = make("input", { type: "text", placeholder: "words of the answer", data: { testid: "words" }, on: { keydown: event => { if (event.key === "Enter") this.groundText(); } } });
    p.ground = make("button", { text: "Where is it?", data: { testid: "ground" }, on: { mousedown: event => event.preventDefault(), click: () => this.groundText() } }); // else a press takes the mark away
    p.brief = make("input", { type: "checkbox", data: { testid: "brief" }, on: { change: event => this.choose({ brief: event.target.checked }) } });
    p.fresh = make("button", { text: "Begin anew", data: { testid: "fresh" }, on: { click: () => this.ask("fresh") } });
    p.save = make("button", { text: "PNG of the conversation", data: { testid: "export-png" }, on: { click: () => this.save() } });
    p.form.append(make("div", { className: "hg-row" }, labelled("one thing is meant: answer in a word or two, and ground all of it", p.brief)));
    document.addEventListener("selectionchange", this.selected = () => this.mark());
    return make("div", { className: "hg-main hg-talk" },
      make("div", {}, p.turns, make("div", { className: "hg-row" }, labelled("or", p.words), p.ground), make("p", { className: "hg-faint", text: "Hover an underlined phrase to see it alone, click to keep it so. Mark any stretch of an answer with the mouse, or type it, and ask where it is." })),
      make("div", {}, p.canvas, p.caption, make("div", { className: "hg-row" }, labelled("threshold", p.threshold.control, p.threshold.shown), p.fresh, p.save)));
  }
  close() { super.close(); document.removeEventListener("selectionchange", this.selected); }

  // -- marking and grounding
  mark() {                                                      // a stretch of one answer, by its characters
    this.marked = this.stretch(document.getSelection());
    this.parts.ground.textContent = this.marked ? "Where is what is marked?" : "Where is it?";
  }
  stretch(found) {
    if (!found?.rangeCount || found.isCollapsed) return null;
    const range = found.getRangeAt(0), of = node => (node.nodeType === 1 ? node : node.parentElement)?.closest(".hg-said"), said = of(range.startContainer) ?? of(range.endContainer);
    if (!said || !this.root.contains(said)) return null;
    const before = range.cloneRange(), inside = range.cloneRange();
    before.selectNodeContents(said);
    if (!said.contains(range.startContainer)) inside.setStart(said, 0);
    if (!said.contains(range.endContainer)) inside.setEnd(said, said.childNodes.length);
    before.setEnd(inside.startContainer, inside.startOffset);
    const start = [...before.toString()].length, end = start + [...inside.toString()].length; // characters, as Python counts them
    return end > start ? { turn: +said.dataset.turn, start, end } : null;
  }
  async groundText() {
    const what = this.marked ?? { turn: this.turn, words: this.parts.words.value }, found = await this.ask("ground", what);
    if (!found) return;
    this.turn = what.turn;
    this.only = found[0].phrase;
    document.getSelection()?.removeAllRanges();
    this.refresh();
  }
  async save() {
    const found = await this.ask("gallery");
    if (found) this.download("conversation.png", "image/png", found[1][0]);
  }

  // -- drawing
  refresh() {
    if (this.gone) return;
    const p = this.parts, known = this.refreshForm();
    p.brief.checked = Boolean(this.choice.brief);
    if (!known) { this.count = 0; this.turn = -1; this.only = this.shown = null; return; }
    const { turns, palette } = this.session;
    if (this.turn < 0 || this.turn >= turns.length || this.count !== turns.length) { this.turn = turns.length - 1; this.only = null; }
    if (turns.length > (this.count ?? 0)) p.prompt.value = "";   // what was asked has been answered
    this.count = turns.length;
    p.threshold.set(Math.round(100 * this.choice.threshold), this.choice.threshold.toFixed(2));
    if (this.drawnOf !== JSON.stringify(turns)) {
      this.drawnOf = JSON.stringify(turns);
      p.turns.replaceChildren(...turns.flatMap((turn, n) => [make("p", { className: "hg-asked", text: turn.question }), ...this.answer(turn, n, palette)]));
      p.turns.scrollTop = p.turns.scrollHeight;
    }
    for (const one of p.turns.querySelectorAll(".hg-span")) one.setAttribute("aria-pressed", +one.dataset.turn === this.turn && +one.dataset.phrase === this.only);
    this.paint().catch(error => this.fault(error));
  }
  answer({ text, spans }, n, palette) {                         // of phrases that overlap, the one that begins first is underlined; the others stand below
    const letters = [...text], parts = [], covered = [];
    let at = 0;
    const span = (start, end, k) => {
      const show = only => { this.turn = n; this.shown = only; this.paint().catch(error => this.fault(error)); }, keep = () => { this.turn = n; this.only = this.only === k ? null : k; this.refresh(); };
      const one = make("span", { className: "hg-span", tabIndex: 0, text: letters.slice(start, end).join(""), data: { testid: `span-${n}-${k}`, turn: n, phrase: k }, aria: { role: "button" }, on: {
        pointerenter: () => show(k), pointerleave: () => show(null), focus: () => show(k), blur: () => show(null),
        click: () => { if (document.getSelection()?.isCollapsed !== false) keep(); }, // the end of a mark is no click
        keydown: event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); keep(); } },
      } });
      one.style.setProperty("--colour", palette[k % palette.length]);
      return one;
    };
    for (const [start, end, k] of spans.map(([a, b], k) => [a, b, k]).sort((a, b) => a[0] - b[0] || b[1] - a[1])) {
      if (start < at) { covered.push(span(start, end, k)); continue; }
      parts.push(letters.slice(at, start).join(""), span(start, end, k));
      at = end;
    }
    parts.push(letters.slice(at).join(""));
    const said = make("p", { className: "hg-said", data: { testid: `said-${n}`, turn: n } });
    said.append(...parts);
    return covered.length ? [said, make("p", { className: "hg-covered" }, make("span", { className: "hg-faint", text: "also: " }), ...covered)] : [said];
  }
  async paint() {
    const turn = this.turn, { turns, picture } = this.session;
    if (!turns[turn]) return;
    const spans = turns[turn].spans, key = `${picture} ${turn} ${spans.length}`, mine = this.painting = (this.painting ?? 0) + 1;
    if (this.pictureOf !== picture) {
      const [, [jpeg]] = await this.store.ask("photo");
      this.bitmap = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
      this.pictureOf = picture;
      this.planes.clear();
    }
    if (!this.planes.has(key)) {
      const [said, buffers] = await this.store.ask("masks", { turn });
      this.planes.set(key, { ...said, planes: buffers.map(one => new Uint8Array(one.buffer, one.byteOffset, one.byteLength)) });
      while (this.planes.size > REMEMBERED) this.planes.delete(this.planes.keys().next().value);
    }
    if (mine !== this.painting || this.gone) return;
    this.draw(this.planes.get(key), this.shown ?? this.only);
  }
  draw({ planes, width, height }, only) {
    const p = this.parts, { canvas } = p, { bitmap } = this, step = Math.round(100 * this.choice.threshold), { palette, turns } = this.session;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) { canvas.width = bitmap.width; canvas.height = bitmap.height; canvas.style.width = `min(100%, ${Math.round(70 * bitmap.width / bitmap.height)}vh)`; }
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    planes.forEach((steps, k) => {
      if (only !== null && only !== undefined && k !== only) return;
      const colour = [1, 3, 5].map(at => parseInt(palette[k % palette.length].slice(at, at + 2), 16)), mask = new OffscreenCanvas(width, height), paint = mask.getContext("2d"), image = paint.createImageData(width, height);
      for (let i = 0; i < steps.length; i++) {
        if (!(steps[i] > step)) continue;
        const edge = [i - 1, i + 1, i - width, i + width].some(n => n < 0 || n >= steps.length || !(steps[n] > step));
        image.data.set([...colour, edge ? 255 : 110], 4 * i);
      }
      paint.putImageData(image, 0, 0);
      context.drawImage(mask, 0, 0, canvas.width, canvas.height);
    });
    const { text, spans } = turns[this.turn], letters = [...text], name = k => letters.slice(...spans[k]).join("");
    const empty = range(0, spans.length).filter(k => !planes[k]?.some(v => v > step));
    p.caption.textContent = only !== null && only !== undefined && spans[only] ? `${name(only)}: ${percent(planes[only].reduce((sum, v) => sum + (v > step), 0) / (width * height))} of the picture` : `${spans.length} ${spans.length === 1 ? "phrase" : "phrases"} of answer ${this.turn + 1}${empty.length ? `; no mask for: ${empty.map(name).join(", ")}` : ""}`;
    canvas.setAttribute("aria-label", `picture with the masks of: ${only !== null && only !== undefined && spans[only] ? name(only) : spans.map((_, k) => name(k)).join(", ")}`);
    this.root.dataset.frame = String(++this.frame);
    this.root.dataset.ready = "1";
  }
}

export default {
  render({ model, el }) { const chat = new Chat(model, el); return () => chat.close(); },
};
