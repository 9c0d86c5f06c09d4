"use strict";
// The viewer of registered pairs, see istn_monai/qa/viewer.py. No library, no request: all is in the page.
(() => {
  const MOVING = "#ff44ee", FIXED = "#2fd07f", BOTH = "#ffffff";
  const NAMES = { "0,1": "axial", "0,2": "coronal", "1,2": "sagittal" };
  const WHEEL = 40; // pixels of scrolling that are one slice
  let number = 0;

  /** An element with attributes, handlers (on...) and children; text is never read as HTML. */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (typeof value === "boolean") made.toggleAttribute(name, value);
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  /** The gray values of a mosaic. */
  async function decoded(uri) {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const canvas = element("canvas", { width: image.width, height: image.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const colors = context.getImageData(0, 0, image.width, image.height).data;
    return new Uint8Array(image.width * image.height).map((_, i) => colors[4 * i]);
  }

  /** One plane: its canvas, slider and letters. Right and front are on the left, as radiologists see them. */
  class Plane {
    constructor(view, across, up) {
      const { size, spacing, ends } = view.pair;
      Object.assign(this, { view, across, up, width: size[across], height: size[up] });
      this.axis = size.length > 2 ? 3 - across - up : null;
      this.name = size.length > 2 ? NAMES[[across, up]] : "image";
      this.mm = [this.width * spacing[across], this.height * spacing[up]];
      this.wheel = 0;
      this.small = element("canvas", { width: this.width, height: this.height });
      this.canvas = element("canvas", {
        tabindex: 0, role: "img", style: `aspect-ratio:${this.mm[0]}/${this.mm[1]}`,
        onkeydown: (event) => this.key(event), onwheel: (event) => this.scroll(event),
      });
      const letter = (side, text) => element("span", { class: `istn-${side}`, "aria-hidden": "true" }, text);
      const picture = element("div", { class: "istn-picture" }, this.canvas,
        letter("l", ends[across][1]), letter("r", ends[across][0]), letter("t", ends[up][1]), letter("b", ends[up][0]));
      const most = size.length > 2 ? "" : ";max-width:40rem";
      this.figure = element("figure", { class: "istn-plane", style: `flex:${this.mm[0]} 1 0${most}` }, picture);
      if (this.axis !== null) this.addSlider(size[this.axis]);
      new ResizeObserver(() => this.draw()).observe(this.canvas);
    }

    addSlider(slices) {
      this.slider = element("input", {
        type: "range", min: 0, max: slices - 1, value: this.view.at[this.axis], "aria-label": `${this.name} slice`,
        oninput: () => this.move(Number(this.slider.value)),
      });
      this.output = element("output");
      this.figure.append(element("label", {}, this.name, this.slider, this.output));
    }

    move(to) {
      if (this.axis === null) return;
      this.view.at[this.axis] = Math.max(0, Math.min(this.view.pair.size[this.axis] - 1, to));
      this.draw();
    }

    key(event) {
      if (this.axis === null || event.altKey || event.ctrlKey || event.metaKey) return;
      const at = this.view.at[this.axis], last = this.view.pair.size[this.axis] - 1;
      const to = { ArrowUp: at + 1, ArrowRight: at + 1, ArrowDown: at - 1, ArrowLeft: at - 1,
        PageUp: at + 10, PageDown: at - 10, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.move(to);
    }

    scroll(event) {
      if (this.axis === null || event.ctrlKey) return;
      event.preventDefault();
      this.wheel += event.deltaMode ? Math.sign(event.deltaY) * WHEEL : event.deltaY;
      const steps = Math.trunc(this.wheel / WHEEL);
      this.wheel -= steps * WHEEL;
      if (steps) this.move(this.view.at[this.axis] - steps);
    }

    /** The slice of a volume as it is seen, from the upper left corner. */
    cut(volume) {
      const { size, columns } = this.view.pair, at = [...this.view.at], row = columns * size[0];
      const cut = new Uint8Array(this.width * this.height);
      for (let y = 0, i = 0; y < this.height; y++) {
        at[this.up] = this.height - 1 - y;
        for (let x = 0; x < this.width; x++, i++) {
          at[this.across] = this.width - 1 - x;
          const slice = at[2] || 0;
          cut[i] = volume[(Math.floor(slice / columns) * size[1] + at[1]) * row + (slice % columns) * size[0] + at[0]];
        }
      }
      return cut;
    }

    draw() {
      const { view, canvas } = this;
      if (!view.images) return;
      const scale = window.devicePixelRatio || 1;
      canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
      canvas.height = Math.max(1, Math.round((canvas.clientWidth * scale * this.mm[1]) / this.mm[0]));
      this.small.getContext("2d").putImageData(this.mixed(), 0, 0);
      canvas.getContext("2d").drawImage(this.small, 0, 0, canvas.width, canvas.height);
      if (view.outlined) this.outline(1.5 * scale);
      let place = "";
      if (this.axis !== null) {
        this.slider.value = view.at[this.axis];
        this.output.textContent = place = `${view.at[this.axis] + 1} of ${view.pair.size[this.axis]}`;
      }
      canvas.setAttribute("aria-label", `${this.name} ${place && `slice ${place}`}, ${view.stage}; arrow keys move slices`);
    }

    /** Fixed and moving in one picture, by the view's mode. */
    mixed() {
      const { view, width, height } = this;
      const picture = new ImageData(width, height), colors = picture.data;
      const fixed = this.cut(view.images.fixed), moving = this.cut(view.images[view.stage]);
      const [across, up] = [this.mm[0] / width / view.tile, this.mm[1] / height / view.tile];
      for (let i = 0; i < fixed.length; i++) {
        const f = fixed[i], m = moving[i];
        let red = f + (m - f) * view.blend, green = red;
        if (view.mode === "colors") [red, green] = [m, f];
        else if (view.mode === "checkerboard") {
          const x = i % width, y = Math.floor(i / width);
          red = green = (Math.floor((x + 0.5) * across) + Math.floor((y + 0.5) * up)) % 2 ? m : f;
        }
        colors.set([red, green, red, 255], 4 * i);
      }
      return picture;
    }

    /** The borders of F' and M' between voxels: white where they agree. */
    outline(lineWidth) {
      const { view, width, height, canvas } = this, context = canvas.getContext("2d");
      const fixed = this.cut(view.outlines.fixed), moving = this.cut(view.outlines[view.stage]);
      const paths = [null, new Path2D(), new Path2D(), new Path2D()];
      const [w, h] = [canvas.width / width, canvas.height / height];
      const edge = (i, j, x, y, toX, toY) => {
        const kind = (moving[i] !== moving[j] ? 1 : 0) + (fixed[i] !== fixed[j] ? 2 : 0);
        if (!kind) return;
        paths[kind].moveTo(x * w, y * h);
        paths[kind].lineTo(toX * w, toY * h);
      };
      for (let y = 0, i = 0; y < height; y++) {
        for (let x = 0; x < width; x++, i++) {
          if (x + 1 < width) edge(i, i + 1, x + 1, y, x + 1, y + 1);
          if (y + 1 < height) edge(i, i + width, x, y + 1, x + 1, y + 1);
        }
      }
      Object.assign(context, { lineWidth, lineCap: "round" });
      [MOVING, FIXED, BOTH].forEach((color, k) => {
        context.strokeStyle = color;
        context.stroke(paths[k + 1]);
      });
    }
  }

  /** The viewer of one pair. */
  class View {
    constructor(root, pair) {
      this.stages = Object.keys(pair.images).filter((name) => name !== "fixed");
      this.stage = this.after = this.stages[this.stages.length - 1];
      Object.assign(this, { root, pair, at: [...pair.at], mode: "blend", blend: 0.5, outlined: true, number: number++ });
      this.tile = Math.max(1, Math.round(Math.max(...pair.size.map((n, a) => n * pair.spacing[a])) / 8));
      this.planes = pair.planes.map(([across, up]) => new Plane(this, across, up));
      root.setAttribute("role", "group");
      root.setAttribute("aria-label", "Registered pair");
      root.append(this.heading(), this.controls(),
        element("div", { class: "istn-planes" }, ...this.planes.map((plane) => plane.figure)));
      root.addEventListener("keydown", (event) => this.key(event));
      this.ready = this.load();
    }

    async load() {
      const all = async (uris) =>
        Object.fromEntries(await Promise.all(Object.entries(uris).map(async ([name, uri]) => [name, await decoded(uri)])));
      [this.images, this.outlines] = await Promise.all([all(this.pair.images), all(this.pair.outlines)]);
      this.draw();
    }

    heading() {
      const { size, full, names } = this.pair;
      const averaged = size.join() === full.join() ? "" : ` Shown on ${size.join(" × ")} voxels, averaged from ${full.join(" × ")}.`;
      return element("p", {}, element("strong", { class: "istn-moving" }, "Magenta: moving "), names[0],
        element("strong", { class: "istn-fixed" }, " Green: fixed "), names[1],
        `; white where their outlines agree. Arrow keys and the wheel move slices, Space toggles before and after.${averaged}`);
    }

    choice(legend, values, chosen, change) {
      const option = (value) => element("label", {}, element("input", {
        type: "radio", name: `istn-${this.number}-${legend}`, value, checked: value === chosen, onchange: () => change(value),
      }), value);
      return element("fieldset", {}, element("legend", {}, legend), ...values.map(option));
    }

    range(text, name, least, most, value, change) {
      const input = element("input", { type: "range", min: least, max: most, value, "aria-label": name,
        oninput: () => { change(Number(input.value)); after.textContent = text[1](input.value); this.draw(); } });
      const after = element("span", {}, text[1](value));
      return element("label", {}, text[0], input, after);
    }

    controls() {
      this.stageChoice = this.choice("Moving image", this.stages, this.stage, (stage) => this.setStage(stage));
      this.toggler = element("button", { type: "button", "aria-pressed": "false", onclick: () => this.toggle() }, "Show before (Space)");
      const mix = this.range(["fixed", () => "moving"], "Blend of fixed and moving", 0, 100, 50, (value) => { this.blend = value / 100; });
      const most = Math.max(4, 4 * this.tile);
      const tile = this.range(["tile", (mm) => `${mm} mm`], "Size of the tiles in mm", 1, most, this.tile, (value) => { this.tile = value; });
      tile.hidden = true;
      const mode = this.choice("Mode", ["blend", "checkerboard", "colors"], this.mode, (chosen) => {
        this.mode = chosen;
        mix.hidden = chosen !== "blend";
        tile.hidden = chosen !== "checkerboard";
        this.draw();
      });
      const outlines = element("label", {}, element("input", { type: "checkbox", checked: true,
        onchange: (event) => { this.outlined = event.target.checked; this.draw(); } }), "outlines of M′ and F′");
      return element("div", { class: "istn-controls" }, this.stageChoice, this.toggler, mode, mix, tile, outlines);
    }

    setStage(stage) {
      this.stage = stage;
      if (stage !== this.stages[0]) this.after = stage;
      for (const input of this.stageChoice.querySelectorAll("input")) input.checked = input.value === stage;
      this.toggler.setAttribute("aria-pressed", String(stage === this.stages[0]));
      this.draw();
    }

    toggle() {
      this.setStage(this.stage === this.stages[0] ? this.after : this.stages[0]);
    }

    key(event) {
      if (event.key !== " " || event.target.matches("button,input:not([type=range])")) return;
      event.preventDefault();
      this.toggle();
    }

    draw() {
      for (const plane of this.planes) plane.draw();
    }
  }

  for (const root of document.querySelectorAll(".istn-view")) {
    const open = () => { root.view ??= new View(root, JSON.parse(root.querySelector(".istn-pair").textContent)); };
    const box = root.closest("details.istn-open");
    if (box) box.addEventListener("toggle", () => box.open && open());
    else open();
  }
})();
