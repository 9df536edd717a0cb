// An exported page: what the kernel would say is in the page, under the questions it answers. Its own module and its data are the elements of these names.

const held = JSON.parse(document.getElementById("held").textContent);
const heard = {};

async function bytes(text) {
  const packed = new Blob([Uint8Array.from(atob(text), c => c.charCodeAt(0))]);
  return new DataView(await new Response(packed.stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
}

const model = {
  get: name => held.traits[name],
  set: (name, value) => { held.traits[name] = value; for (const hear of heard[`change:${name}`] ?? []) hear(); },
  save_changes() {},
  on: (name, hear) => (heard[name] ??= []).push(hear),
  off: (name, hear) => { heard[name] = (heard[name] ?? []).filter(one => one !== hear); },
  async send({ kind, seq, words, how, by, way }) {
    const found = held.answers[[kind, way, how ?? by, words].filter(part => part !== undefined && part !== null).join(" ")];
    const said = found ? { seq, ...found.said } : { seq, error: `This page holds the ${kind === "mask" ? "masks" : "maps"} of what was chosen and of the noun phrases. For other words open the notebook.` };
    const buffers = found ? await Promise.all(found.buffers.map(bytes)) : [];
    for (const hear of heard["msg:custom"] ?? []) hear(said, buffers);
  },
};

const view = await import(URL.createObjectURL(new Blob([JSON.parse(document.getElementById("view").textContent)], { type: "text/javascript" })));
view.default.render({ model, el: document.getElementById("place") });
