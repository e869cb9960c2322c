// The view in which people draw.

import { connect as connectHistory, remember, restore } from "./history.js";
import { $, SAMPLERS, ask, described, element, events, labelAt, lines, model, placeOf, post, say, shared, source } from "./service.js";
import * as start from "./start.js";

const THUMBNAILS = 60; // classes for which small pictures are drawn at once
let chosen = new Set(); // indices of classes
let cancel = null; // an AbortController while something is drawn

// ---------------------------------------------------------------- classes

export async function pick() {
  const { id, guidance_interval, classes, condition, prompts } = model();
  [$("low").value, $("high").value] = guidance_interval;
  interval();
  start.clear();
  chosen = new Set();
  $("classes-set").hidden = classes === 0;
  $("to-label-row").hidden = condition === "text";
  $("prompts-set").hidden = $("to-prompt-row").hidden = condition !== "text";
  $("prompts").value = $("negative").value = $("to-prompt").value = "";
  $("prompts").placeholder = prompts.slice(0, 3).join("\n");
  $("classes").replaceChildren(...shared.classes.map(classButton));
  $("to-label").replaceChildren(new Option("none", ""), ...shared.classes.map((name, i) => new Option(name, i)));
  for (const i of shared.classes.keys()) if (i < THUMBNAILS) thumbnail(id, i);
}

function classButton(name, i) {
  const button = element("button", { type: "button" }, element("img", { alt: "" }), name);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    chosen.has(i) ? chosen.delete(i) : chosen.add(i);
    button.setAttribute("aria-pressed", String(chosen.has(i)));
  });
  return button;
}

async function thumbnail(id, i) {
  try {
    const answer = await ask(`v1/thumbnails/${i}?model=${encodeURIComponent(id)}`);
    if ($("model").value !== id) return;
    $("classes").children[i].querySelector("img").src = URL.createObjectURL(await answer.blob());
  } catch {
    // The name is enough.
  }
}

function search() {
  const wanted = $("search").value.trim().toLowerCase();
  for (const button of $("classes").children) button.hidden = !button.textContent.toLowerCase().includes(wanted);
}

function interval() {
  const low = Math.min($("low").value, $("high").value);
  const high = Math.max($("low").value, $("high").value);
  $("low-out").value = low.toFixed(2);
  $("high-out").value = high.toFixed(2);
  $("span").setAttribute("x", low * 100);
  $("span").setAttribute("width", (high - low) * 100);
  return [low, high];
}

// ---------------------------------------------------------------- drawing

function order() {
  const count = Number($("count").value);
  const labels = [...chosen].sort((a, b) => a - b);
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const asked = {
    model: $("model").value,
    n: count,
    seeds: Number($("seed").value),
    preset: $("quality").value || undefined,
    sampler: $("sampler").value || undefined,
    steps: number("steps"),
    guidance: number("guidance"),
    guidance_interval: interval(),
    to_label: labelAt($("to-label").value),
    to_seed: number("to-seed"),
    ...start.started(),
    stream: true,
    partial_images: 12,
  };
  if (model().condition === "text") return { ...asked, ...texts(count) };
  if (labels.length) asked.labels = Array.from({ length: count }, (_, i) => labelAt(labels[i % labels.length]));
  return asked;
}

function texts(count) {
  const prompts = lines($("prompts").value);
  return {
    n: prompts.length > 1 ? Math.max(count, prompts.length) : count,
    labels: prompts.length ? Array.from({ length: Math.max(count, prompts.length) }, (_, i) => prompts[i % prompts.length]) : undefined,
    negative_prompt: $("negative").value || undefined,
    to_label: $("to-prompt").value || undefined,
  };
}

async function readPrompts() {
  const [file] = $("prompts-file").files;
  if (file) $("prompts").value = lines(await file.text()).join("\n");
}

async function draw(asked) {
  if (cancel) return;
  cancel = new AbortController();
  busy(true);
  const begun = performance.now();
  say("Generating");
  try {
    const answer = await post("v1/images/generations", asked, { signal: cancel.signal });
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      $("progress").value = event.step / event.steps;
      const seconds = (performance.now() - begun) / 1000;
      const left = (seconds / event.step) * (event.steps - event.step);
      if (event.data) show(event.data);
      if (event.type.endsWith("completed")) {
        say(`${event.data.length} ${event.data.length === 1 ? "image" : "images"} in ${seconds.toFixed(1)} s`);
        for (const [place, one] of event.data.entries())
          await remember({ picture: one.b64_json, settings: one.settings, asked, place });
      } else {
        say(`Step ${event.step} of ${event.steps}, ${left.toFixed(0)} s left`);
      }
    }
  } catch (error) {
    say(error.name === "AbortError" ? "Canceled" : error.message);
  } finally {
    cancel = null;
    busy(false);
  }
}

function busy(yes) {
  $("draw").disabled = yes;
  $("cancel").disabled = !yes;
  $("progress").hidden = !yes;
  $("progress").value = 0;
  if (yes) $("current").replaceChildren();
}

function show(data) {
  const place = $("current");
  while (place.children.length < data.length)
    place.append(element("img", { alt: `preview of image ${place.children.length + 1}` }));
  data.forEach((one, i) => {
    place.children[i].src = source(one.b64_json);
    if (one.settings) place.children[i].alt = described(one.settings);
  });
}

// Field names in a history that an earlier version of this page has kept.
const EARLIER = { seeds: "seed", preset: "quality", steps: "num_inference_steps", guidance: "guidance_scale", labels: "class_labels" };

async function take(asked) {
  asked = { ...asked };
  for (const [name, earlier] of Object.entries(EARLIER)) asked[name] ??= asked[earlier];
  const fields = { count: "n", seed: "seeds", quality: "preset", sampler: "sampler", steps: "steps", guidance: "guidance" };
  for (const [id, key] of Object.entries({ ...fields, "to-seed": "to_seed" })) $(id).value = asked[key] ?? "";
  if (model().condition === "text") {
    $("prompts").value = [...new Set(asked.labels ?? [])].join("\n");
    $("negative").value = asked.negative_prompt ?? "";
    $("to-prompt").value = asked.to_label ?? "";
  } else $("to-label").value = asked.to_label === undefined ? "" : placeOf(asked.to_label);
  [$("low").value, $("high").value] = asked.guidance_interval;
  interval();
  chosen = new Set((asked.labels ?? []).map(placeOf));
  [...$("classes").children].forEach((button, i) => button.setAttribute("aria-pressed", String(chosen.has(i))));
  await start.resume(asked);
}

// ---------------------------------------------------------------- what people do

export async function connect() {
  for (const name of SAMPLERS) $("sampler").append(new Option(name));
  $("order").addEventListener("submit", (event) => {
    event.preventDefault();
    draw(order());
  });
  $("cancel").addEventListener("click", () => cancel?.abort());
  $("search").addEventListener("input", search);
  $("prompts-file").addEventListener("change", () => readPrompts().catch((error) => say(error.message)));
  $("search").addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
  for (const id of ["low", "high"]) $(id).addEventListener("input", interval);
  start.connect();
  connectHistory({
    take,
    again: async (asked) => {
      await take(asked);
      $("seed").value = Math.floor(Math.random() * 2 ** 32);
      draw(order());
    },
    begin: start.begin,
  });
  await restore();
}
