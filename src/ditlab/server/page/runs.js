// Training runs as they go: curves, the newest preview, the time that is left.

import { $, ask, drawing, element, say } from "./service.js";

const SECONDS = 4; // between two looks
const CURVES = { loss: "Loss", grad_norm: "Gradient norm", lr: "Learning rate", images_per_second: "Images per second" };
let timer = null;
let preview = null; // number of the one that is shown
let latest = 0; // number of the latest look; earlier ones must not show what they get

export async function open() {
  clearTimeout(timer);
  const { runs } = await (await ask("v1/runs")).json();
  const before = $("run").value;
  $("run").replaceChildren(...runs.map((run) => new Option(run)));
  if (runs.includes(before)) $("run").value = before;
  $("run").parentElement.hidden = $("run-progress").hidden = runs.length === 0;
  if (!runs.length) return ($("run-told").textContent = "No training run is served. Start ditlab serve with the run folder.");
  await look();
}

export function close() {
  clearTimeout(timer);
  latest++;
}

async function look() {
  clearTimeout(timer);
  const number = ++latest;
  const name = encodeURIComponent($("run").value);
  const run = await (await ask(`v1/runs/${name}`)).json();
  if (number !== latest) return;
  $("run-progress").value = run.total ? run.images / run.total : 0;
  $("run-told").textContent = `${run.images.toLocaleString()} of ${run.total.toLocaleString()} images${stateOf(run)}`;
  $("curves").replaceChildren(...Object.entries(CURVES).filter(([key]) => run.curves[key]?.length > 1).map(([key, title]) => curve(title, run.curves[key])));
  if (run.loss_by_time?.length) $("curves").append(curve("Loss by timestep t (0: image, 1: noise)", run.loss_by_time));
  $("preview-figure").hidden = run.preview === null || !preview?.startsWith(`${name} `);
  if (run.preview !== null && `${name} ${run.preview}` !== preview) {
    const image = await (await ask(`v1/runs/${name}/preview`)).blob();
    if (number !== latest) return;
    preview = `${name} ${run.preview}`;
    $("preview").src = URL.createObjectURL(image);
    $("preview-figure").hidden = false;
    $("preview-told").textContent = `Preview at ${run.preview.toLocaleString()} images: EMA weights on the left, raw weights on the right`;
  }
  timer = setTimeout(() => look().catch((error) => say(error.message)), 1000 * SECONDS);
}

function stateOf(run) {
  if (run.state === "finished") return ", done";
  if (run.state === "stopped") return ", stopped";
  if (run.state === "unknown") return run.seconds_since_entry === null ? "" : `, last entry ${lasting(run.seconds_since_entry)} ago`;
  return run.seconds_left === null ? "" : `, about ${lasting(run.seconds_left)} left`;
}

function lasting(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function curve(title, points) {
  const [width, height] = [320, 120];
  const [xs, ys] = [points.map((each) => each[0]), points.map((each) => each[1])];
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const across = xs.at(-1) - xs[0] || 1;
  const place = ([x, y]) => `${(((x - xs[0]) / across) * width).toFixed(1)},${(height - ((y - low) / (high - low || 1)) * height).toFixed(1)}`;
  const figure = drawing("svg", { viewBox: `-4 -4 ${width + 76} ${height + 26}`, role: "img", class: "curve" });
  figure.setAttribute("aria-label", `${title}: now ${ys.at(-1).toPrecision(3)}, from ${low.toPrecision(3)} to ${high.toPrecision(3)}`);
  figure.append(drawing("polyline", { points: points.map(place).join(" ") }));
  figure.append(drawing("text", { x: width + 6, y: 10 }, high.toPrecision(3)), drawing("text", { x: width + 6, y: height }, low.toPrecision(3)));
  figure.append(drawing("text", { x: 0, y: height + 18 }, xs[0].toLocaleString()), drawing("text", { x: width, y: height + 18, "text-anchor": "end" }, xs.at(-1).toLocaleString()));
  return element("figure", {}, element("figcaption", { textContent: title }), figure);
}

export function connect() {
  $("run").addEventListener("change", () => look().catch((error) => say(error.message)));
}
