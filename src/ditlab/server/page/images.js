// The view that generates images: the request, the queue of requests, and the stage on which the images appear.

import * as classes from "./classes.js";
import { Player, isClip, read as readClip, screen } from "./clip.js";
import * as further from "./further.js";
import * as given from "./given.js";
import { connect as connectHistory, has, newest, remember, reserve, select } from "./history.js";
import * as init from "./init-image.js";
import { read } from "./png.js";
import { $, SAMPLERS, described, element, events, labelAt, lines, model, noun, ofClips, picture, placeOf, post, shared, sides, source, speaker, subject } from "./service.js";

const say = speaker("images");
const EXAMPLES = 16; // most images on the stage before the first generation
const queue = []; // requests that wait
let cancel = null; // an AbortController while images are generated
let examples = []; // places of the examples on the stage, for as long as there are no images of the model
let player = null; // of the clips on the stage

export { restore } from "./history.js";

// ---------------------------------------------------------------- model

export async function pick() {
  const { guidance_interval, classes: count, condition, prompts } = model();
  [$("low").value, $("high").value] = guidance_interval;
  interval();
  defaults();
  if (!cancel) say("");
  further.keep();
  init.clear();
  given.pick();
  $("start-set").hidden = ofClips();
  $("stage-player").hidden = !ofClips();
  $("count-word").textContent = ofClips() ? "Clips" : "Images";
  $("classes-set").hidden = count === 0;
  $("to-label-row").hidden = condition === "text";
  $("prompts-set").hidden = $("to-prompt-row").hidden = condition !== "text";
  $("prompts").value = $("negative").value = $("to-prompt").value = "";
  $("prompts").placeholder = prompts.slice(0, 3).join("\n");
  $("to-label").replaceChildren(new Option("none", ""), ...shared.classes.map((name, i) => new Option(name, i)));
  welcome();
  classes.list(example);
}

// ---------------------------------------------------------------- stage

// Lays out places for images of a model's size and for their names, before there are any: nothing moves when they come.
function lay(title, count, of = model()) {
  const [width, height] = sides(of);
  const columns = columnsFor(count);
  const values = { "--columns": columns, "--rows": Math.ceil(count / columns), "--aspect": width / height };
  for (const [name, value] of Object.entries(values)) $("current").style.setProperty(name, value);
  const places = Array.from({ length: count }, () => element("button", { type: "button", disabled: true, title: "Not generated yet" }, picture({ alt: "" })));
  $("current").replaceChildren(...places.map((place) => element("figure", {}, place, element("figcaption"))));
  $("stage-title").textContent = title;
  player.load([]);
  return places;
}

// About a square, without empty places if one more column fills the rows.
function columnsFor(count) {
  if (count > 16) return 8;
  const columns = Math.ceil(Math.sqrt(count));
  return count % columns && count % (columns + 1) === 0 ? columns + 1 : columns;
}

// What the stage shows now, as a function that shows it again.
function kept() {
  const [figures, style, title, pairs] = [[...$("current").children], $("current").style.cssText, $("stage-title").textContent, player.pairs];
  return () => {
    $("current").replaceChildren(...figures);
    $("current").style.cssText = style;
    $("stage-title").textContent = title;
    player.load(pairs);
    tidy();
  };
}

// Takes deleted images off the stage.
function tidy() {
  const figures = [...$("current").children].filter(({ entry }) => entry && !has(entry));
  if (!figures.length) return;
  for (const figure of figures) figure.remove();
  player.load(player.pairs.filter(([canvas]) => canvas.isConnected));
  if ($("current").children.length) return;
  welcome();
  classes.thumbnails(example);
}

function put(place, address, alt) {
  Object.assign(place.firstChild, { src: address, alt });
  place.title = "";
}

const name = (place, text) => Object.assign(place.nextSibling, { textContent: text, title: text });

// What is seen on arrival: the newest images of the history that this model made, or examples as the server makes them.
function welcome() {
  const { classes: count, prompts } = model();
  const last = newest(model().id).slice(0, EXAMPLES).reverse();
  if (last.length) fill(lay(`Latest ${noun()}s`, last.length), last);
  else examples = lay("Examples (seed 0)", Math.min(count || prompts.length || 4, EXAMPLES));
}

function example(i, address) {
  if (i >= examples.length) return;
  const { classes: count, prompts } = model();
  const text = count ? `class ${shared.classes[i]}` : prompts[i];
  put(examples[i], address, `example: ${text ?? "image"}`);
  name(examples[i], text ?? `seed ${i}`);
}

