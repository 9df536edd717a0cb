// What the explorer and the chat share. This file and explorer.js, or chat.js, one after the other are one ES module without imports, so that it works wherever
// it is carried: in a notebook by anywidget (model: what the kernel sends), and in an exported page (model: page.js). The kernel decides what is so; here it is drawn.

// ---- numbers -------------------------------------------------------------------------------------------------------------------------------------------

const SCALE = 2 ** -15;                                          // maps come multiplied, else heads that hardly look at the picture would be lost in float16

const floats = (() => {                                         // bytes of float16 as float32; a table where the browser has no float16
  let table = null;
  return view => {
    const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
    if (globalThis.Float16Array) {
      const out = new Float32Array(new Float16Array(bytes));
      for (let i = 0; i < out.length; i++) out[i] *= SCALE;
      return out;
    }
    table ??= Float32Array.from({ length: 65536 }, (_, n) => {
      const sign = n >> 15 ? -1 : 1, exponent = (n >> 10) & 31, rest = n & 1023;
      if (exponent === 31) return rest ? NaN : sign * Infinity;
      return sign * (exponent ? 2 ** (exponent - 15) * (1 + rest / 1024) : 2 ** -14 * (rest / 1024));
    });
    return Float32Array.from(new Uint16Array(bytes), n => table[n] * SCALE);
  };
})();

const mass = map => { let sum = 0; for (const v of map) sum += v; return sum; };

function focus(map) {                                           // 0: even, 1: all on one cell
  const sum = mass(map);
  if (!(sum > 0)) return 0;
  let entropy = 0;
  for (const v of map) { const share = v / sum; if (share > 0) entropy -= share * Math.log(share); }
  return Math.min(1, Math.max(0, 1 - entropy / Math.log(map.length)));
}

function fit(map, goal) {                                       // IoU of the goal with as many of the brightest cells as it has
  const total = mass(goal), count = Math.min(map.length, Math.max(1, Math.round(total)));
  if (!(total > 0)) return 0;
  const least = Float32Array.from(map).sort()[map.length - count];
  let both = 0, left = count;
  for (let i = 0; i < map.length; i++) if (map[i] > least) { both += goal[i]; left--; }
  for (let i = 0; i < map.length && left; i++) if (map[i] === least) { both += goal[i]; left--; }
  return both / (count + total - both);
}

function meanOf(maps, cells, chosen) {                          // of some maps of a stack
  const out = new Float32Array(cells);
  for (const k of chosen) for (let i = 0; i < cells; i++) out[i] += maps[k * cells + i];
  for (let i = 0; i < cells; i++) out[i] /= chosen.length;
  return out;
}

const range = (from, to) => Array.from({ length: Math.max(0, to - from) }, (_, k) => from + k);
const biggest = map => { let top = 0; for (const v of map) if (v > top) top = v; return top; };
const percent = v => `${(100 * v).toFixed(v < 0.0995 ? 1 : 0)} %`;

// ---- what was asked of the kernel -----------------------------------------------------------------------------------------------------------------------

const TRAITS = ["session", "choice", "looks", "status"], SILENT = 2000, REMEMBERED = 16;

