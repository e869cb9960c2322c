// The view into the network: its estimate step by step, what a patch attends to, how much each block changes.

import { $, bytes, drawing, element, labelAt, model, picture, post, shared, source, speaker } from "./service.js";

const say = speaker("inspect");

let asked = null; // the request that was inspected
let steps = []; // time and picture of each step
let step = 0;
let patch = 0;
let attention = null; // of the chosen step and layer
let latest = 0; // number of the latest request; the page drops what earlier ones return

export function pick() {
  $("look-label").replaceChildren(...shared.classes.map((name, i) => new Option(name, i)));
  $("look-label-row").hidden = model().classes === 0;
  $("look-prompt-row").hidden = model().condition !== "text";
  $("look-prompt").value = "";
  $("look-prompt").placeholder = model().prompts[0] ?? "";
  $("seen").hidden = true;
  $("look-empty").hidden = false;
  latest++;
  say("");
}

// Sends a request; null if another one has been sent meanwhile, or another model was selected.
async function newest(body) {
  const number = ++latest;
  try {
    const answer = await (await post("v1/inspect", body)).json();
    return number === latest ? answer : null;
  } catch (error) {
    if (number === latest) throw error;
    return null;
  }
}

async function look() {
  say("Inspecting");
  const body = { model: $("model").value, seeds: Number($("look-seed").value), steps: Number($("look-steps").value) };
  if (model().condition === "text" && $("look-prompt").value.trim()) body.prompt = $("look-prompt").value;
  if (model().classes) body.prompt = labelAt($("look-label").value);
  const seen = await newest(body);
  if (!seen) return;
  asked = body;
  steps = seen.steps;
  $("way").replaceChildren(...steps.map(stepButton));
  $("layer").replaceChildren(...Array.from({ length: seen.attentions }, (_, i) => new Option(`self-attention ${i + 1}`, i)));
  $("layer").value = Math.floor(seen.attentions / 2);
  $("seen").hidden = false; // before the figure, which depends on the width
  $("look-empty").hidden = true;
  $("changes").replaceChildren(heat(seen.changes));
  $("changes-legend").replaceChildren(...legend(seen.changes));
  say(`${steps.length} steps`);
  patch = null;
  await choose(Math.floor(steps.length / 2));
  $("seen").firstElementChild.scrollIntoView({ block: "nearest" });
}

function stepButton({ b64_json }, i) {
  const image = picture({ src: source(b64_json), alt: `predicted image after step ${i + 1}` });
  const button = element("button", { type: "button" }, image, String(i + 1));
  button.addEventListener("click", () => choose(i).catch(say));
  return button;
}

async function choose(i) {
  [step, attention] = [i, null];
  [...$("way").children].forEach((button, j) => button.setAttribute("aria-pressed", String(i === j)));
  if ($("layer").value === "") return showNone("This network has no self-attention.");
  const seen = await newest({ ...asked, step: i, attention: Number($("layer").value) });
  if (!seen) return;
  if (!seen.attention) return showNone("The tokens of this layer are not patches of the image.");
  attention = { ...seen.attention, weights: bytes(seen.attention.weights) };
  const count = attention.height * attention.width;
  if (patch === null || patch >= count) patch = Math.floor(attention.height / 2) * attention.width + Math.floor(attention.width / 2);
  await show();
}

function showNone(text) {
  $("attention").hidden = $("attention-scale").hidden = true;
  $("attention-told").textContent = text;
}

async function show() {
  const { height, width, weights } = attention;
  const canvas = $("attention");
  const cell = Math.max(2, Math.round(320 / Math.max(width, height)));
  [canvas.width, canvas.height] = [width * cell, height * cell];
  const pen = canvas.getContext("2d");
  const image = new Image();
  image.src = source(steps[step].b64_json);
  await image.decode();
  if (weights !== attention?.weights) return; // another step or layer has been selected
  pen.imageSmoothingEnabled = false;
  pen.filter = "grayscale(1) brightness(0.6)";
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.filter = "none";
  for (let i = 0; i < width * height; i++) {
    pen.fillStyle = `rgb(255 176 0 / ${(0.85 * weights[patch * width * height + i]) / 255})`;
    pen.fillRect((i % width) * cell, Math.floor(i / width) * cell, cell, cell);
  }
  pen.strokeStyle = "#fff";
  pen.lineWidth = 2;
  pen.strokeRect((patch % width) * cell + 1, Math.floor(patch / width) * cell + 1, cell - 2, cell - 2);
  $("attention-most").textContent = `${(100 * attention.largest[patch]).toFixed(1)} %`;
  $("attention").hidden = $("attention-scale").hidden = false;
  $("attention-told").textContent = `Step ${step + 1}, row ${Math.floor(patch / width) + 1} of ${height}, column ${(patch % width) + 1} of ${width}`;
}

