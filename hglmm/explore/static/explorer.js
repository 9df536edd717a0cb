// The explorer: words, picture, heads. Stands behind common.js.

const SCORES = { mass: "share on the picture", focus: "how gathered", fit: "IoU with what is meant" };
const WHICH = ["a", "b"];

class View extends Page {
  get name() { return "explorer"; }
  known() { return Boolean(this.session.tokens); }
  constructor(model, el) { super(model, el, { which: "a", anchor: null, cell: null, corner: null, picked: 0, order: [], shares: null, drawn: {} }); }

  choose(changes) {
    const words = changes.a ?? changes.b;
    if (words?.length) this.prefetch(words, changes.merge);     // asked for first: the kernel answers in turn
    super.choose(changes);
  }

  // -- what there is, made once
  build() {
    const p = this.parts;
    p.which = make("div", { className: "hg-row", aria: { role: "group", label: "which selection the words go to" } }, ...WHICH.map(which =>
      make("button", { text: `Selection ${which.toUpperCase()}`, data: { testid: `which-${which}` }, on: { click: () => { this.which = which; this.refresh(); } } })),
      make("button", { text: "Clear B", data: { testid: "clear-b" }, on: { click: () => { this.which = "a"; this.choose({ b: [] }); } } }));
    p.hint = make("span", { className: "hg-faint", text: "click: one word · Ctrl: one more · Shift: up to here · arrows and Enter do the same" });
    p.which.append(p.hint);
    for (const name of ["question", "answer", "phrases"]) p[name] = make("div", { className: "hg-words", aria: { role: "group", label: { question: "words of the question", answer: "words of the answer", phrases: "noun phrases of the answer" }[name] }, data: { testid: name } });
    p.words = make("div", { className: "hg-block" }, p.which, ...["question", "answer", "phrases"].map(name => make("div", { className: "hg-line" }, make("span", { className: "hg-name", text: name }), p[name])));
    p.controls = this.buildControls();
    p.panels = Object.fromEntries(WHICH.map(which => [which, this.buildPanel(which)]));
    p.pictures = make("div", { className: "hg-pictures" }, ...WHICH.map(which => p.panels[which].root));
    p.heads = this.buildHeads();
    p.places = make("div", { className: "hg-block hg-places", data: { testid: "places" }, aria: { live: "polite" } });
    p.levels = this.buildLevels();
    p.export = make("div", { className: "hg-row", aria: { role: "group", label: "export" } }, make("span", { className: "hg-name", text: "export" }), ...["png", "npz", "json", "html"].map(what =>
      make("button", { text: what.toUpperCase(), data: { testid: `export-${what}` }, on: { click: () => this.save(what) } })));
    p.memory = make("span", { className: "hg-faint", data: { testid: "memory" } });
    p.export.append(p.memory);
    return make("div", { className: "hg-all" }, p.words, p.controls, make("div", { className: "hg-main" }, make("div", {}, p.pictures, p.places), p.heads), p.levels, p.export);
  }

  buildControls() {
    const p = this.parts, none = -1;
    const numbered = name => slider(name, [none, 0, 1], value => this.choose({ [name]: value === none ? null : value, way: "attention" }));
    p.layer = numbered("layer"); p.head = numbered("head");
    p.threshold = slider("threshold", [0, 100, 1], value => this.choose({ threshold: value / 100 }));
    p.opacity = slider("opacity", [0, 100, 5], value => this.look({ opacity: value / 100 }));
    p.dropped = make("input", { type: "number", min: 0, max: 32, data: { testid: "dropped" }, aria: { label: "cells dropped" }, on: { change: event => this.choose({ dropped: Math.min(32, Math.max(0, Math.round(+event.target.value))) }) } });
    p.merge = choices("merge", ["mean", "max", "last"].map(one => [one, one]), merge => this.choose({ merge }));
    p.sinks = choices("sinks", [["keep", "keep"], ["drop", "drop brightest cells"], ["subtract", "less the mean of all words"]], sinks => this.choose({ sinks }));
    p.way = choices("way", [], way => this.choose({ way }));
    p.colours = choices("colours", [], name => this.look({ colours: name }));
    p.by = choices("by", [], by => this.choose({ mask_head: by }));
    const box = (name, text) => labelled(text, p[name] = make("input", { type: "checkbox", data: { testid: name }, on: { change: event => this.look({ [name]: event.target.checked }) } }));
    return make("div", { className: "hg-controls", aria: { role: "group", label: "what is shown" } },
      labelled("show", p.way), labelled("layer", p.layer.control, p.layer.shown), labelled("head", p.head.control, p.head.shown), labelled("words merged by", p.merge),
      labelled("sinks", p.sinks, p.dropped), labelled("colours", p.colours), labelled("heat", p.opacity.control, p.opacity.shown), box("smooth", "smooth"),
      box("mask", "mask"), labelled("threshold", p.threshold.control, p.threshold.shown), p.byLabel = labelled("mask by", p.by));
  }