class Store {
  constructor(model) {
    Object.assign(this, { model, me: Math.random().toString(36).slice(2), seq: 0, waiting: new Map(), maps: new Map(), masks: new Map(), heard: new Set(), silent: false, number: -1 });
    model.on("msg:custom", (message, buffers) => this.hear(message, buffers ?? []));
  }
  get session() { return this.model.get("session"); }
  tell() { for (const one of this.heard) one(); }
  ask(kind, body = {}, buffers = []) {
    const seq = `${this.me} ${++this.seq}`;                      // answers go to all pages of a widget
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => { this.silent = true; this.tell(); }, SILENT);
      this.waiting.set(seq, { resolve, reject, timer });
      this.model.send({ kind, seq, ...body }, undefined, buffers);
    });
  }
  hear({ seq, acknowledged, error, ...said }, buffers) {
    const one = this.waiting.get(seq);
    if (!one) return;                                           // of another page, or from before
    clearTimeout(one.timer);
    if (this.silent) { this.silent = false; this.tell(); }
    if (acknowledged) return;                                   // it is being worked on
    this.waiting.delete(seq);
    error ? one.reject(new Error(error)) : one.resolve([said, buffers]);
  }
  async open() {                                                // the picture, and what all words have in common
    const number = this.session.number;
    if (this.number === number || !this.session.tokens) return;
    if (this.opening === number) return this.opened;
    this.opening = number;
    return this.opened = this.ask("open").then(async ([said, [picture, base, rows]]) => {
      const bitmap = await createImageBitmap(new Blob([picture], { type: "image/jpeg" }));
      this.maps.clear(); this.masks.clear();
      Object.assign(this, { bitmap, base: floats(base), rows: rows?.byteLength ? floats(rows) : null, number: said.number });
      this.tell();
    }).catch(error => { this.opening = null; throw error; });
  }
  remember(where, key, made) {
    if (where.has(key)) { const value = where.get(key); where.delete(key); where.set(key, value); return value; }
    const value = made();
    where.set(key, value);
    value.catch(() => where.delete(key));
    while (where.size > REMEMBERED) where.delete(where.keys().next().value);
    return value;
  }
  merged(words, how) {                                          // all maps of some words: here if all rows are here, else by the kernel
    return this.remember(this.maps, `${how} ${words}`, async () => {
      const { tokens, layers, heads, side } = this.session, size = layers * heads * side * side;
      if (!words.length) return new Float32Array(size);
      if (!this.rows) return this.ask("maps", { words, how }).then(([, [maps]]) => floats(maps));
      const rows = words.map(k => tokens[k].row), of = row => this.rows.subarray(row * size, (row + 1) * size);
      if (how === "last") return of(rows.at(-1)).slice();
      const out = of(rows[0]).slice();
      for (const row of rows.slice(1)) { const more = of(row); for (let i = 0; i < size; i++) out[i] = how === "max" ? Math.max(out[i], more[i]) : out[i] + more[i]; }
      if (how === "mean") for (let i = 0; i < size; i++) out[i] /= rows.length;
      return out;
    });
  }
  mask(words, by) {                                             // of each pixel, how many thresholds it is above; and how well each fits
    return this.remember(this.masks, `${by} ${words}`, () => this.ask("mask", { words, by }).then(([said, [steps]]) => ({ ...said, steps: new Uint8Array(steps.buffer, steps.byteOffset, steps.byteLength) })));
  }
  other(way, words, how) {                                      // a map that is made another way: rollout, relevancy
    return this.remember(this.maps, `${way} ${how} ${words}`, () => this.ask("way", { way, words, how }).then(([{ peak }, [map]]) => floats(map).map(v => v * peak)));
  }
  withoutSinks(maps, { sinks, dropped }) {
    const { side } = this.session, cells = side * side;
    if (sinks === "keep") return maps;
    if (sinks === "subtract") return maps.map((v, i) => Math.max(0, v - this.base[i]));
    const out = maps.slice();
    for (const cell of this.session.sinks.slice(0, dropped)) for (let i = cell; i < out.length; i += cells) out[i] = 0;
    return out;
  }
}

// ---- elements ------------------------------------------------------------------------------------------------------------------------------------------

function make(tag, { text, on = {}, aria = {}, data = {}, ...rest } = {}, ...children) {
  const one = Object.assign(document.createElement(tag), rest);
  if (text !== undefined) one.textContent = text;
  for (const [name, value] of Object.entries(aria)) one.setAttribute(name === "role" ? name : `aria-${name}`, value);
  for (const [name, value] of Object.entries(data)) one.dataset[name] = value;
  for (const [name, value] of Object.entries(on)) one.addEventListener(name, value);
  if (["button", "input", "select", "textarea"].includes(tag) || one.tabIndex === 0) one.dataset.lmSuppressShortcuts = "true"; // else JupyterLab takes the keys
  one.append(...children.filter(Boolean));
  return one;
}

const labelled = (text, control, after) => make("label", { className: "hg-label" }, make("span", { text }), control, after);

function choices(name, options, on) {
  return make("select", { data: { testid: name }, on: { change: event => on(event.target.value) } }, ...options.map(([value, text]) => make("option", { value, text })));
}

function slider(name, [min, max, step], on) {
  const shown = make("output", { className: "hg-value", data: { testid: `${name}-value` } });
  const control = make("input", { type: "range", min, max, step, data: { testid: name }, on: { input: event => on(+event.target.value) } });
  return { control, shown, set: (value, text) => { if (+control.value !== value) control.value = value; shown.textContent = text; control.setAttribute("aria-valuetext", text); } };
}