const most = (changes) => Math.max(...changes.flat().filter((value) => value !== null));
const shade = (part) => 0.08 + 0.92 * part; // opacity, so that the order of light and dark follows the page's theme

const heatmap = (width, height) => drawing("svg", { viewBox: `0 0 ${width} ${height}`, width, class: "heat", role: "img" });

function legend(changes) {
  // The same opacities as in the figure, with their numbers: true in the light and in the dark.
  const [largest, cell, left] = [most(changes), 40, 64];
  if (!Number.isFinite(largest)) return [];
  const figure = heatmap(left + 5 * cell, 40);
  figure.setAttribute("aria-label", `Legend: relative change from 0 to ${(100 * largest).toFixed(0)} percent`);
  figure.append(drawing("text", { x: 0, y: 15 }, "change of"), drawing("text", { x: 0, y: 29 }, "output"));
  for (let i = 0; i < 5; i++) {
    const square = drawing("rect", { x: left + i * cell, y: 0, width: cell - 2, height: 20, rx: 3 });
    square.style.fillOpacity = shade(i / 4);
    const text = `${((100 * largest * i) / 4).toFixed(largest < 0.04 ? 1 : 0)} %`;
    figure.append(square, drawing("text", { x: left + i * cell + cell / 2 - 2, y: 34, "text-anchor": "middle" }, text));
  }
  return [figure];
}

function heat(changes) {
  const blocks = changes[0]?.length ?? 0;
  if (!blocks) return element("p", { textContent: "Block outputs are not recorded for this network." });
  const largest = most(changes);
  const [left, high] = [64, 22];
  const room = $("changes").clientWidth - left;
  const cell = Math.max(8, Math.min(40, Math.floor(room / changes.length))); // many steps are narrow, and scroll if need be
  const every = Math.ceil(22 / cell); // so that the numbers of steps do not touch
  const figure = heatmap(left + changes.length * cell, blocks * high + 26);
  figure.setAttribute("aria-label", `Relative change of the output of ${blocks} blocks over ${changes.length} steps, at most ${(100 * largest).toFixed(0)} percent`);
  for (let block = 0; block < blocks; block++) {
    figure.append(drawing("text", { x: 0, y: block * high + 15 }, `block ${block + 1}`));
    changes.forEach((row, i) => {
      const value = row[block];
      const square = drawing("rect", { x: left + i * cell, y: block * high, width: cell - (cell < 16 ? 1 : 2), height: high - 2, rx: cell < 16 ? 1 : 3 });
      square.style.fillOpacity = value === null ? 0 : shade(value / largest);
      square.append(drawing("title", {}, value === null ? `step ${i + 2}, block ${block + 1}: skipped` : `step ${i + 2}, block ${block + 1}: ${(100 * value).toFixed(1)} %`));
      figure.append(square);
    });
  }
  figure.append(drawing("text", { x: 0, y: blocks * high + 16 }, "step"));
  for (let i = 0; i < changes.length; i += every)
    figure.append(drawing("text", { x: left + i * cell + cell / 2 - 1, y: blocks * high + 16, "text-anchor": "middle" }, i + 2));
  return figure;
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function connect() {
  $("look").addEventListener("submit", (event) => {
    event.preventDefault();
    look().catch(say);
  });
  $("layer").addEventListener("change", () => choose(step).catch(say));
  const canvas = $("attention");
  canvas.addEventListener("click", (event) => {
    if (!attention) return;
    const box = canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * attention.width);
    const row = Math.floor(((event.clientY - box.top) / box.height) * attention.height);
    patch = row * attention.width + column;
    show();
  });
  canvas.addEventListener("keydown", (event) => {
    if (!attention || !MOVES[event.key]) return;
    event.preventDefault();
    const [x, y] = MOVES[event.key];
    const column = Math.min(attention.width - 1, Math.max(0, (patch % attention.width) + x));
    const row = Math.min(attention.height - 1, Math.max(0, Math.floor(patch / attention.width) + y));
    patch = row * attention.width + column;
    show();
  });
}
