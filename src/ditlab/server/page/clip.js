// Clips: the frames of the animated PNG files that the server sends, still images of them, and a player.

import { animated, chunks, record } from "./png.js";
import { bytes, element } from "./service.js";

export const isClip = (text) => animated(bytes(text));

// Whether the reader asks for less motion: then nothing starts to move by itself.
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

const ANIMATION = ["acTL", "fcTL", "fdAT"];

// The address of the first frame alone, without the chunks of the animation.
export function still(content) {
  const kept = [...chunks(content)].filter(({ kind }) => !ANIMATION.includes(kind)).map(({ whole }) => whole);
  return URL.createObjectURL(new Blob([content.subarray(0, 8), ...kept], { type: "image/png" }));
}

// The address of a file as it is shown: a clip stands still for readers who ask for that.
export async function shownAddress(blob) {
  const content = new Uint8Array(await blob.arrayBuffer());
  return calm() && animated(content) ? still(content) : URL.createObjectURL(blob);
}

// The number of frames that settings name; 0 if they name none, as those of earlier versions.
export function lengthOf({ size, frames }) {
  const sides = String(size).split("x");
  return frames ?? (sides.length === 3 ? Number(sides[0]) : 0);
}

// The frames of a clip and the milliseconds of each. Equal frames in a row are one longer frame in the file.
export async function read(text, settings) {
  const { head, parts } = parsed(bytes(text));
  const canvas = new OffscreenCanvas(head.getUint32(8), head.getUint32(12));
  const pen = canvas.getContext("2d");
  const total = parts.reduce((sum, part) => sum + part.delay, 0);
  const milliseconds = total / (lengthOf(settings) || parts.length);
  const frames = [];
  for (const { x, y, width, height, delay, file } of parts) {
    pen.clearRect(x, y, width, height); // ditlab writes frames that replace what they cover, and stay
    pen.drawImage(await createImageBitmap(file), x, y);
    const frame = await createImageBitmap(canvas);
    for (let i = 0; i < Math.max(1, Math.round(delay / milliseconds)); i++) frames.push(frame);
  }
  return { frames, milliseconds, width: canvas.width, height: canvas.height };
}

// The header of a file, and its frames, each as a file of its own.
function parsed(content) {
  const all = [...chunks(content)];
  const head = all[0].whole;
  const shared = all.slice(1, all.findIndex(({ kind }) => kind === "IDAT")).filter(({ kind }) => ["PLTE", "tRNS"].includes(kind));
  const parts = [];
  for (const { kind, data } of all) {
    if (kind === "fcTL") parts.push({ ...control(data), data: [] });
    if (kind === "IDAT") parts.at(-1)?.data.push(data);
    if (kind === "fdAT") parts.at(-1).data.push(data.subarray(4));
  }
  for (const part of parts) {
    const own = head.slice(8, 21); // the data of the header
    const view = new DataView(own.buffer);
    view.setUint32(0, part.width);
    view.setUint32(4, part.height);
    const inner = [record("IHDR", own), ...shared.map(({ whole }) => whole), ...part.data.map((data) => record("IDAT", data))];
    part.file = new Blob([content.subarray(0, 8), ...inner, record("IEND", new Uint8Array())], { type: "image/png" });
  }
  return { head: new DataView(head.buffer, head.byteOffset), parts };
}

function control(data) {
  const view = new DataView(data.buffer, data.byteOffset);
  const [width, height, x, y] = [4, 8, 12, 16].map((at) => view.getUint32(at));
  const [count, unit] = [view.getUint16(20), view.getUint16(22) || 100];
  return { width, height, x, y, delay: (1000 * count) / unit };
}

// Controls in an element: play or pause, a range to scrub, and the number of the frame. All clips run together.
export class Player {
  constructor(root) {
    this.button = element("button", { type: "button", disabled: true });
    this.range = element("input", { type: "range", min: 1, max: 1, value: 1, disabled: true, ariaLabel: "Frame" });
    this.number = element("span", { className: "number" });
    root.replaceChildren(this.button, this.range, this.number);
    this.button.addEventListener("click", () => (this.running ? this.stop() : this.start()));
    this.range.addEventListener("input", () => {
      this.stop();
      this.show(this.range.value - 1);
    });
    this.load([]);
  }

  // Takes [canvas, clip] pairs; without any, the controls wait.
  load(pairs) {
    this.stop();
    this.pairs = pairs;
    this.count = Math.max(1, ...pairs.map(([, { frames }]) => frames.length));
    for (const [canvas, { width, height }] of pairs) {
      Object.assign(canvas, { width, height });
      canvas.classList.toggle("pixels", Math.min(width, height) < 128);
    }
    this.button.disabled = this.range.disabled = pairs.length === 0;
    this.range.max = this.count;
    this.show(0);
    if (pairs.length && !calm()) this.start();
  }

  show(frame) {
    this.frame = frame;
    this.range.value = frame + 1;
    this.number.textContent = this.pairs.length ? `${frame + 1} / ${this.count}` : "";
    for (const [canvas, { frames }] of this.pairs) {
      const pen = canvas.getContext("2d");
      pen.clearRect(0, 0, canvas.width, canvas.height);
      pen.drawImage(frames[Math.min(frame, frames.length - 1)], 0, 0);
    }
  }

  start() {
    const milliseconds = this.pairs[0][1].milliseconds;
    const begun = performance.now() - this.frame * milliseconds;
    const tick = (now) => {
      const frame = Math.max(0, Math.floor((now - begun) / milliseconds)) % this.count;
      if (frame !== this.frame) this.show(frame);
      this.running = requestAnimationFrame(tick);
    };
    this.running = requestAnimationFrame(tick);
    this.button.textContent = "Pause";
  }

  stop() {
    cancelAnimationFrame(this.running);
    this.running = 0;
    this.button.textContent = "Play";
  }
}

// A canvas for a clip, in the place of an image.
export const screen = (alt) => element("canvas", { role: "img", ariaLabel: alt });

// An image of a list: a clip stands still, and runs while the pointer or the focus is on its button.
export function listed(button, image, text) {
  if (!isClip(text)) return;
  const [first, moving] = [still(bytes(text)), image.src];
  image.src = first;
  button.classList.add("clip");
  for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => calm() || (image.src = moving));
  for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => (image.src = first));
}
