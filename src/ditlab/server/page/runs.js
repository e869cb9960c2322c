// Training runs as they go: curves, the newest preview, the time that is left.

import { $, ask, drawing, element, shared } from "./service.js";

const SECONDS = 4; // between two looks
const CURVES = { loss: "Loss", grad_norm: "Gradient norm", lr: "Learning rate", images_per_second: "Images per second" };
let timer = null;
let preview = null; // number of the one that is shown
let latest = 0; // number of the latest look; earlier ones must not show what they get

export async function open() {
  const { runs } = await (await ask("v1/runs")).json();
  const before = $("run").value;
  $("run").replaceChildren(...runs.map((run) => new Option(run)));
  if (runs.includes(before)) $("run").value = before;
  $("run").parentElement.hidden = $("run-progress").hidden = runs.length === 0;
  if (!runs.length) return ($("run-told").textContent = "No training run is served. Start ditlab serve with the run folder.");
  if (shared.view === "runs") await watch();
}

export function close() {
  clearTimeout(timer);
  latest++;
}

// Looks again and again, until the view is closed or another run is selected. A failure may be over at the next look.
async function watch() {
  clearTimeout(timer);
  const number = ++latest;
  const current = () => number === latest;
  const failure = await look(current).catch((error) => error);
  if (!current()) return;
  $("run-told").classList.toggle("wrong", Boolean(failure));
  if (failure) $("run-told").textContent = failure.message;
  timer = setTimeout(watch, 1000 * SECONDS);
}

// Empties the view, so that nothing of one run is seen under the name of another.
function change() {
  $("run-told").textContent = "";
  $("run-progress").value = 0;
  $("curves").replaceChildren();
  $("preview-figure").hidden = true;
  watch();
}

async function look(current) {
  const name = encodeURIComponent($("run").value);
  const run = await (await ask(`v1/runs/${name}`)).json();
  if (!current()) return;
  $("run-progress").hidden = run.state === "finished";
  $("run-progress").value = run.total ? run.images / run.total : 0;
  $("run-told").textContent = `${run.images.toLocaleString()} of ${run.total.toLocaleString()} images${stateOf(run)}`;
  $("curves").replaceChildren(...Object.entries(CURVES).filter(([key]) => run.curves[key]?.length > 1).map(([key, title]) => curve(title, run.curves[key])));
  if (run.loss_by_time?.length) $("curves").append(curve("Loss by timestep", run.loss_by_time, "t (0: image, 1: noise)"));
  $("preview-figure").hidden = run.preview === null || !preview?.startsWith(`${name} `);
  if (run.preview !== null && `${name} ${run.preview}` !== preview) {
    const image = await (await ask(`v1/runs/${name}/preview`)).blob();
    if (!current()) return;
    preview = `${name} ${run.preview}`;
    $("preview").src = URL.createObjectURL(image);
    $("preview-figure").hidden = false;
    $("preview-told").textContent = `Preview at ${run.preview.toLocaleString()} images: EMA weights on the left, raw weights on the right`;
  }
}

function stateOf(run) {
  if (run.state === "finished") return ", finished";
  if (run.state === "stopped") return ", stopped";
  if (run.state === "unknown") return run.seconds_since_entry === null ? "" : `, last entry ${lasting(run.seconds_since_entry)} ago`;
  return run.seconds_left === null ? "" : `, about ${lasting(run.seconds_left)} left`;
}

function lasting(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// A number of the curves as people write it: three digits, and powers of ten where zeros would hide them.
function short(value) {
  if (value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6)) return value.toLocaleString("en", { maximumSignificantDigits: 3 });
  const [digits, power] = value.toExponential(1).split("e");
  return `${digits} × 10${[...String(Number(power))].map((letter) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[letter] ?? "⁻").join("")}`;
}

function curve(title, points, across = "training images") {
  const [width, height] = [320, 120];
  const [xs, ys] = [points.map((each) => each[0]), points.map((each) => each[1])];
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const place = ([x, y]) => [((x - xs[0]) / (xs.at(-1) - xs[0] || 1)) * width, height - ((y - low) / (high - low || 1)) * height];
  const figure = drawing("svg", { viewBox: `-4 -4 ${width + 76} ${height + 40}`, role: "img", class: "curve" });
  figure.setAttribute("aria-label", `${title}: now ${short(ys.at(-1))}, from ${short(low)} to ${short(high)}`);
  for (const part of [0, 0.5, 1]) {
    const y = height * (1 - part);
    figure.append(drawing("line", { x1: 0, x2: width, y1: y, y2: y }), drawing("text", { x: width + 6, y: y + 4 }, short(low + part * (high - low))));
  }
  figure.append(drawing("polyline", { points: points.map((point) => place(point).map((each) => each.toFixed(1)).join(",")).join(" ") }));
  const ends = [[0, "start", xs[0]], [width, "end", xs.at(-1)]];
  for (const [x, anchor, value] of ends) figure.append(drawing("text", { x, y: height + 16, "text-anchor": anchor }, across.startsWith("t ") ? short(value) : value.toLocaleString("en")));
  figure.append(drawing("text", { x: width / 2, y: height + 32, "text-anchor": "middle" }, across));
  const caption = element("figcaption", { textContent: title });
  hover(figure, caption, title, points, place, across);
  return element("figure", {}, caption, figure);
}

// Under the pointer, the caption shows the value of the nearest point.
function hover(figure, caption, title, points, place, across) {
  const mark = drawing("circle", { r: 4, visibility: "hidden" });
  figure.append(mark);
  figure.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(figure.getScreenCTM().inverse()).x;
    const distance = (point) => Math.abs(place(point)[0] - at);
    const nearest = points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
    const [x, y] = place(nearest);
    for (const [key, value] of Object.entries({ cx: x, cy: y, visibility: "visible" })) mark.setAttribute(key, value);
    caption.textContent = `${title}: ${short(nearest[1])} at ${across.startsWith("t ") ? `t = ${short(nearest[0])}` : `${nearest[0].toLocaleString("en")} images`}`;
  });
  figure.addEventListener("pointerleave", () => {
    mark.setAttribute("visibility", "hidden");
    caption.textContent = title;
  });
}

export function connect() {
  $("run").addEventListener("change", change);
}
