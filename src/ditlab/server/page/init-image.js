// The image that a generation starts from, and the mask that is painted over it.

import { $, model, sides, source, speaker } from "./service.js";

const say = speaker("images");

const LARGEST = 8 * 2 ** 20; // bytes of a file
let picture = null; // base64 of the file
let image = null; // the same, decoded
let mask = null; // a byte for each pixel of the model
let cursor = [0, 0]; // column and row, for the keyboard

export async function begin(text) {
  const decoded = new Image();
  decoded.src = source(text);
  await decoded.decode();
  [picture, image] = [text, decoded];
  $("start-more").hidden = false;
  $("start-set").open = true;
  clear();
}

export async function load(file) {
  await begin(await contentOf(file)).catch(() => {
    throw new Error(`${file.name} is not an image that this browser can read`);
  });
}

// The content of a file as base64.
export async function contentOf(file) {
  if (file.size > LARGEST) throw new Error(`${file.name} is larger than 8 MiB; select a smaller file`);
  const reader = new FileReader();
  await new Promise((resolve) => {
    reader.onload = resolve;
    reader.readAsDataURL(file);
  });
  return reader.result.split(",")[1];
}

export function none() {
  picture = image = mask = null;
  $("picture").value = "";
  $("start-more").hidden = true;
}

export function clear() {
  if (!image || !model()) return;
  const [width, height] = sides();
  mask = new Uint8Array(width * height);
  cursor = [width >> 1, height >> 1];
  show();
}

export function started() {
  if (!picture) return {};
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const painted = mask.some((each) => each);
  return { image: picture, mask: painted ? file() : undefined, strength: number("strength"), resample: painted ? number("resample") : undefined };
}

export function resume(asked) {
  for (const key of ["strength", "resample"]) $(key).value = asked[key] ?? "";
  return asked.image ? begin(asked.image) : none();
}

function show() {
  const [width, height] = sides();
  const canvas = $("mask");
  const cell = Math.max(1, Math.round(256 / Math.min(width, height)));
  [canvas.width, canvas.height] = [width * cell, height * cell];
  const pen = canvas.getContext("2d");
  // The middle, as large as possible: what the model is given.
  const scale = Math.max(canvas.width / image.width, canvas.height / image.height);
  const [w, h] = [image.width * scale, image.height * scale];
  pen.imageSmoothingEnabled = scale < 1;
  pen.drawImage(image, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
  pen.fillStyle = "rgb(255 0 128 / 0.6)";
  mask.forEach((painted, i) => painted && pen.fillRect((i % width) * cell, Math.floor(i / width) * cell, cell, cell));
  if (document.activeElement === canvas) {
    pen.strokeStyle = "rgb(255 0 128)";
    pen.lineWidth = 2;
    pen.strokeRect(cursor[0] * cell, cursor[1] * cell, cell, cell);
  }
}

function paint(column, row) {
  const [width, height] = sides();
  const radius = (Number($("brush").value) * Math.min(width, height)) / 32;
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      if ((x - column) ** 2 + (y - row) ** 2 <= radius ** 2 + 0.01) mask[y * width + x] = 1;
  show();
}

function file() {
  const [width, height] = sides();
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const data = new ImageData(width, height);
  mask.forEach((painted, i) => data.data.set(painted ? [255, 255, 255, 255] : [0, 0, 0, 255], 4 * i));
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}

function place(event) {
  const [width, height] = sides();
  const box = $("mask").getBoundingClientRect();
  return [Math.floor(((event.clientX - box.left) / box.width) * width), Math.floor(((event.clientY - box.top) / box.height) * height)];
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function connect() {
  $("picture").addEventListener("change", async () => {
    const [chosen] = $("picture").files;
    if (!chosen) return;
    await load(chosen).catch(say);
  });
  $("picture-clear").addEventListener("click", none);
  $("mask-clear").addEventListener("click", clear);
  const canvas = $("mask");
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    paint(...place(event));
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && paint(...place(event)));
  canvas.addEventListener("keydown", (event) => {
    const [width, height] = sides();
    if (event.key === " ") paint(...cursor);
    else if (MOVES[event.key]) {
      const [x, y] = MOVES[event.key];
      cursor = [Math.min(width - 1, Math.max(0, cursor[0] + x)), Math.min(height - 1, Math.max(0, cursor[1] + y))];
      show();
    } else return;
    event.preventDefault();
  });
  for (const kind of ["focus", "blur"]) canvas.addEventListener(kind, () => image && show());
}