// ---- pictures ------------------------------------------------------------------------------------------------------------------------------------------

function colours(session, name) {
  const bytes = Uint8Array.from(atob(session.colours[name]), c => c.charCodeAt(0));
  return level => { const k = 3 * Math.min(255, Math.max(0, Math.round(255 * level))); return [bytes[k], bytes[k + 1], bytes[k + 2]]; };
}

function heatOf(map, side, colour, top) {                       // a canvas of one pixel a cell, clearer where there is less
  const canvas = new OffscreenCanvas(side, side), context = canvas.getContext("2d"), image = context.createImageData(side, side);
  for (let i = 0; i < map.length; i++) {
    const level = top > 0 ? map[i] / top : 0;
    image.data.set([...colour(level), 255 * Math.min(1, 0.25 + 0.75 * level)], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function paintHeat(context, store, map, { smooth, opacity, colours: name }) {
  const { box, side } = store.session, { width, height } = context.canvas, [left, top, right, bottom] = box.map(share => share * side);
  let brightest = 0;                                                // on its own scale, cells of the bars left out
  for (let i = 0; i < map.length; i++) { const row = Math.floor(i / side), column = i % side; if (row + 1 > top && row < bottom && column + 1 > left && column < right && map[i] > brightest) brightest = map[i]; }
  const heat = heatOf(map, side, colours(store.session, name), brightest);
  context.save();
  context.imageSmoothingEnabled = smooth; context.imageSmoothingQuality = "high"; context.globalAlpha = opacity;
  context.beginPath(); context.rect(0, 0, width, height); context.clip();
  const x = width / (right - left), y = height / (bottom - top);   // the whole grid is drawn, what is bars around the picture falls outside
  context.drawImage(heat, -left * x, -top * y, side * x, side * y);
  context.restore();
}

function paintMask(context, { steps, width, height }, step, fade) { // what is outside fades, with a light and a dark rim
  const canvas = new OffscreenCanvas(width, height), paint = canvas.getContext("2d"), image = paint.createImageData(width, height);
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && steps[y * width + x] > step;
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const here = inside(x, y), rim = here !== inside(x + 1, y) || here !== inside(x, y + 1) || here !== inside(x - 1, y) || here !== inside(x, y - 1);
    image.data.set(rim ? (here ? [255, 255, 255, 255] : [20, 20, 20, 255]) : here ? [0, 0, 0, 0] : [250, 250, 250, fade], 4 * (y * width + x));
  }
  paint.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = true;
  context.drawImage(canvas, 0, 0, context.canvas.width, context.canvas.height);
}

// ---- what every page has: a form, and a place for what goes wrong --------------------------------------------------------------------------------------

class Page {
  constructor(model, el, own) {
    Object.assign(this, { model, store: new Store(model), parts: {}, gone: false, frame: 0 }, own);
    const p = this.parts;
    this.root = make("div", { className: "hg", data: { testid: this.name, ready: "0", frame: "0" } });
    p.form = this.buildForm();
    p.status = make("p", { className: "hg-status", aria: { role: "status" }, data: { testid: "status" } });
    p.fault = make("p", { className: "hg-fault", aria: { role: "alert" }, data: { testid: "fault" } });
    p.silent = make("p", { className: "hg-fault", aria: { role: "alert" }, data: { testid: "silent" } });
    this.root.append(p.form, p.status, p.fault, p.silent, p.all = this.build());
    el.append(this.root);
    this.changed = () => this.refresh();
    this.store.heard.add(this.changed);
    for (const name of TRAITS) model.on(`change:${name}`, this.changed);
    this.refresh();
  }
  close() {
    this.gone = true;
    this.store.heard.delete(this.changed);
    for (const name of TRAITS) this.model.off(`change:${name}`, this.changed);
  }
  get session() { return this.store.session; }
  get choice() { return this.model.get("choice"); }
  get looks() { return this.model.get("looks"); }
  get page() { return Boolean(this.session.page); }             // exported: there is nobody to ask
  choose(changes) { this.put("choice", changes); }
  look(changes) { this.put("looks", changes); }
  put(trait, changes) {
    this.model.set(trait, { ...this.model.get(trait), ...changes });
    this.model.save_changes();                                  // and the model tells of the change
  }
  fault(error) { this.parts.fault.textContent = error ? `${error.message ?? error}` : ""; }
  async ask(kind, body, buffers) {
    this.fault("");
    try { return await this.store.ask(kind, body, buffers); } catch (error) { this.fault(error); return null; }
  }

  buildForm() {
    const p = this.parts;
    p.file = make("input", { type: "file", accept: "image/*", data: { testid: "file" }, on: { change: async event => { await this.upload(event.target.files[0]); event.target.value = ""; } } });
    p.sample = make("input", { type: "number", min: 0, step: 1, value: 0, data: { testid: "sample" }, on: { change: () => this.sample(), keydown: event => { if (event.key === "Enter") this.sample(); } } });
    p.samples = labelled("or sample", p.sample);
    p.meant = choices("meant", [], phrase => this.ask("sample", { number: this.session.sample, phrase: +phrase }));
    p.truth = labelled("what is meant", p.meant);
    p.prompt = make("textarea", { rows: 2, data: { testid: "prompt" }, aria: { label: "question" }, on: { keydown: event => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.question(); } } } });
    p.ask = make("button", { className: "hg-main-button", text: "Ask", data: { testid: "ask" }, on: { click: () => this.question() } });
    p.stop = make("button", { text: "Stop", data: { testid: "stop" }, on: { click: () => this.ask("stop") } });
    return make("div", { className: "hg-form" }, make("div", { className: "hg-row" }, labelled("picture", p.file), p.samples, p.truth), make("div", { className: "hg-row" }, p.prompt, p.ask, p.stop));
  }

  async upload(file) {                                          // scaled here: a message to the kernel may have 10 MiB
    if (!file) return;
    try {
      const whole = await createImageBitmap(file), share = Math.min(1, 1600 / Math.max(whole.width, whole.height));
      const canvas = new OffscreenCanvas(Math.max(1, Math.round(whole.width * share)), Math.max(1, Math.round(whole.height * share)));
      canvas.getContext("2d").drawImage(whole, 0, 0, canvas.width, canvas.height);
      const bytes = await (await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 })).arrayBuffer();
      await this.ask("picture", { name: file.name, width: whole.width, height: whole.height }, [bytes]);
    } catch (error) { this.fault(`${file.name}: this browser cannot read it as a picture (${error.message}).`); }
  }
  async sample() {
    const { sample } = this.parts;
    if (sample.value !== "" && !(await this.ask("sample", { number: +sample.value, phrase: 0 }))) sample.value = this.session.sample ?? "";
  }
  question() { return this.ask("ask", { question: this.parts.prompt.value }); }

  download(name, type, bytes) {
    const link = make("a", { href: URL.createObjectURL(new Blob([bytes], { type })), download: name });
    document.body.append(link); link.click(); link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  refreshForm() {                                               // false if there is nothing more to show yet
    const p = this.parts, { session } = this, status = this.model.get("status"), known = this.known();
    p.form.hidden = this.page; p.all.hidden = !known;
    p.status.textContent = status.text ?? ""; p.status.dataset.state = status.state ?? "";
    if (status.errors !== this.errors) { this.errors = status.errors; this.fault(status.error ?? ""); }
    p.silent.textContent = this.store.silent ? `No answer from the kernel for ${SILENT / 1000} s: it is busy with another cell, or was restarted. If it was restarted, run the cell again.` : "";
    const asking = status.state === "asking";
    for (const one of [p.ask, p.file, p.sample, p.meant, p.fresh]) if (one) one.disabled = asking;
    p.stop.disabled = !asking;
    p.samples.hidden = !session.samples; p.truth.hidden = !session.meant?.length || this.name === "chat"; p.sample.max = Math.max(0, (session.samples ?? 0) - 1);
    const meant = session.meant ?? [];
    if (this.meantOf !== String(meant)) { this.meantOf = String(meant); p.meant.replaceChildren(...meant.map((text, k) => make("option", { value: k, text }))); }
    if (this.sampleOf !== `${session.sample}`) { this.sampleOf = `${session.sample}`; p.sample.value = session.sample ?? ""; }
    p.meant.value = session.phrase ?? 0;
    if (this.questionOf !== session.question) { this.questionOf = session.question; p.prompt.value = session.question ?? ""; }
    if (!known) this.root.dataset.ready = "empty";
    return known;
  }
}
