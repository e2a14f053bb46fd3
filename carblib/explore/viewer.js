// The explorer on the page. It gets an image, its masks (train ids) and CLIP's similarity grids once, and does all that
// follows (zoom, pan, readout, legend, outlines, errors, swipe, brightness) without asking the kernel again.

const KEYS = [
  ["→ or n, ← or p", "next, previous image"],
  ["Home, End", "first, last image of the list"],
  ["+ − 0, wheel, double click", "zoom in, out, whole image"],
  ["Shift + arrows, drag", "move the zoomed image"],
  ["Alt + arrows, drag the box", "move the local view"],
  ["1 … 9", "panel on or off; its ⤢ shows it alone"],
  ["c, C", "next, previous class: its similarity is shown"],
  ["s", "this class alone, or all again"],
  ["h", "hide or show this class"],
  ["f", "fill, outline, errors"],
  ["o, O · b, B", "less, more opacity · brightness"],
  ["w · [ ]", "swipe on or off · move its line"],
  ["l · t · g", "local view · tag this image · gallery"],
  ["?, Esc", "this help, close it"],
];
const RELEASES = ["pointerup", "pointercancel", "keyup"];
const MODES = ["fill", "outline", "errors"];
const VOID = 255, NOISY = 254, WINS = 253, NOTHING = 252; // what is no train id

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node[name] = value;
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const limit = (value, low, high) => Math.min(Math.max(value, low), high);
const percent = (share) => (share == null ? "–" : (100 * share).toFixed(1));
const signed = (value) => value.toFixed(2).replace("-", "−");
const bytesOf = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