// Shows images or clips in their places, which may have left the stage meanwhile. All clips play together.
async function fill(places, entries) {
  entries.forEach((entry, i) => {
    if (!isClip(entry.picture)) put(places[i], source(entry.picture), described(entry.settings));
    Object.assign(places[i], { disabled: false, title: "Show settings", onclick: () => select(entry) });
    places[i].parentElement.entry = entry;
    name(places[i], entry.settings.prompt ? subject(entry.settings) : described(entry.settings));
  });
  const clips = await Promise.all(entries.map(({ picture, settings }) => isClip(picture) && readClip(picture, settings)));
  const pairs = clips.map((clip, i) => clip && [screen(described(entries[i].settings)), clip]);
  pairs.forEach((pair, i) => pair && places[i].replaceChildren(pair[0]));
  if (places[0].isConnected) player.load(pairs.filter(Boolean));
}

// ---------------------------------------------------------------- request

function interval() {
  const low = Math.min($("low").value, $("high").value);
  const high = Math.max($("low").value, $("high").value);
  $("low-out").value = low.toFixed(2);
  $("high-out").value = high.toFixed(2);
  $("span").setAttribute("x", low * 100);
  $("span").setAttribute("width", (high - low) * 100);
  return [low, high];
}

// The values that are used where a field is empty, as far as the model decides them.
function defaults() {
  const { sampler, steps, guidance } = model();
  const own = $("preset").value === "";
  $("sampler").options[0].textContent = own ? `${sampler} (default)` : "From preset";
  $("steps").placeholder = own ? `${steps} (default)` : "From preset";
  $("guidance").placeholder = `${guidance} (default)`;
}

function request() {
  const count = Number($("count").value);
  const labels = classes.selected();
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const asked = {
    model: $("model").value,
    n: count,
    seeds: Number($("seed").value),
    preset: $("preset").value || undefined,
    sampler: $("sampler").value || undefined,
    steps: number("steps"),
    guidance: number("guidance"),
    guidance_interval: interval(),
    to_label: labelAt($("to-label").value),
    to_seed: number("to-seed"),
    ...further.kept(),
    ...(ofClips() ? given.started() : init.started()),
    stream: true,
    partial_images: 12,
  };
  if (model().condition === "text") return { ...asked, ...texts(count) };
  if (labels.length) asked.labels = Array.from({ length: count }, (_, i) => labelAt(labels[i % labels.length]));
  return asked;
}

function texts(count) {
  const prompts = lines($("prompts").value);
  const total = prompts.length > 1 ? Math.max(count, prompts.length) : count;
  return {
    n: total,
    labels: prompts.length ? Array.from({ length: total }, (_, i) => prompts[i % prompts.length]) : undefined,
    negative_prompt: $("negative").value || undefined,
    to_label: $("to-prompt").value || undefined,
  };
}

async function readPrompts() {
  const [file] = $("prompts-file").files;
  if (file) $("prompts").value = lines(await file.text()).join("\n");
}

// ---------------------------------------------------------------- generation

async function generate(asked) {
  queue.push([asked, reserve(asked.n)]);
  if (cancel) return waiting();
  while (queue.length) await generateOne(...queue.shift());
}

const waiting = () => ($("cancel").textContent = queue.length ? `Cancel (${queue.length} waiting)` : "Cancel");

async function generateOne(asked, reserved) {
  cancel = new AbortController();
  busy(true);
  waiting();
  const of = shared.models.find((each) => each.id === asked.model);
  const [begun, restore] = [performance.now(), kept()];
  let places = null;
  say("Generating");
  try {
    const answer = await post("v1/images/generations", asked, { signal: cancel.signal });
    places = lay(ofClips(of) ? "Clips" : "Images", asked.n, of); // a rejected request leaves the stage as it is
    $("stage-title").scrollIntoView({ block: "nearest" });
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      $("progress").value = event.step / event.steps;
      const seconds = (performance.now() - begun) / 1000;
      if (event.type.endsWith("completed")) await finish(places, reserved, event.data, asked, seconds);
      else {
        event.data?.forEach((one, i) => put(places[i], source(one.b64_json), `preview of image ${i + 1}`));
        const left = (seconds / event.step) * (event.steps - event.step);
        say(`Step ${event.step} of ${event.steps}, ${left < 1 ? "under 1" : left.toFixed(0)} s left`);
      }
    }
  } catch (error) {
    if (places?.[0].isConnected) {
      if (places.some((place) => place.firstChild.src)) $("stage-title").textContent = `Unfinished ${noun(of)}s`;
      else restore();
    }
    say(error.name === "AbortError" ? "Canceled" : error);
  } finally {
    for (const place of reserved) place.remove(); // those that no image has taken
    cancel = null;
    busy(false);
  }
}