  buildPanel(which) {
    const canvas = make("canvas", { className: "hg-view", tabIndex: 0, data: { testid: `view-${which}` }, aria: { role: "img" } });
    const title = make("div", { className: "hg-title" }), value = make("div", { className: "hg-value", data: { testid: `value-${which}` }, aria: { live: "polite" } });
    const scores = make("div", { className: "hg-value", data: { testid: `scores-${which}` } });
    this.drag(canvas, which);
    canvas.addEventListener("keydown", event => this.cellKeys(event, which));
    return { canvas, title, value, scores, root: make("div", { className: "hg-panel" }, title, canvas, scores, value) };
  }

  buildHeads() {
    const p = this.parts;
    p.sort = choices("sort", [["", "layer and head"], ...Object.entries(SCORES)], sort => { this.picked = 0; this.look({ sort }); });
    p.grid = make("canvas", { className: "hg-grid", tabIndex: 0, data: { testid: "grid" }, aria: { role: "img", label: "all layers and heads" } });
    p.headText = make("div", { className: "hg-value", data: { testid: "head-text" }, aria: { live: "polite" } });
    const place = event => { const box = p.grid.getBoundingClientRect(); return Math.min(this.order.length - 1, Math.floor(((event.clientY - box.top) / box.height) * this.rows) * this.columns + Math.floor(((event.clientX - box.left) / box.width) * this.columns)); };
    p.grid.addEventListener("pointermove", event => { this.picked = place(event); this.tellHead(); });
    p.grid.addEventListener("click", event => { this.picked = place(event); this.takeHead(); });
    p.grid.addEventListener("keydown", event => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
      if (step) { this.picked = Math.min(this.order.length - 1, Math.max(0, this.picked + step)); this.tellHead(); this.drawGrid(); }
      else if (event.key === "Enter" || event.key === " ") this.takeHead();
      else return;
      event.preventDefault();
    });
    return make("div", { className: "hg-heads" }, make("div", { className: "hg-row" }, labelled("heads by", p.sort), make("button", { text: "mean of all", data: { testid: "all-heads" }, on: { click: () => this.choose({ layer: null, head: null, way: "attention" }) } })), p.headText, make("div", { className: "hg-scroll" }, p.grid));
  }

  buildLevels() {
    const p = this.parts;
    p.levelRow = make("div", { className: "hg-row", data: { testid: "levels" } });
    p.levelBox = make("details", { className: "hg-block", on: { toggle: () => this.showLevels() } }, make("summary", { text: "what the vision tower has at the picked cell", tabIndex: 0 }), p.levelRow);
    return p.levelBox;
  }

  // -- taking along
  async save(what) {
    const found = await this.ask("export", { what });
    if (found) this.download(found[0].name, found[0].type, found[1][0]);
  }

  // -- words
  chips() {
    const { tokens, phrases, number } = this.session, p = this.parts;
    if (this.chipsOf === number) return;
    this.chipsOf = number;
    this.buttons = tokens.map((token, k) => make("button", {
      className: "hg-chip", text: token.text.trim() || (token.text.includes("\n") ? "⏎" : token.text ? "␣" : "·"), tabIndex: -1, title: token.row === null ? `${k}: it stands before the picture and cannot see it` : `word ${k}`,
      data: { testid: `word-${k}`, word: k }, aria: { disabled: String(token.row === null) }, on: {
        click: event => this.pick(k, event), keydown: event => this.chipKeys(event, k), focus: () => this.prefetch([k]), pointerenter: () => this.prefetch([k]),
      },
    }));
    for (const part of ["question", "answer"]) p[part].replaceChildren(...this.buttons.filter((_, k) => (tokens[k].part === "answer") === (part === "answer")));
    p.phrases.replaceChildren(...phrases.map(([text, words], k) => make("button", { className: "hg-chip hg-phrase", text, data: { testid: `phrase-${k}` }, on: { click: () => this.choose({ [this.which]: words }), pointerenter: () => this.prefetch(words) } })));
    const first = this.buttons.findIndex((_, k) => tokens[k].row !== null && tokens[k].part === "answer");
    if (this.buttons.length) this.buttons[Math.max(0, first)].tabIndex = 0;
    this.anchor = null; this.cell = null; this.shares = null;
  }
  prefetch(words, merge = this.choice.merge) { if (!this.store.rows && this.session.tokens[words[0]]?.row !== null) this.store.merged(words, merge).catch(() => {}); }
  pick(k, event) {
    if (this.session.tokens[k].row === null) return;
    const chosen = this.choice[this.which], sees = n => this.session.tokens[n].row !== null;
    let words = [k];
    if (event.shiftKey && this.anchor !== null) words = range(Math.min(this.anchor, k), Math.max(this.anchor, k) + 1).filter(sees);
    else if (event.ctrlKey || event.metaKey) words = chosen.includes(k) ? chosen.filter(n => n !== k) : [...chosen, k].sort((a, b) => a - b);
    if (!event.shiftKey) this.anchor = k;
    this.choose({ [this.which]: words });
  }
  chipKeys(event, k) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Enter" || event.key === " ") this.pick(k, event);
    else if (step) {
      const next = this.buttons[Math.min(this.buttons.length - 1, Math.max(0, k + step))];
      this.buttons[k].tabIndex = -1; next.tabIndex = 0; next.focus();
    } else return;
    event.preventDefault();
  }

  // -- places
  drag(canvas, which) {
    const at = event => { const box = canvas.getBoundingClientRect(); return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map(v => Math.min(1, Math.max(0, v))); };
    let from = null;
    canvas.addEventListener("pointerdown", event => { if (event.button) return; from = at(event); canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", event => {
      const here = at(event);
      this.tellValue(which, here);
      if (from) { this.dragged = this.between(from, here); this.draw(); }
    });
    canvas.addEventListener("pointerup", event => {
      if (!from) return;
      const here = at(event), far = Math.hypot(here[0] - from[0], here[1] - from[1]) > 0.02;
      this.cell = far ? null : this.cellAt(from); this.corner = null; this.dragged = null;
      this.region(far ? this.between(from, here) : this.boxOf(this.cell, this.cell));
      from = null;
    });
    canvas.addEventListener("pointercancel", () => { from = null; this.dragged = null; this.draw(); });
  }
  between(a, b) {                                               // never thinner than a hundredth
    const side = k => { const low = Math.min(a[k], b[k], 0.99); return [low, Math.max(a[k], b[k], low + 0.01)]; };
    const [[left, right], [top, bottom]] = [side(0), side(1)];
    return [left, top, right, bottom];
  }
  inPicture([row, column]) {                                    // the nearest cell that has some of the picture, not only of the bars beside it
    const { box: [left, top, right, bottom], side } = this.session, clamp = (v, low, high) => Math.min(Math.ceil(high * side - 1e-6) - 1, Math.max(Math.floor(low * side + 1e-6), v));
    return [clamp(row, top, bottom), clamp(column, left, right)];
  }
  cellAt([x, y]) {                                              // of a place in the picture: row and column
    const { box: [left, top, right, bottom], side } = this.session;
    return this.inPicture([Math.floor((top + y * (bottom - top)) * side), Math.floor((left + x * (right - left)) * side)]);
  }
  boxOf([row, column], [row2, column2]) {                       // what cells show of the picture, as shares of it, a little inside
    const { box: [left, top, right, bottom], side } = this.session, share = (v, low, high) => Math.min(1, Math.max(0, (v / side - low) / (high - low)));
    const edges = (one, other, low, high) => { const [from, to] = [share(Math.min(one, other), low, high), share(Math.max(one, other) + 1, low, high)], inset = 0.05 * (to - from) / (Math.abs(one - other) + 1); return [from + inset, to - inset]; };
    const [[x, x2], [y, y2]] = [edges(column, column2, left, right), edges(row, row2, top, bottom)];
    return [x, y, x2, y2];
  }
  region(box) { this.choose({ region: box }); }
  cellKeys(event, which) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step) {
      const old = this.cell ?? this.cellAt([0.5, 0.5]);
      this.corner = event.shiftKey ? this.corner ?? old : null;
      this.cell = this.inPicture(old.map((v, k) => v + step[k]));
      const [left, top, right, bottom] = this.boxOf(this.cell, this.cell);
      this.tellValue(which, [(left + right) / 2, (top + bottom) / 2]);
      if (event.shiftKey) this.region(this.boxOf(this.corner, this.cell)); else this.draw();
    } else if (event.key === "Enter" || event.key === " ") this.region(this.boxOf(this.cell ??= this.cellAt([0.5, 0.5]), this.corner ?? this.cell));
    else if (event.key === "Escape") { this.cell = this.corner = null; this.region(null); }
    else return;
    event.preventDefault();
  }
  tellValue(which, place) {
    const map = this.drawn[which]?.map;
    if (!map) return;
    const [row, column] = this.cellAt(place);
    this.parts.panels[which].value.textContent = `row ${row}, column ${column}: ${map[row * this.session.side + column].toPrecision(3)}`;
  }
  async showPlaces() {                                          // which words look at the region
    const { region, layer, head } = this.choice, p = this.parts, key = JSON.stringify([this.session.number, region, layer, head]);
    if (key === this.placesOf) return;
    this.placesOf = key;
    if (!region) { this.shares = null; p.places.replaceChildren(); return this.bars(); }
    if (this.page) return p.places.replaceChildren(make("p", { className: "hg-faint", text: "Which words look at a place is known in the notebook, not in this page." }));
    const found = await this.ask("words", { region, layer, head });
    if (!found) this.placesOf = null;
    if (!found || key !== this.placesOf) return;
    this.shares = found[0].words;
    const { tokens } = this.session, best = this.shares.slice(0, 8);
    p.places.replaceChildren(make("span", { className: "hg-name", text: "look here most" }), ...best.map(([k, share]) => make("button", {
      className: "hg-chip", text: `${tokens[k].text} ${percent(share)}`, title: `word ${k}`, data: { testid: `place-${k}` }, on: { click: () => this.choose({ [this.which]: [k] }) },
    })), make("button", { text: "no place", data: { testid: "no-place" }, on: { click: () => { this.cell = null; this.region(null); } } }));
    this.bars();
  }
  bars() {
    const top = this.shares?.[0]?.[1] ?? 0, by = new Map(this.shares ?? []);
    this.buttons?.forEach((button, k) => button.style.setProperty("--share", top > 0 && by.has(k) ? by.get(k) / top : 0));
  }
  async showLevels() {
    const p = this.parts;
    if (!p.levelBox.open || this.page) return;
    const [left, top, right, bottom] = this.choice.region ?? [0, 0, 1, 1], cell = this.cell ?? this.cellAt([(left + right) / 2, (top + bottom) / 2]), key = `${this.session.number} ${cell}`;
    if (this.levelsOf === key) return;
    this.levelsOf = key;
    const found = await this.ask("levels", { cell });
    if (!found) this.levelsOf = null;
    if (!found || this.levelsOf !== key) return;
    const [{ names }, [bytes]] = found, all = floats(bytes), { side } = this.session, size = side * side;
    p.levelRow.replaceChildren(...names.map((name, k) => {
      const canvas = make("canvas", { className: "hg-level", width: 160, height: Math.round(160 * this.store.bitmap.height / this.store.bitmap.width), aria: { role: "img", label: name } });
      const context = canvas.getContext("2d"), map = all.subarray(k * size, (k + 1) * size).map(v => Math.max(0, v));
      context.drawImage(this.store.bitmap, 0, 0, canvas.width, canvas.height);
      paintHeat(context, this.store, map, { ...this.looks, opacity: 0.8 });
      return make("figure", {}, canvas, make("figcaption", { text: name }));
    }), make("p", { className: "hg-faint", text: `row ${cell[0]}, column ${cell[1]}: how alike the tower finds each cell and this one, level by level (cosine, shown from 0 to 1)` }));
  }

  // -- heads
  takeHead() { const k = this.order[this.picked]; if (k !== undefined) { const { heads } = this.session; this.choose({ layer: Math.floor(k / heads), head: k % heads, way: "attention" }); this.tellHead(); } }
  tellHead() {
    const k = this.order[this.picked], { heads } = this.session;
    if (k === undefined || !this.scoreOf) return;
    const said = Object.keys(SCORES).map(name => `${name} ${this.scoreOf(name, k).toFixed(3)}`).join(", ");
    this.parts.headText.textContent = `layer ${Math.floor(k / heads)}, head ${k % heads}: ${said}`;
  }

  // -- drawing
  refresh() {
    if (this.gone || !this.refreshForm()) return;
    const p = this.parts, { session, choice, looks } = this;
    p.export.hidden = this.page; p.levels.hidden = this.page;
    this.chips();
    for (const which of WHICH) this.root.querySelector(`[data-testid=which-${which}]`).setAttribute("aria-pressed", this.which === which);
    const marks = JSON.stringify([session.number, this.which, choice.a, choice.b]);
    if (this.marksOf !== marks) {
      this.marksOf = marks;
      this.buttons.forEach((button, k) => { button.classList.toggle("hg-a", choice.a.includes(k)); button.classList.toggle("hg-b", choice.b.includes(k)); button.setAttribute("aria-pressed", choice[this.which].includes(k)); });
    }
    const options = (select, list) => { if (select.dataset.of !== String(list)) { select.dataset.of = String(list); select.replaceChildren(...list.map(([value, text]) => make("option", { value, text }))); } };
    options(p.way, session.ways.map(([name]) => [name, name])); options(p.colours, Object.keys(session.colours).map(name => [name, name])); options(p.by, session.mask_heads.map(name => [name, name]));
    p.byLabel.hidden = session.mask_heads.length < 2;
    for (const [name, count] of [["layer", session.layers], ["head", session.heads]]) { p[name].control.max = count - 1; p[name].set(choice[name] ?? -1, choice[name] === null ? "mean" : String(choice[name])); }
    p.threshold.set(Math.round(100 * choice.threshold), choice.threshold.toFixed(2)); p.opacity.set(Math.round(100 * looks.opacity), percent(looks.opacity));
    for (const name of ["merge", "sinks", "way"]) p[name].value = choice[name];
    p.by.value = choice.mask_head ?? session.mask_heads[0]; p.colours.value = looks.colours; p.sort.value = looks.sort;
    p.dropped.hidden = choice.sinks !== "drop"; p.dropped.value = choice.dropped; p.smooth.checked = looks.smooth; p.mask.checked = looks.mask;
    p.memory.textContent = session.memory ?? "";
    this.store.open().catch(error => this.fault(error));
    if (this.store.number === session.number) { this.draw(); this.showPlaces(); }
  }

  draw() { if (!this.waits) { this.waits = true; requestAnimationFrame(() => { this.waits = false; this.paint().catch(error => this.fault(error)); }); } }
  async paint() {
    const { store, choice } = this, turn = this.turn = (this.turn ?? 0) + 1;
    const shown = WHICH.filter(which => which === "a" || choice[which].length);
    const merged = await Promise.all(shown.map(which => store.merged(choice[which], choice.merge)));
    const other = choice.way === "attention" ? null : await Promise.all(shown.map(which => this.otherWay(choice.way, choice[which])));
    if (turn !== this.turn || this.gone) return;
    const before = this.number === this.session.number ? this.drawn : {};
    this.drawn = {}; this.number = this.session.number;
    shown.forEach((which, k) => {
      const maps = this.cleaned(which, merged[k]);
      this.drawn[which] = { maps, map: other ? other[k] : this.mapOf(maps), mask: before[which]?.words === String(choice[which]) && before[which]?.by === choice.mask_head ? before[which].mask : undefined, words: String(choice[which]), by: choice.mask_head };
    });
    for (const which of WHICH) this.paintPanel(which);
    this.root.dataset.frame = String(++this.frame);
    this.root.dataset.ready = "1";
    setTimeout(() => { if (turn === this.turn && !this.gone) this.drawGrid(); });
    for (const which of shown) this.fetchMask(which, turn);
    this.showLevels();
  }
  cleaned(which, maps) {                                        // the same object as before if nothing changed, so that others see that
    const { sinks, dropped } = this.choice, old = this.clean?.[which], key = `${sinks} ${sinks === "drop" ? dropped : ""}`;
    if (old?.from === maps && old.key === key) return old.maps;
    this.clean = { ...this.clean, [which]: { from: maps, key, maps: this.store.withoutSinks(maps, this.choice) } };
    return this.clean[which].maps;
  }
  otherWay(way, words) { return words.length ? this.store.other(way, words, this.choice.merge) : new Float32Array(this.session.side ** 2); }
  mapOf(maps) {
    const { layers, heads, side } = this.session, { layer, head } = this.choice;
    const chosen = range(0, layers * heads).filter(k => (layer === null || Math.floor(k / heads) === layer) && (head === null || k % heads === head));
    return meanOf(maps, side * side, chosen);
  }
  async fetchMask(which, turn) {                                // one at a time; what was wanted last is asked for next
    const words = this.choice[which], by = this.choice.mask_head ?? this.session.mask_heads[0];
    if (!words.length || !by) return;                           // no head, no mask
    const before = this.masking;
    let done;
    this.masking = new Promise(resolve => { done = resolve; });
    await before;
    try {
      if (turn !== this.turn || this.gone) return;
      const mask = await this.store.mask(words, by);
      if (turn !== this.turn || this.gone) return;
      const old = this.drawn[which].mask;
      this.drawn[which].mask = mask;
      if (old === mask) return;
      this.paintPanel(which);
      this.root.dataset.frame = String(++this.frame);
      if (which === "a") this.drawGrid();
    } catch (error) { if (turn === this.turn) this.fault(error); } finally { done(); }
  }
  said(which) {
    let text = "", before = null;
    for (const k of this.choice[which]) {
      const token = this.session.tokens[k], last = this.session.tokens[before];
      if (last && k !== before + 1) text += " … ";
      if (!last || token.part !== last.part || token.start !== last.start || token.end !== last.end) text += token.text; // a letter of several tokens is said once
      before = k;
    }
    return text.trim() || "no word is chosen";
  }
  paintPanel(which) {
    const panel = this.parts.panels[which], drawn = this.drawn[which], { bitmap } = this.store, { canvas } = panel, { choice, looks } = this;
    panel.root.hidden = !drawn;
    if (!drawn) return;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) { canvas.width = bitmap.width; canvas.height = bitmap.height; canvas.style.width = `min(100%, ${Math.round(70 * bitmap.width / bitmap.height)}vh)`; }
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = true; context.drawImage(bitmap, 0, 0);
    if (looks.opacity > 0) paintHeat(context, this.store, drawn.map, looks);
    const step = Math.round(100 * choice.threshold);
    if (looks.mask && drawn.mask) paintMask(context, drawn.mask, step, 130 - 90 * looks.opacity);
    const outline = ([left, top, right, bottom], dash) => { for (const [colour, width] of [["#111", 4], ["#fff", 2]]) { context.setLineDash(dash); context.strokeStyle = colour; context.lineWidth = width * Math.max(1, canvas.width / 512); context.strokeRect(left * canvas.width, top * canvas.height, (right - left) * canvas.width, (bottom - top) * canvas.height); } };
    if (this.dragged ?? choice.region) outline(this.dragged ?? choice.region, []);
    if (this.cell) outline(this.boxOf(this.cell, this.cell), [6, 6]);
    const words = this.said(which), iou = drawn.mask?.iou?.[step], sinks = { keep: "", drop: `, without the ${choice.dropped} brightest cells of all words`, subtract: ", less the mean over all words" }[choice.sinks];
    const where = choice.way !== "attention" ? Object.fromEntries(this.session.ways)[choice.way] : choice.layer === null && choice.head === null ? "all layers and heads" : `layer ${choice.layer ?? "mean"}, head ${choice.head ?? "mean"}`;
    panel.title.textContent = `${which.toUpperCase()}: ${words}`;
    const scores = [`${where}${choice.way === "attention" ? sinks : ""}`, `brightest cell ${biggest(drawn.map).toPrecision(2)}`];
    if (choice.way === "attention") scores.push(`on the grid ${percent(mass(drawn.map))}`);
    if (drawn.mask) scores.push(`mask ${percent(drawn.mask.area[step])} of the picture`);
    if (iou !== undefined) scores.push(`IoU ${iou.toFixed(3)}`);
    panel.scores.textContent = scores.join(" · ");
    canvas.setAttribute("aria-label", `picture with ${looks.mask && drawn.mask ? "the mask and " : ""}the attention of: ${words}. Arrows move a cell, Enter shows which words look there.`);
  }

  goal() {                                                      // how much of each cell is meant: by the truth, else by the mask
    const { goal, side, box: [left, top, right, bottom] } = this.session, { mask } = this.drawn.a;
    if (goal || !mask) return goal ? Float32Array.from(goal) : null;
    const { steps, width, height } = mask, step = Math.round(100 * this.choice.threshold), out = new Float32Array(side * side), x = (right - left) / width, y = (bottom - top) / height;
    for (let i = 0; i < steps.length; i++) if (steps[i] > step) out[Math.floor((top + (Math.floor(i / width) + 0.5) * y) * side) * side + Math.floor((left + ((i % width) + 0.5) * x) * side)] += x * y * side * side;
    return out;
  }
  score() {                                                     // heads in order
    const { layers, heads, side } = this.session, { maps } = this.drawn.a, size = side * side, goal = this.goal();
    const score = { mass, focus, fit: map => (goal ? fit(map, goal) : 0) };
    this.scoreOf = (name, k) => score[name](maps.subarray(k * size, (k + 1) * size));
    this.order = range(0, layers * heads);
    if (!score[this.looks.sort]) return;
    const by = this.order.map(k => this.scoreOf(this.looks.sort, k));
    this.order.sort((a, b) => by[b] - by[a] || a - b);
  }
  drawGrid() {
    const { maps, mask } = this.drawn.a ?? {}, { looks, session: { layers, heads, side } } = this;
    if (!maps) return;
    const old = this.thumbnails, goal = this.session.goal ? "truth" : `${this.choice.threshold}`;
    if (!old || old.maps !== maps || old.mask !== mask || old.goal !== goal || old.colours !== looks.colours || old.sort !== looks.sort) {
      this.score();
      this.thumbnails = { maps, mask, goal, colours: looks.colours, sort: looks.sort, canvas: this.drawThumbnails(maps) };
    }
    const { grid } = this.parts, { canvas } = this.thumbnails, cell = side + 1;
    this.columns = heads; this.rows = layers;
    if (grid.width !== canvas.width || grid.height !== canvas.height) { grid.width = canvas.width; grid.height = canvas.height; grid.style.width = `${Math.min(640, heads * Math.max(cell, 72))}px`; }
    const context = grid.getContext("2d");
    context.clearRect(0, 0, grid.width, grid.height);
    context.drawImage(canvas, 0, 0);
    const { layer, head } = this.choice, frame = (place, colour) => { context.strokeStyle = colour; context.lineWidth = Math.max(1, cell / 16); context.strokeRect((place % heads) * cell, Math.floor(place / heads) * cell, side, side); };
    this.order.forEach((k, place) => { if ((layer !== null || head !== null) && (layer === null || Math.floor(k / heads) === layer) && (head === null || k % heads === head)) frame(place, "#e8590c"); });
    if (document.activeElement === grid) frame(this.picked, "#fff");
    this.tellHead();
    this.root.dataset.grid = String(this.frame);
  }
  drawThumbnails(maps) {                                        // each on its own scale
    const { layers, heads, side } = this.session, cell = side + 1, size = side * side, canvas = new OffscreenCanvas(heads * cell, layers * cell), context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height), pixels = new Int32Array(image.data.buffer), colour = colours(this.session, this.looks.colours);
    const table = range(0, 256).map(k => { const [r, g, b] = colour(k / 255); return (255 << 24) | (b << 16) | (g << 8) | r; });
    this.order.forEach((k, place) => {
      const map = maps.subarray(k * size, (k + 1) * size), top = biggest(map), x = (place % heads) * cell, y = Math.floor(place / heads) * cell;
      for (let i = 0; i < size; i++) pixels[(y + Math.floor(i / side)) * canvas.width + x + (i % side)] = table[top > 0 ? Math.round(255 * map[i] / top) : 0];
    });
    context.putImageData(image, 0, 0);
    return canvas;
  }
}

export default {
  render({ model, el }) { const view = new View(model, el); return () => view.close(); },
};