async function inflated(view) {
  const stream = new Blob([bytesOf(view)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// A colour as a canvas keeps it in 32 bits, opaque.
const packed = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;

function idsIn(map) { // a Set of two million pixels would take ten times as long
  const seen = new Uint8Array(256);
  for (let i = 0; i < map.length; i++) seen[map[i]] = 1;
  return [...seen.keys()].filter((id) => seen[id]);
}

const bitmapOf = (view) => createImageBitmap(new Blob([bytesOf(view)]));

// Bilinear between the centres of a grid's cells, as the masker resizes similarities. u, v: shares of width and height.
function gridValue(grid, channel, u, v) {
  const [, h, w] = grid.shape;
  const x = limit(u * w - 0.5, 0, w - 1), y = limit(v * h - 0.5, 0, h - 1);
  const left = Math.floor(x), top = Math.floor(y), right = Math.min(left + 1, w - 1), bottom = Math.min(top + 1, h - 1);
  const a = x - left, b = y - top, values = grid.values, at = channel * h * w;
  const above = values[at + top * w + left] * (1 - a) + values[at + top * w + right] * a;
  const below = values[at + bottom * w + left] * (1 - a) + values[at + bottom * w + right] * a;
  return above * (1 - b) + below * b;
}

class Viewer {
  constructor(model, el) {
    this.model = model;
    this.setup = model.get("setup");
    this.look = structuredClone(model.get("look"));
    this.image = null; this.maps = []; this.grids = []; this.panels = new Map();
    this.queue = []; this.waiting = null; this.loads = 0; this.frames = 0; this.hover = null;
    this.held = null; this.late = new Map();
    this.build(el);
    this.listeners = { picture: () => this.load(), detail: () => this.sharpen(), layers: () => this.load(), look: () => this.looked(),
      class_id: () => this.update(), status: () => this.say(), gallery: () => this.showGallery(),
      results: () => this.showResults(), place: () => this.showPlace(), local: () => this.schedule(),
      answered: () => { this.waiting = null; this.flush(); } };
    for (const [name, call] of Object.entries(this.listeners)) model.on(`change:${name}`, call);
    for (const name of RELEASES) window.addEventListener(name, this.letGo, true);
    this.resizing = new ResizeObserver(() => {
      const frame = this.root.closest(".widget-vbox"); // which ipywidgets gives neither role nor name
      frame?.setAttribute("role", "region"); frame?.setAttribute("aria-label", "explorer with its controls");
      this.styled = false; this.schedule();
    });
    this.resizing.observe(this.grid);
    this.say(); this.showPlace(); this.showGallery(); this.showResults(); this.load();
  }

  close() {
    this.resizing.disconnect();
    cancelAnimationFrame(this.frame); clearTimeout(this.still); clearTimeout(this.saving); clearTimeout(this.letting);
    this.loads++; this.image = null; // what is still being decoded comes too late
    for (const [name, call] of Object.entries(this.listeners)) this.model.off(`change:${name}`, call);
    for (const name of RELEASES) window.removeEventListener(name, this.letGo, true);
  }

  // --- the page ---------------------------------------------------------------------------------------------------

  build(el) {
    const button = (label, text, onclick, more = {}) => make("button", { type: "button", "aria-label": label,
      title: label, onclick, ...more }, text);
    const range = (label, name, min, max, step) => {
      const input = make("input", { type: "range", min, max, step, "aria-label": label, title: label,
        oninput: () => this.set({ [name]: Number(input.value) }) });
      return (this.inputs[name] = input);
    };
    this.inputs = {};
    this.place = make("input", { type: "range", min: 1, "aria-label": "image of the list",
      onchange: () => this.send({ kind: "goto", place: this.place.value - 1 }) });
    this.where = make("span", { class: "where" });
    this.modes = make("div", { role: "group", "aria-label": "masks are drawn as", class: "group" },
      ...MODES.map((mode) => button(`masks as ${mode}`, mode, () => this.set({ mode }), { "data-mode": mode })));
    this.toggles = make("div", { role: "group", "aria-label": "panels", class: "group panels" });
    const sides = ["a", "b"].map((side) => (this.inputs[side] = make("select", {
      "aria-label": side === "a" ? "left of the line" : "right of the line",
      onchange: (event) => this.set({ [side]: event.target.value }) })));
    this.swipeOn = button("swipe: compare two maps by a line", "swipe", () => this.set({ swipe: !this.look.swipe }));
    this.swiping = make("span", { class: "group" }, sides[0], range("swipe line", "at", 0, 1, 0.01), sides[1]);
    const bar = make("div", { class: "bar", role: "toolbar", "aria-label": "image and view" },
      button("previous image", "◀", () => this.go(-1)), this.place, button("next image", "▶", () => this.go(1)),
      this.where, this.modes,
      make("label", {}, "opacity ", range("opacity of masks", "opacity", 0, 1, 0.05)),
      make("label", {}, "brightness ", range("brightness of the image", "brightness", 0.5, 6, 0.1)),
      button("zoom: whole image again", "⟲ zoom", () => this.reset()), this.swipeOn, this.swiping,
      button("keys and help", "?", () => this.toggleHelp()));
    this.status = make("p", { role: "status", "aria-live": "polite", class: "status" });
    this.grid = make("div", { class: "grid" });
    this.readout = make("div", { class: "readout", "aria-label": "what is under the pointer", role: "group" });
    this.legend = make("table", { class: "legend", "aria-label": "classes: shown, and IoU in % of this image" });
    this.histogram = make("canvas", { width: 240, height: 70, role: "img", class: "histogram" });
    this.scale = make("div", { class: "scale" });
    this.tag = make("input", { type: "text", "aria-label": "tag for this image, then Enter", placeholder: "tag, Enter",
      onkeydown: (event) => {
        if (event.key !== "Enter" || !this.tag.value.trim()) return;
        this.send({ kind: "tag", text: this.tag.value.trim() });
        this.tag.value = "";
      } });
    this.tags = make("span", { class: "tags" });
    this.gallery = make("div", { class: "gallery", role: "group", "aria-label": "gallery of the list" });
    this.results = make("details", { class: "results" });
    this.help = make("dialog", { "aria-label": "keys" }, make("h3", {}, "Keys of the explorer"),
      make("table", {}, ...KEYS.map(([keys, what]) => make("tr", {}, make("th", { scope: "row" }, keys),
        make("td", {}, what)))),
      button("close the help", "close", () => this.toggleHelp()));
    const side = make("aside", { "aria-label": "classes, scores and tags" }, this.legend, this.histogram, this.scale,
      make("div", {}, this.tag, this.tags));
    this.root = make("section", { class: "carblib-viewer", tabindex: 0, "aria-label": "explorer: press ? for its keys",
      "data-lm-suppress-shortcuts": "true", onkeydown: (event) => { if (event.key === " ") this.hold(event); this.pressed(event); },
      onpointerdown: (event) => { if (!event.button) this.hold(event); } },
    bar, this.toggles, this.status, make("div", { class: "main" }, make("div", { class: "left" }, this.grid, this.readout),
      side), this.gallery, this.results, this.help);
    el.append(this.root);
  }

  say() {
    const { text, error } = this.model.get("status");
    this.status.textContent = text;
    this.status.classList.toggle("error", Boolean(error));
  }

  showPlace() {
    const { place, count, name, tags } = this.model.get("place");
    this.place.max = count; this.place.value = place + 1;
    this.where.textContent = count ? `${place + 1} of ${count} · ${name}` : "no image in the list";
    this.markThumb();
    this.refill(this.tags, ...tags.map((text) => make("button", { type: "button", "aria-label": `${text} ×: remove this tag`,
      onclick: () => this.send({ kind: "untag", text }) }, `${text} ×`)));
  }

  // Put nodes in place of others; where one of these had the focus, its like has it then, or keys would mean nothing.
  // Where one of them is being pressed, when it is let go: a click that ends on another node than it began on is lost.
  refill(place, ...nodes) {
    if (place.contains(this.held)) return this.late.set(place, nodes);
    this.late.delete(place);
    const label = (node) => node.getAttribute("aria-label") ?? node.textContent, held = document.activeElement;
    const within = place.contains(held);
    place.replaceChildren(...nodes);
    if (within) ([...place.querySelectorAll("button:enabled, input, summary")].find((node) => label(node) === label(held)) ?? this.root).focus({ preventScroll: true });
  }

  hold(event) { clearTimeout(this.letting); this.held = event.target; }

  letGo = () => {
    if (!this.held) return;
    clearTimeout(this.letting);
    this.letting = setTimeout(() => { // after the click
      this.held = null;
      for (const [place, nodes] of this.late) this.refill(place, ...nodes);
      this.markThumb();
    });
  };

  // --- what comes from the kernel ---------------------------------------------------------------------------------

  load() { // of both picture and layers, when both have come
    if (!this.loading) queueMicrotask(() => { this.loading = false; this.decode(); });
    this.loading = true;
  }

  async decode() {
    const turn = ++this.loads, picture = this.model.get("picture"), layers = this.model.get("layers");
    if (!picture.data) {
      this.image = this.layers = this.box = this.patch = null; this.maps = []; this.grids = [];
      this.readout.replaceChildren();
      return this.update();
    }
    const mine = layers.key === picture.key ? layers : { maps: [], similarity: [], scores: [], names: [], pending: true };
    const known = new Map(this.image?.key === picture.key ? this.maps.map((map) => [map.stamp, map]) : []);
    const [bitmap, patch, maps] = await Promise.all([
      this.image?.key === picture.key ? this.image.bitmap : bitmapOf(picture.data),
      mine.patch ? bitmapOf(mine.patch) : null,
      Promise.all(mine.maps.map(async (map) => known.get(map.stamp) ?? { ...map, ids: await inflated(map.data) })),
    ]);
    if (turn !== this.loads) return; // something newer is on its way
    if (this.image?.key !== picture.key) this.image = { key: picture.key, bitmap, size: picture.size, detail: null };
    this.sharpen();
    this.layers = mine; this.patch = patch; this.maps = maps;
    this.grids = mine.similarity.map((grid) => ({ ...grid, values: new Float32Array(bytesOf(grid.data).slice().buffer) }));
    if (!this.grip && this.waiting?.kind !== "box" && !this.queue.length) this.box = mine.box ?? null; // else it is older
    this.update();
  }

  // The image at its own size, which a panel needs only when one zooms, comes after the small one.
  async sharpen() {
    const detail = this.model.get("detail"), image = this.image;
    if (!detail.data || detail.key !== image?.key || image.asked) return;
    image.asked = true;
    await new Promise((done) => setTimeout(done, 150)); // what is seen first comes first
    if (image !== this.image) return;
    image.detail = await bitmapOf(detail.data);
    if (this.look.scale > 1) { this.styled = false; this.schedule(); }
  }

  looked() {
    if (this.saving) return; // what is done here is newer: the kernel repeats what it was told a moment ago
    const look = this.model.get("look");
    if (JSON.stringify(look) === JSON.stringify(this.look)) return;
    this.look = structuredClone(look);
    this.update();
    this.showGallery();
  }

  set(changes) {
    Object.assign(this.look, changes);
    this.model.set("look", structuredClone(this.look));
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.save(), 300);
    const names = Object.keys(changes), only = (...some) => names.every((name) => some.includes(name));
    if (!this.image || !only("opacity", "brightness", "scale", "x", "y", "at", "pin")) return this.update();
    this.showLook();
    if (only("opacity", "brightness", "pin")) this.styled ??= !this.frame; // the browser's style does it all
    else this.styled = false;
    this.schedule();
  }

  save() {
    this.saving = null;
    this.model.set("look", structuredClone(this.look));
    this.model.save_changes();
  }

  // One event at a time: the next one waits for the kernel's answer, steps add up and of a drag only the newest waits.
  send(event) {
    const last = this.queue.at(-1);
    if (last?.kind === event.kind && event.kind === "go") event.by += this.queue.pop().by;
    else if (last?.kind === event.kind && event.kind === "box") this.queue.pop();
    this.queue.push(event);
    this.flush();
  }

  flush() {
    if (this.waiting || !this.queue.length) return;
    this.waiting = this.queue.shift();
    this.model.set("event", { ...this.waiting, time: performance.now() });
    this.model.save_changes();
  }

  go(by) { this.send({ kind: "go", by }); }

  // --- panels -----------------------------------------------------------------------------------------------------

  entries() {
    if (!this.image) return [];
    const word = this.layers.names[this.classId] ?? "";
    const found = [{ id: "image", title: "image", kind: "image" }];
    if (this.grids.length) found.push({ id: "similarity", title: `similarity to “${word}”`, kind: "heat", channel: this.classId });
    const classes = this.setup.classes.length;
    for (const map of this.maps) found.push({ id: map.id, title: map.title, kind: "map", map });
    if (this.grids.length && this.layers.names.length > classes)
      found.push({ id: "words", title: `similarity to “${this.layers.names[classes]}”`, kind: "heat", channel: classes });
    if (this.patch) found.push({ id: "patch", title: `local view as CLIP sees it, ${this.patch.width} × ${this.patch.height}`, kind: "patch" });
    if (this.look.swipe && this.maps.length > 1) {
      const [a, b] = this.sides();
      found.push({ id: "swipe", title: `${a.title} | ${b.title}`, kind: "map", map: a, other: b });
    }
    return found;
  }

  sides() {
    const side = (id, place) => this.maps.find((map) => map.id === id) ?? this.maps.at(place);
    return [side(this.look.a, 0), side(this.look.b, 1)];
  }

  get classId() { return this.model.get("class_id"); }

  // Bring panels, legend and controls in line with what is known, then paint.
  update() {
    const entries = this.entries(), alone = entries.find((entry) => entry.id === this.look.alone);
    this.shown = entries.filter((entry) => (alone ? entry === alone : !this.look.closed.includes(entry.id)));
    const ids = new Set(this.shown.map((entry) => entry.id));
    for (const [id, panel] of this.panels) if (!ids.has(id)) {
      if (panel.node.contains(document.activeElement)) this.root.focus({ preventScroll: true });
      panel.node.remove(); this.panels.delete(id);
    }
    this.shown.forEach((entry, place) => {
      const panel = this.panels.get(entry.id) ?? this.newPanel(entry.id);
      panel.entry = entry;
      panel.title.textContent = entry.title;
      panel.node.setAttribute("aria-label", entry.title);
      panel.stage.setAttribute("aria-label", `${entry.title}, of image ${this.model.get("place").name}`);
      panel.only.setAttribute("aria-pressed", String(Boolean(alone)));
      panel.only.setAttribute("aria-label", alone ? "all panels again" : `only ${entry.title}`);
      panel.over.classList.toggle("solid", entry.kind === "heat" || entry.kind === "patch");
      panel.base.classList.toggle("grey", entry.kind === "map");
      panel.line.hidden = entry.id !== "swipe";
      if (this.grid.children[place] !== panel.node) this.grid.insertBefore(panel.node, this.grid.children[place] ?? null);
    });
    this.root.classList.toggle("pending", Boolean(this.layers?.pending));
    this.showControls(entries);
    this.showLegend();
    this.showHistogram();
    this.styled = false;
    this.schedule();
  }

  newPanel(id) {
    const panel = { id };
    panel.title = make("span");
    panel.only = make("button", { type: "button", class: "only", onclick: () =>
      this.set({ alone: this.look.alone ? "" : id }) }, "⤢");
    panel.base = make("canvas", { class: "base" });
    panel.over = make("canvas", { class: "over" });
    panel.boxMark = make("div", { class: "box", hidden: true });
    panel.cross = make("div", { class: "cross", hidden: true });
    panel.pin = make("div", { class: "pin", hidden: true });
    panel.line = make("div", { class: "line", hidden: true });
    panel.stage = make("div", { class: "stage", role: "img" }, panel.base, panel.over, panel.line, panel.boxMark,
      panel.pin, panel.cross);
    panel.node = make("figure", { class: "panel", "data-panel": id },
      make("figcaption", {}, panel.title, panel.only), panel.stage);
    const stage = panel.stage;
    stage.onpointerdown = (event) => this.press(panel, event);
    stage.onpointermove = (event) => this.move(panel, event);
    stage.onpointerup = (event) => this.release(panel, event);
    stage.onpointercancel = () => { this.grip = null; };
    stage.onpointerleave = () => { if (!this.grip) { this.hover = null; this.marks(); } };
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomAt(Math.exp(-event.deltaY / 300), this.pixel(panel, event));
    }, { passive: false });
    stage.ondblclick = () => this.reset();
    this.panels.set(id, panel);
    return panel;
  }

  showControls(entries) {
    this.showLook();
    for (const choice of this.modes.children) choice.setAttribute("aria-pressed", String(choice.dataset.mode === this.look.mode));
    this.swipeOn.setAttribute("aria-pressed", String(this.look.swipe));
    this.swipeOn.disabled = this.maps.length < 2;
    this.swiping.hidden = !this.look.swipe || this.maps.length < 2;
    if (!this.swiping.hidden) this.sides().forEach((chosen, place) => {
      const select = this.inputs["ab"[place]];
      select.replaceChildren(...this.maps.map((map) => make("option", { value: map.id }, map.title)));
      select.value = chosen.id;
    });
    this.refill(this.toggles, ...entries.map((entry, place) => make("button", { type: "button",
      "aria-pressed": String(this.shown.includes(entry)), onclick: () => this.togglePanel(entry.id) },
    `${place + 1} ${entry.title}`)));
  }

  showLook() {
    for (const name of ["opacity", "brightness", "at"]) this.inputs[name].value = this.look[name];
    this.root.style.setProperty("--opacity", this.look.opacity);
    this.root.style.setProperty("--brightness", this.look.brightness);
  }

  togglePanel(id) {
    const closed = new Set(this.look.closed);
    closed.has(id) ? closed.delete(id) : closed.add(id);
    this.set({ closed: [...closed], alone: "" });
  }

  // --- painting ---------------------------------------------------------------------------------------------------

  schedule() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.styled ? this.painted() : this.paint(); });
  }

  // The part of the image in view: left and top in its pixels, and pixels of it per pixel of a canvas w wide.
  view(w) {
    const [height, width] = this.image.size, look = this.look;
    const across = width / look.scale, down = height / look.scale;
    return { left: limit(look.x * width - across / 2, 0, width - across),
      top: limit(look.y * height - down / 2, 0, height - down), step: across / w, across, down };
  }

  paint() {
    if (!this.image) { this.root.dataset.drawn = `${++this.frames} none`; return; }
    const [height, width] = this.image.size, count = this.shown.length, first = this.panels.get(this.shown[0]?.id);
    const wide = this.grid.clientWidth, most = wide < 750 ? 2 : wide < 1500 ? 3 : 4;
    this.columns = Math.min(most, count < 2 ? 1 : count < 5 ? 2 : count === 8 || count > 9 ? 4 : 3);
    this.grid.style.setProperty("--columns", this.columns);
    const w = Math.max(1, Math.round((first?.stage.clientWidth ?? 0) * devicePixelRatio)), h = Math.max(1, Math.round(w * height / width));
    const view = this.view(w);
    let base = null;
    for (const { id, kind, map, other, channel } of this.shown) {
      const panel = this.panels.get(id);
      panel.stage.style.aspectRatio = `${width} / ${height}`;
      for (const canvas of [panel.base, panel.over]) if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
      const ink = panel.base.getContext("2d"), over = panel.over.getContext("2d");
      if (base) ink.drawImage(base, 0, 0);
      else {
        const small = this.image.bitmap, fine = view.step < width / small.width ? this.image.detail ?? small : small;
        const factor = fine.width / width; // pixels of that picture per pixel of the image
        ink.imageSmoothingEnabled = view.step * factor > 0.5;
        ink.imageSmoothingQuality = view.step * factor > 2.5 ? "medium" : "low";
        ink.drawImage(fine, view.left * factor, view.top * factor, view.across * factor, view.down * factor, 0, 0, w, h);
        base = panel.base;
      }
      if (kind === "image") { over.clearRect(0, 0, w, h); continue; }
      if (kind === "patch") { this.paintPatch(over, w, h); continue; }
      const data = over.createImageData(w, h), out = new Uint32Array(data.data.buffer);
      if (kind === "heat") this.paintHeat(out, w, h, view, channel);
      else this.paintMap(out, w, h, view, map, other);
      over.putImageData(data, 0, 0);
    }
    this.painted();
  }

  painted() {
    this.styled = null;
    this.marks();
    this.root.dataset.drawn = `${++this.frames} ${this.image.key} ${this.layers.pending ? "pending" : "whole"}`;
    clearTimeout(this.still);
    if (!this.layers.pending) this.still = setTimeout(() => this.snapshot(), 1500);
  }

  // Colour of every train id as the canvas keeps it, alpha 0 where the legend has it off.
  colours() {
    const table = new Uint32Array(256);
    this.setup.palette.forEach((colour, id) => { table[id] = packed(colour); });
    table[VOID] = packed([0, 0, 0]); table[NOISY] = packed([255, 255, 255]); table[WINS] = packed(this.setup.mark);
    for (const id of this.look.hidden) table[id] = 0;
    return table;
  }

  paintMap(out, w, h, view, map, other) {
    const [height, width] = this.image.size, mode = this.look.mode, table = this.colours();
    const split = other ? Math.round(w * this.look.at) : w;
    const truth = this.maps.find((one) => one.id === "truth");
    if (mode === "errors" && truth) {
      const wrong = packed(this.setup.mark);
      const at = this.sampler(w, h, view);
      for (let y = 0, p = 0; y < h; y++) for (let x = 0; x < w; x++, p++) {
        const i = at(x, y), id = (x < split ? map : other).ids[i], true_ = truth.ids[i];
        if (id !== true_ && true_ !== VOID && id < WINS && (table[id] || table[true_])) out[p] = wrong;
      }
    } else if (mode === "outline") {
      const at = this.sampler(w, h, view), ids = new Uint8Array(w * h);
      for (let y = 0, p = 0; y < h; y++) for (let x = 0; x < w; x++, p++) ids[p] = (x < split ? map : other).ids[at(x, y)];
      for (let y = 0, p = 0; y < h; y++) for (let x = 0; x < w; x++, p++) {
        const id = ids[p];
        if ((x && ids[p - 1] !== id) || (x < w - 1 && ids[p + 1] !== id) || (y && ids[p - w] !== id) || (y < h - 1 && ids[p + w] !== id)) out[p] = table[id];
      }
    } else {
      // Several pixels of the image per pixel of the screen are averaged, or poles would come and go while one zooms.
      const k = limit(Math.ceil(view.step / 1.5), 1, 3), all = k * k, rows = new Int32Array(k);
      const columns = Int32Array.from({ length: w * k }, (_, x) => Math.min(width - 1, Math.floor(view.left + (x + 0.5) / k * view.step)));
      for (let y = 0, p = 0; y < h; y++) {
        for (let j = 0; j < k; j++) rows[j] = width * Math.min(height - 1, Math.floor(view.top + (y + (j + 0.5) / k) * view.step));
        for (let x = 0; x < w; x++, p++) {
          const ids = x < split ? map.ids : other.ids, id = ids[rows[0] + columns[x * k]];
          let same = 1;
          while (same < all && ids[rows[same / k | 0] + columns[x * k + same % k]] === id) same++;
          if (same === all) { out[p] = table[id]; continue; }
          let r = 0, g = 0, b = 0, n = 0;
          for (let i = 0; i < all; i++) {
            const colour = table[ids[rows[i / k | 0] + columns[x * k + i % k]]];
            if (colour) { r += colour & 255; g += colour >> 8 & 255; b += colour >> 16 & 255; n++; }
          }
          if (n) out[p] = (Math.round(255 * n / all) << 24 | b / n << 16 | g / n << 8 | r / n) >>> 0;
        }
      }
    }
  }

  sampler(w, h, view) {
    const [height, width] = this.image.size;
    const columns = Int32Array.from({ length: w }, (_, x) => Math.min(width - 1, Math.floor(view.left + (x + 0.5) * view.step)));
    const rows = Int32Array.from({ length: h }, (_, y) => width * Math.min(height - 1, Math.floor(view.top + (y + 0.5) * view.step)));
    return (x, y) => rows[y] + columns[x];
  }

  // Similarity of a class at a pixel of the image: inside the local view, what CLIP says of it.
  similarity(channel, x, y) {
    const [height, width] = this.image.size;
    for (const grid of this.grids) {
      const [top, left, bottom, right] = grid.box ?? [0, 0, height, width];
      if (x >= left && x < right && y >= top && y < bottom)
        return gridValue(grid, channel, (x - left) / (right - left), (y - top) / (bottom - top));
    }
    return null;
  }

  // As `similarity` at every pixel of the canvas, with what depends on the column alone worked out once.
  paintHeat(out, w, h, view, channel) {
    const [height, width] = this.image.size, [low, high] = this.layers.range, heat = this.setup.heat.map(packed);
    const factor = 255 / Math.max(high - low, 1e-6);
    for (const grid of [...this.grids].reverse()) { // the local view over the whole image
      const [top, left, bottom, right] = grid.box ?? [0, 0, height, width], [, rows, columns] = grid.shape;
      const x0 = Math.max(0, Math.ceil((left - view.left) / view.step - 0.5)), x1 = Math.min(w, Math.ceil((right - view.left) / view.step - 0.5));
      const y0 = Math.max(0, Math.ceil((top - view.top) / view.step - 0.5)), y1 = Math.min(h, Math.ceil((bottom - view.top) / view.step - 0.5));
      const first = new Int32Array(w), second = new Int32Array(w), share = new Float32Array(w), values = grid.values;
      for (let x = x0; x < x1; x++) {
        const at = limit((view.left + (x + 0.5) * view.step - left) / (right - left) * columns - 0.5, 0, columns - 1);
        first[x] = at; second[x] = Math.min(first[x] + 1, columns - 1); share[x] = at - first[x];
      }
      for (let y = y0; y < y1; y++) {
        const at = limit((view.top + (y + 0.5) * view.step - top) / (bottom - top) * rows - 0.5, 0, rows - 1), above = Math.floor(at);
        const one = (channel * rows + above) * columns, other = (channel * rows + Math.min(above + 1, rows - 1)) * columns, b = at - above;
        for (let x = x0, p = y * w + x0; x < x1; x++, p++) {
          const upper = values[one + first[x]] * (1 - share[x]) + values[one + second[x]] * share[x];
          const lower = values[other + first[x]] * (1 - share[x]) + values[other + second[x]] * share[x];
          const place = (upper * (1 - b) + lower * b - low) * factor;
          out[p] = heat[place < 0 ? 0 : place > 255 ? 255 : place | 0];
        }
      }
    }
  }

  paintPatch(over, w, h) {
    const factor = Math.min(w / this.patch.width, h / this.patch.height), across = this.patch.width * factor, down = this.patch.height * factor;
    over.fillStyle = "#777";
    over.fillRect(0, 0, w, h);
    over.drawImage(this.patch, (w - across) / 2, (h - down) / 2, across, down);
  }

  // Box, pin and pointer, at the same place of every panel.
  marks() {
    if (!this.image) return;
    const view = this.view(1), [height, width] = this.image.size, local = this.model.get("local");
    const x = (column) => `${100 * (column - view.left) / view.across}%`, y = (row) => `${100 * (row - view.top) / view.down}%`;
    const place = (node, at) => { node.hidden = !at; if (at) { node.style.left = x(at[0]); node.style.top = y(at[1]); } };
    for (const { boxMark, cross, pin, line, entry } of this.panels.values()) {
      const whole = entry.kind !== "patch";
      place(cross, whole && this.hover); place(pin, whole && this.pinned(width, height));
      boxMark.hidden = !(whole && local && this.box);
      if (!boxMark.hidden) {
        const [top, left, bottom, right] = this.box;
        Object.assign(boxMark.style, { left: x(left), top: y(top), width: `${100 * (right - left) / view.across}%`, height: `${100 * (bottom - top) / view.down}%` });
      }
      line.style.left = `${100 * this.look.at}%`;
    }
    this.read();
  }

  pinned(width, height) {
    const pin = this.look.pin;
    return pin && pin.key === this.image.key && pin.x < width && pin.y < height ? [pin.x + 0.5, pin.y + 0.5] : null;
  }

  // What is under the pointer, else under the pin: class in every map, similarities of all classes, highest first.
  read() {
    const [height, width] = this.image.size, at = this.hover ?? this.pinned(width, height);
    if (!at) { this.readout.textContent = "point at a pixel: what is there · click: keep it"; return; }
    const column = limit(Math.floor(at[0]), 0, width - 1), row = limit(Math.floor(at[1]), 0, height - 1);
    const parts = [`row ${row}, column ${column}`];
    for (const map of this.maps) parts.push(`${map.title}: ${this.nameOf(map.ids[row * width + column])}`);
    const lines = [make("div", {}, parts.join(" · "))];
    if (this.grids.length) {
      const ranked = this.layers.names.map((word, channel) => [this.setup.classes[channel] ?? `“${word}”`, this.similarity(channel, column + 0.5, row + 0.5), channel]);
      ranked.sort((one, other) => other[1] - one[1]);
      lines.push(make("div", { class: "ranking" }, ...ranked.map(([name, value, channel]) => make("span", {}, this.swatch(channel), `${name} ${signed(value)}`))));
    }
    this.readout.replaceChildren(...lines);
  }

  nameOf(id) {
    return { [VOID]: "void", [NOISY]: "noisy region", [WINS]: "the words win", [NOTHING]: "a class wins" }[id] ?? this.setup.classes[id];
  }

  swatch(id) {
    const colour = { [VOID]: [0, 0, 0], [NOISY]: [255, 255, 255], [WINS]: this.setup.mark }[id] ?? this.setup.palette[id] ?? [255, 255, 255];
    return make("i", { class: "swatch", style: `background: rgb(${colour})` });
  }

  // --- legend with scores, histogram ------------------------------------------------------------------------------

  showLegend() {
    const scores = this.layers?.scores ?? [], seen = new Set();
    for (const map of this.maps) { map.seen ??= idsIn(map.ids); map.seen.forEach((id) => seen.add(id)); }
    seen.delete(NOTHING);
    const head = make("tr", {}, make("th", { scope: "col", colspan: 2 }, "class"), ...scores.map(({ title }) => make("th", { scope: "col" }, title)));
    const total = make("tr", { class: "total" }, make("th", { scope: "row", colspan: 2 }, "mIoU of this image"), ...scores.map(({ miou }) => make("td", {}, percent(miou))));
    const rows = [...seen].sort((a, b) => a - b).map((id) => {
      const name = this.nameOf(id), off = this.look.hidden.includes(id);
      const show = make("input", { type: "checkbox", "aria-label": `show ${name}`, onchange: () => this.hide(id) });
      show.checked = !off;
      const choose = id < WINS ? make("button", { type: "button", class: "class", "aria-pressed": String(id === this.classId),
        title: "similarity of this class; Shift: this class alone", onclick: (event) => (event.shiftKey ? this.solo(id) : this.choose(id)) }, name) : make("span", { class: "class" }, name);
      return make("tr", {}, make("td", {}, show, this.swatch(id)), make("th", { scope: "row" }, choose), ...scores.map(({ iou }) => make("td", {}, id < WINS ? percent(iou[id]) : "")));
    });
    this.refill(this.legend, head, ...rows, ...(scores.length ? [total] : []));
  }

  choose(id) { this.model.set("class_id", id); this.model.save_changes(); }

  hide(id) {
    const hidden = new Set(this.look.hidden);
    hidden.has(id) ? hidden.delete(id) : hidden.add(id);
    this.set({ hidden: [...hidden] });
  }

  solo(id) {
    const others = [...Array(256).keys()].filter((other) => other !== id);
    this.set({ hidden: this.look.hidden.length === 255 ? [] : others });
  }

  // Similarities of the class over the image's patches; in colour those on the class, by the truth or else the mask.
  showHistogram() {
    const grid = this.grids.find((one) => !one.box), [low, high] = this.layers?.range ?? [0, 1];
    this.histogram.hidden = this.scale.hidden = !grid;
    if (!grid) return;
    const [, h, w] = grid.shape, [height, width] = this.image.size, bins = 48, counts = [new Float32Array(bins), new Float32Array(bins)];
    const on = this.maps.find((map) => map.id === "truth") ?? this.maps[0], name = this.setup.classes[this.classId];
    const values = grid.values.subarray(this.classId * h * w, (this.classId + 1) * h * w);
    values.forEach((value, i) => {
      const row = Math.floor((Math.floor(i / w) + 0.5) / h * height), column = Math.floor((i % w + 0.5) / w * width);
      counts[on?.ids[row * width + column] === this.classId ? 1 : 0][limit(Math.floor((value - low) / (high - low) * bins), 0, bins - 1)]++;
    });
    const ink = this.histogram.getContext("2d"), colours = ["#8a8a8a", `rgb(${this.setup.palette[this.classId]})`];
    ink.clearRect(0, 0, 240, 70);
    const tall = counts.map((one) => Math.max(1, ...one));
    counts.forEach((one, kind) => one.forEach((count, bin) => {
      ink.fillStyle = colours[kind];
      const bar = 34 * count / tall[kind];
      ink.fillRect(bin * 5, kind ? 70 - bar : 35 - bar, 4, bar);
    }));
    this.histogram.setAttribute("aria-label", `histogram of the similarity to ${name}: above patches elsewhere, below patches on ${name} (${on?.title ?? "no map"})`);
    const steps = this.setup.heat.filter((_, place) => place % 15 === 0).map((colour) => `rgb(${colour})`);
    this.scale.replaceChildren(signed(low), make("i", { style: `background: linear-gradient(to right, ${steps})` }), `${signed(high)} cosine`,
      make("small", {}, `histogram: above elsewhere, below on ${name} (${on?.title ?? ""})`));
  }

  // --- gallery, confusions, object sizes --------------------------------------------------------------------------

  showGallery() {
    const { rows = [], columns = [], by = "", first = 0, total = 0, note = "" } = this.model.get("gallery"), size = this.setup.page;
    const turn = (label, text, to) => make("button", { type: "button", "aria-label": label, disabled: to < 0 || to >= total, onclick: () => this.send({ kind: "page", first: to }) }, text);
    for (const old of this.urls ?? []) URL.revokeObjectURL(old);
    this.urls = [];
    const open = (row, ...inside) => make("button", { type: "button", "data-place": row.place, "aria-label": `${row.name} ${row.text}: go to this image`,
      onclick: () => this.send({ kind: "goto", place: row.place }) }, ...inside);
    const thumb = (row) => {
      const picture = make("img", { alt: "", loading: "lazy" });
      if (row.thumb?.byteLength) this.urls.push((picture.src = URL.createObjectURL(new Blob([bytesOf(row.thumb)]))));
      return open(row, picture, make("span", {}, `${row.name} `), make("span", {}, row.text));
    };
    const head = (column) => make("th", { scope: "col", "aria-sort": column.by === by ? "ascending" : null },
      column.by ? make("button", { type: "button", "aria-label": `order by ${column.title}`, title: `order by ${column.title}`, onclick: () => this.send({ kind: "order", by: column.by, class_id: column.class_id }) },
        `${column.title}${column.by === by ? " ▲" : ""}`) : column.title);
    const list = this.look.table
      ? make("table", { class: "list", "aria-label": "images of the list, their scores in % and what is worst in them" }, make("tr", {}, ...columns.map(head)),
        ...rows.map((row) => make("tr", {}, make("th", { scope: "row" }, open(row, row.name)), ...row.cells.map((text) => make("td", {}, text)))))
      : make("div", { class: "thumbs" }, ...rows.map(thumb));
    this.refill(this.gallery, make("div", { class: "bar" }, turn("earlier images", "◀", first - size), `${total ? first + 1 : 0}–${first + rows.length} of ${total} ${note}`,
      turn("later images", "▶", first + size), make("button", { type: "button", "aria-pressed": String(this.look.table), "aria-label": "list as a table",
        onclick: () => { this.set({ table: !this.look.table }); this.showGallery(); } }, "table")), list);
    this.markThumb();
  }

  markThumb() {
    const { place } = this.model.get("place");
    for (const thumb of this.gallery.querySelectorAll("[data-place]")) thumb.setAttribute("aria-current", String(Number(thumb.dataset.place) === place));
  }

  showResults() {
    const results = this.model.get("results"), open = this.results.open;
    this.results.hidden = !results.confusion;
    if (!results.confusion) return;
    const names = this.setup.classes, cell = (label, text, event, shade) => make("td", { style: shade == null ? null : `--share: ${shade}` },
      text && make("button", { type: "button", "aria-label": `${text}: ${label}`, title: label, onclick: () => this.send(event) }, text));
    const confusion = make("table", { class: "confusion", "aria-label": "share of each true class (row) by prediction (column), in %" },
      make("tr", {}, make("th", { scope: "col" }, "truth ↓ predicted →"), ...[...names, "void"].map((name) => make("th", { scope: "col" }, make("span", {}, name)))),
      ...results.confusion.map((row, truth) => make("tr", {}, make("th", { scope: "row" }, names[truth]), ...row.map((share, predicted) =>
        truth === predicted ? make("td", { class: "diagonal" }, share == null ? "" : `${Math.round(100 * share)}`)
          : cell(`images where ${names[truth]} is taken for ${names[predicted] ?? "void"}`, share >= 0.005 ? `${Math.round(100 * share)}` : "", { kind: "confusion", truth, predicted }, share)))));
    const objects = make("table", { "aria-label": "small objects by size: missed of all" },
      make("tr", {}, make("th", { scope: "col" }, "missed / all objects"), ...results.bins.map((bin) => make("th", { scope: "col" }, bin))),
      ...results.objects.map(({ class_id, missed, count }) => make("tr", {}, make("th", { scope: "row" }, names[class_id]), ...count.map((all, bin) =>
        cell(`images with missed ${names[class_id]} of ${results.bins[bin]}`, all ? `${missed[bin]} / ${all}` : "", { kind: "objects", class_id, bin }, all ? missed[bin] / all : null)))));
    this.results.setAttribute("aria-label", results.title);
    this.refill(this.results, make("summary", {}, results.title), confusion, objects);
    this.results.open = open;
  }

  // --- pointer and keys -------------------------------------------------------------------------------------------

  // The image's column and row under a pointer, also outside the panel, within the image.
  pixel(panel, event) {
    const area = panel.stage.getBoundingClientRect(), view = this.view(area.width), [height, width] = this.image.size;
    return [limit(view.left + (event.clientX - area.left) * view.step, 0, width - 1e-6), limit(view.top + (event.clientY - area.top) * view.step, 0, height - 1e-6)];
  }

  press(panel, event) {
    if (!this.image || event.button) return;
    this.root.focus({ preventScroll: true });
    panel.stage.setPointerCapture(event.pointerId);
    const [x, y] = this.pixel(panel, event), area = panel.stage.getBoundingClientRect();
    const onLine = panel.id === "swipe" && Math.abs(event.clientX - area.left - this.look.at * area.width) < 10;
    const [top, left, bottom, right] = this.box ?? [];
    const inBox = this.model.get("local") && this.box && x >= left && x < right && y >= top && y < bottom;
    const what = onLine ? "line" : panel.entry.kind === "patch" ? "none" : inBox ? "box" : "pan";
    this.grip = { what, start: event, x, y, look: { ...this.look }, box: this.box && [...this.box], moved: false };
  }

  move(panel, event) {
    if (!this.image) return;
    const grip = this.grip;
    if (!grip) { this.hover = panel.entry.kind === "patch" ? null : this.pixel(panel, event); this.marks(); return; }
    const dx = event.clientX - grip.start.clientX, dy = event.clientY - grip.start.clientY, area = panel.stage.getBoundingClientRect();
    grip.moved ||= Math.hypot(dx, dy) > 4;
    if (!grip.moved) return;
    const [height, width] = this.image.size;
    if (grip.what === "line") this.set({ at: limit((event.clientX - area.left) / area.width, 0, 1) });
    else if (grip.what === "pan") this.moveTo(grip.look.scale, grip.look.x - dx / area.width / grip.look.scale, grip.look.y - dy / area.height / grip.look.scale);
    else if (grip.what === "box") {
      const view = this.view(area.width);
      this.moveBox(grip.box[1] + dx * view.step, grip.box[0] + dy * view.step, width, height);
    }
  }

  release(panel, event) {
    const grip = this.grip;
    this.grip = null;
    if (!grip || grip.moved || grip.what === "line" || grip.what === "none") return;
    const [x, y] = this.pixel(panel, event).map(Math.floor);
    this.set({ pin: { key: this.image.key, x, y } });
  }

  // The box moves at once, and what CLIP makes of it follows.
  moveBox(left, top, width, height) {
    const [above, before, below, behind] = this.box, tall = below - above, wide = behind - before;
    const y = limit(Math.round(top), 0, height - tall), x = limit(Math.round(left), 0, width - wide);
    if (x === before && y === above) return;
    this.box = [y, x, y + tall, x + wide];
    this.marks();
    this.send({ kind: "box", row: y + Math.floor(tall / 2), column: x + Math.floor(wide / 2) });
  }

  moveTo(scale, x, y) {
    const half = 0.5 / scale;
    this.set({ scale, x: limit(x, half, 1 - half), y: limit(y, half, 1 - half) });
  }

  zoomAt(factor, [column, row]) {
    const [height, width] = this.image.size, scale = limit(this.look.scale * factor, 1, Math.max(8, width / 32));
    const view = this.view(1), u = (column - view.left) / view.across, v = (row - view.top) / view.down;
    this.moveTo(scale, column / width + (0.5 - u) / scale, row / height + (0.5 - v) / scale);
  }

  reset() { this.set({ scale: 1, x: 0.5, y: 0.5 }); }

  toggleHelp() { this.help.open ? this.help.close() : this.help.showModal(); }

  pressed(event) {
    event.stopPropagation(); // JupyterLab's own keys would act on the notebook's cell
    const own = event.target.closest("select, input[type=text], input[type=range]") || event.ctrlKey || event.metaKey;
    if (own || this.help.open || (event.target.closest("button") && [" ", "Enter"].includes(event.key))) return;
    const { look, classId } = this, classes = this.setup.classes.length, [height, width] = this.image?.size ?? [1, 1];
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, arrow = arrows[event.key];
    const round = (value) => Math.round(value * 100) / 100, shown = this.maps.flatMap((map) => map.seen ?? []);
    const step = (by) => { for (let i = 1, id = classId; i <= classes; i++) { id = (id + by + classes) % classes; if (!shown.length || shown.includes(id)) return this.choose(id); } };
    const nth = /^[1-9]$/.test(event.key) && this.entries()[event.key - 1];
    const keys = {
      n: () => this.go(1), p: () => this.go(-1), Home: () => this.send({ kind: "goto", place: 0 }),
      End: () => this.send({ kind: "goto", place: this.model.get("place").count - 1 }),
      "+": () => this.moveTo(limit(look.scale * 1.25, 1, Math.max(8, width / 32)), look.x, look.y), "-": () => this.moveTo(Math.max(1, look.scale / 1.25), look.x, look.y),
      "=": () => keys["+"](), 0: () => this.reset(), c: () => step(1), C: () => step(-1), s: () => this.solo(classId), h: () => this.hide(classId),
      f: () => this.set({ mode: MODES[(MODES.indexOf(look.mode) + 1) % MODES.length] }),
      o: () => this.set({ opacity: limit(round(look.opacity - 0.05), 0, 1) }), O: () => this.set({ opacity: limit(round(look.opacity + 0.05), 0, 1) }),
      b: () => this.set({ brightness: limit(round(look.brightness - 0.2), 0.5, 6) }), B: () => this.set({ brightness: limit(round(look.brightness + 0.2), 0.5, 6) }),
      w: () => this.set({ swipe: !look.swipe }), "[": () => this.set({ at: limit(round(look.at - 0.05), 0, 1) }), "]": () => this.set({ at: limit(round(look.at + 0.05), 0, 1) }),
      l: () => { this.model.set("local", !this.model.get("local")); this.model.save_changes(); }, t: () => this.tag.focus(),
      g: () => this.gallery.querySelector("[data-place]")?.focus(), "?": () => this.toggleHelp(),
    };
    let act = keys[event.key];
    if (nth) act = () => this.togglePanel(nth.id);
    else if (arrow && event.shiftKey) act = () => this.moveTo(look.scale, look.x + 0.15 * arrow[0] / look.scale, look.y + 0.15 * arrow[1] / look.scale);
    else if (arrow && event.altKey) act = () => this.box && this.moveBox(this.box[1] + arrow[0] * width / 64, this.box[0] + arrow[1] * height / 32, width, height);
    else if (arrow && arrow[0]) act = () => this.go(arrow[0]);
    if (act) { event.preventDefault(); act(); }
  }

  // A still of what is seen, for the notebook's file: where no kernel runs, it stands in for the widget.
  snapshot() {
    const panels = this.shown.map((entry) => this.panels.get(entry.id)).filter((panel) => panel?.base.width > 1);
    if (!panels.length || this.queue.length) return;
    const columns = Math.min(panels.length, this.columns), across = Math.round(1200 / columns);
    const down = Math.round(across * panels[0].base.height / panels[0].base.width), rows = Math.ceil(panels.length / columns);
    const canvas = make("canvas", { width: across * columns, height: rows * (down + 20) }), ink = canvas.getContext("2d");
    ink.fillStyle = "white"; ink.fillRect(0, 0, canvas.width, canvas.height); ink.font = "13px sans-serif";
    panels.forEach((panel, place) => {
      const x = across * (place % columns), y = (down + 20) * Math.floor(place / columns);
      ink.fillStyle = "black"; ink.fillText(panel.entry.title, x + 2, y + 14, across - 6);
      ink.filter = getComputedStyle(panel.base).filter; ink.drawImage(panel.base, x, y + 20, across - 4, down - 4);
      ink.filter = "none"; ink.globalAlpha = Number(getComputedStyle(panel.over).opacity);
      ink.drawImage(panel.over, x, y + 20, across - 4, down - 4); ink.globalAlpha = 1;
    });
    canvas.toBlob(async (blob) => this.model.send({ kind: "still", name: this.model.get("place").name }, undefined, [await blob.arrayBuffer()]), "image/jpeg", 0.8);
  }
}

export default {
  render({ model, el }) {
    const viewer = new Viewer(model, el);
    return () => viewer.close();
  },
};