async function finish(places, reserved, data, asked, seconds) {
  const made = [];
  for (const [i, one] of data.entries()) made.push(await remember({ picture: one.b64_json, settings: one.settings, asked, place: i }, reserved[i]));
  fill(places, made);
  const what = isClip(made[0].picture) ? "clip" : "image"; // another model may be selected now
  say(`${data.length} ${data.length === 1 ? what : `${what}s`} in ${seconds.toFixed(1)} s`);
}

function busy(yes) {
  $("cancel").disabled = !yes;
  $("progress").value = 0;
}

// ---------------------------------------------------------------- settings of an earlier image

// Field names in a history that an earlier version of this page has kept.
const EARLIER = { seeds: "seed", preset: "quality", steps: "num_inference_steps", guidance: "guidance_scale", labels: "class_labels" };

async function take(asked) {
  asked = { ...asked };
  for (const [name, earlier] of Object.entries(EARLIER)) asked[name] ??= asked[earlier];
  const fields = { count: "n", seed: "seeds", preset: "preset", sampler: "sampler", steps: "steps", guidance: "guidance", "to-seed": "to_seed" };
  for (const [id, key] of Object.entries(fields)) $(id).value = asked[key] ?? "";
  defaults();
  if (model().condition === "text") {
    $("prompts").value = [...new Set(asked.labels ?? [])].join("\n");
    $("negative").value = asked.negative_prompt ?? "";
    $("to-prompt").value = asked.to_label ?? "";
  } else $("to-label").value = asked.to_label === undefined ? "" : placeOf(asked.to_label);
  [$("low").value, $("high").value] = asked.guidance_interval ?? model().guidance_interval;
  interval();
  classes.select((asked.labels ?? []).map((label) => placeOf(label)).filter((i) => i >= 0));
  further.keep(asked);
  if ($("sampler").value || $("steps").value || $("guidance").value || !$("further").hidden) $("more").open = true;
  await (ofClips() ? given.resume(asked) : init.resume(asked));
}

// The request that generates an image of which only the settings are known; interpolated ones cannot be requested alone.
export function requestOf(settings) {
  const { label, prompt, seed, negative_prompt, ...others } = settings;
  const what = prompt ?? label;
  if ([what, seed].some((value) => value !== null && typeof value === "object")) throw new Error("the image lies between two others; its settings cannot be given here");
  return { ...others, n: 1, seeds: seed, labels: what === null || what === undefined ? undefined : [what], negative_prompt: negative_prompt ?? undefined };
}

async function readImage(file, choose) {
  const settings = await read(file);
  if (!settings) {
    await (ofClips() ? given.load("given-first", file) : init.load(file));
    return say(`${file.name} is the ${ofClips() ? "first frame" : "init image"}; it holds no settings of ditlab`);
  }
  const served = shared.models.find((each) => each.model_hash === settings.model_hash) ?? shared.models.find((each) => each.id === settings.model);
  if (served && served.id !== model().id) await choose(served.id);
  await take(requestOf(settings));
  const same = model().model_hash === settings.model_hash;
  const missing = settings.image_hash ? `; the ${ofClips() ? "given frames" : "init image"} of it must be selected again` : "";
  say(`Settings of ${file.name}${same ? "" : `, which another model made (${settings.model ?? "unknown"}): the image will differ`}${missing}`);
}

// ---------------------------------------------------------------- what people do

// `choose` selects a model by its name; `reveal` shows this view.
export function connect(choose, reveal) {
  for (const name of SAMPLERS) $("sampler").append(new Option(name));
  const attempt = (work) => work.catch(say);
  $("request").addEventListener("submit", (event) => {
    event.preventDefault();
    generate(request());
  });
  $("cancel").addEventListener("click", () => {
    for (const [, reserved] of queue.splice(0)) for (const place of reserved) place.remove();
    cancel?.abort();
    waiting();
  });
  $("preset").addEventListener("change", defaults);
  $("random").addEventListener("click", () => ($("seed").value = Math.floor(Math.random() * 2 ** 32)));
  $("prompts-file").addEventListener("change", () => attempt(readPrompts()));
  $("settings-file").addEventListener("change", () => {
    const [file] = $("settings-file").files;
    if (file) attempt(readImage(file, choose));
    $("settings-file").value = "";
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (!file || !model()) return;
    reveal();
    attempt(readImage(file, choose));
  });
  for (const id of ["low", "high"]) $(id).addEventListener("input", interval);
  classes.connect();
  init.connect();
  given.connect();
  further.connect();
  player = new Player($("stage-player"));
  connectHistory({
    take,
    again: async (asked) => {
      await take(asked);
      $("random").click();
      generate(request());
    },
    begin: init.begin,
    deleted: tidy,
  });
}
