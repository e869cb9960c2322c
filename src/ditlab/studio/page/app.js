// The studio's page: no framework, no build step, nothing from elsewhere.

const $ = (id) => document.getElementById(id);
const SAMPLERS = ["ab4", "ab2", "dpmpp", "heun", "euler", "ddim", "ddpm", "sde"];
const THUMBNAILS = 60; // classes for which small pictures are drawn at once
let models = [];
let classes = [];
let chosen = new Set(); // indices of classes
let cancel = null; // an AbortController while something is drawn
let shown = null; // the picture of the dialog
let comparing = null; // the picture that waits for another one

// ---------------------------------------------------------------- the service

const headers = () => {
  const token = sessionStorage.getItem("token");
  return { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) };
};

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (answer.ok) return answer;
  if (answer.status === 401) $("token-row").hidden = false;
  const told = await answer.json().catch(() => null);
  throw new Error(told?.error?.message ?? `the service answered ${answer.status}`);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) yield JSON.parse(block.split("\n").find((line) => line.startsWith("data: ")).slice(6));
  }
}

// ---------------------------------------------------------------- models and classes

async function start() {
  for (const name of SAMPLERS) $("sampler").append(new Option(name));
  await restore();
  try {
    models = (await (await ask("v1/models")).json()).data;
  } catch (error) {
    say(error.message);
    return;
  }
  $("model").replaceChildren(...models.map((model) => new Option(model.id)));
  await pick();
}

async function pick() {
  const model = models.find((each) => each.id === $("model").value) ?? models[0];
  $("about").textContent = `${model.network}, ${model.size}, ${model.sampler} in ${model.num_inference_steps} steps`;
  [$("low").value, $("high").value] = model.guidance_interval;
  interval();
  $("classes-set").hidden = model.classes === 0;
  chosen = new Set();
  classes = model.classes ? (await (await ask(`v1/classes?model=${encodeURIComponent(model.id)}`)).json()).classes : [];
  $("classes").replaceChildren(...classes.map(classButton));
  for (const i of classes.keys()) if (i < THUMBNAILS) thumbnail(model.id, i);
}

function classButton(name, i) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  const image = new Image();
  image.alt = "";
  button.append(image, name);
  button.addEventListener("click", () => {
    chosen.has(i) ? chosen.delete(i) : chosen.add(i);
    button.setAttribute("aria-pressed", String(chosen.has(i)));
  });
  return button;
}

async function thumbnail(model, i) {
  try {
    const answer = await ask(`v1/thumbnails/${i}?model=${encodeURIComponent(model)}`);
    if ($("model").value !== model) return;
    const image = $("classes").children[i].querySelector("img");
    image.src = URL.createObjectURL(await answer.blob());
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
    seed: Number($("seed").value),
    quality: $("quality").value || undefined,
    sampler: $("sampler").value || undefined,
    num_inference_steps: number("steps"),
    guidance_scale: number("guidance"),
    guidance_interval: interval(),
    stream: true,
    partial_images: 12,
  };
  if (labels.length) asked.class_labels = Array.from({ length: count }, (_, i) => labels[i % labels.length]);
  return asked;
}

async function draw(asked) {
  if (cancel) return;
  cancel = new AbortController();
  busy(true);
  const begun = performance.now();
  say("Drawing");
  try {
    const answer = await ask("v1/images/generations", { method: "POST", body: JSON.stringify(asked), signal: cancel.signal });
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      $("progress").value = event.step / event.steps;
      const seconds = (performance.now() - begun) / 1000;
      const left = (seconds / event.step) * (event.steps - event.step);
      if (event.data) show(event.data);
      if (event.type.endsWith("completed")) {
        say(`${event.data.length} pictures in ${seconds.toFixed(1)} s`);
        for (const one of event.data) await remember({ picture: one.b64_json, settings: one.settings, asked });
      } else {
        say(`Step ${event.step} of ${event.steps}, ${left.toFixed(0)} s left`);
      }
    }
  } catch (error) {
    say(error.name === "AbortError" ? "Cancelled" : error.message);
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
  while (place.children.length < data.length) {
    const image = new Image();
    image.alt = `picture ${place.children.length + 1} as it forms`;
    place.append(image);
  }
  data.forEach((one, i) => {
    place.children[i].src = source(one.b64_json);
    if (one.settings) place.children[i].alt = described(one.settings);
  });
}

const source = (text) => `data:image/png;base64,${text}`;

function described(settings) {
  const label = typeof settings.label === "number" ? (classes[settings.label] ?? settings.label) : settings.label;
  return `${label === null ? "picture" : `class ${label}`}, seed ${settings.seed}`;
}

const say = (text) => ($("status").textContent = text);

// ---------------------------------------------------------------- history, in the browser's own database

const database = new Promise((resolve, reject) => {
  const opening = indexedDB.open("ditlab", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => reject(opening.error);
});

async function store(mode, work) {
  const pictures = (await database).transaction("pictures", mode).objectStore("pictures");
  return new Promise((resolve, reject) => {
    const request = work(pictures);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function remember(entry) {
  entry.id = await store("readwrite", (pictures) => pictures.add(entry));
  $("history").prepend(item(entry));
  $("forget").hidden = false;
}

async function restore() {
  const entries = await store("readonly", (pictures) => pictures.getAll());
  for (const entry of entries) $("history").prepend(item(entry));
  $("forget").hidden = entries.length === 0;
}

function item(entry) {
  const place = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  const image = new Image();
  image.src = source(entry.picture);
  image.alt = described(entry.settings);
  button.append(image);
  button.addEventListener("click", () => (comparing ? besides(entry) : open(entry)));
  place.append(button);
  return place;
}

// ---------------------------------------------------------------- one picture, and two beside each other

function open(entry) {
  shown = entry;
  $("detail-title").textContent = described(entry.settings);
  $("detail-image").src = source(entry.picture);
  $("detail-image").alt = described(entry.settings);
  $("detail-other").hidden = $("slider-row").hidden = true;
  $("download").href = source(entry.picture);
  $("download").download = `${entry.settings.model}-${entry.settings.label}-${entry.settings.seed}.png`;
  settings([entry]);
  $("detail").showModal();
}

function settings(entries) {
  const keys = [...new Set(entries.flatMap((entry) => Object.keys(entry.settings)))];
  $("detail-settings").replaceChildren(
    ...keys.flatMap((key) => {
      const [name, value] = [document.createElement("dt"), document.createElement("dd")];
      name.textContent = key.replaceAll("_", " ");
      value.textContent = entries.map((entry) => JSON.stringify(entry.settings[key] ?? "as trained")).join(" / ");
      return [name, value];
    }),
  );
}

function besides(entry) {
  const first = comparing;
  comparing = null;
  say("");
  open(first);
  $("detail-title").textContent = `${described(first.settings)} / ${described(entry.settings)}`;
  $("detail-other").src = source(entry.picture);
  $("detail-other").alt = described(entry.settings);
  $("detail-other").hidden = $("slider-row").hidden = false;
  slide();
  settings([first, entry]);
  $("slider").focus();
}

const slide = () => $("detail-picture").style.setProperty("--cut", `${$("slider").value}%`);

function take(asked) {
  for (const [id, key] of [["count", "n"], ["seed", "seed"], ["quality", "quality"], ["sampler", "sampler"]])
    $(id).value = asked[key] ?? "";
  for (const [id, key] of [["steps", "num_inference_steps"], ["guidance", "guidance_scale"]]) $(id).value = asked[key] ?? "";
  [$("low").value, $("high").value] = asked.guidance_interval;
  interval();
  chosen = new Set(asked.class_labels ?? []);
  [...$("classes").children].forEach((button, i) => button.setAttribute("aria-pressed", String(chosen.has(i))));
}

// ---------------------------------------------------------------- what people do

$("order").addEventListener("submit", (event) => {
  event.preventDefault();
  draw(order());
});
$("cancel").addEventListener("click", () => cancel?.abort());
$("model").addEventListener("change", () => pick().catch((error) => say(error.message)));
$("search").addEventListener("input", search);
$("search").addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
for (const id of ["low", "high"]) $(id).addEventListener("input", interval);
$("token").addEventListener("change", () => {
  sessionStorage.setItem("token", $("token").value);
  start();
});
$("slider").addEventListener("input", slide);
$("close").addEventListener("click", () => $("detail").close());
$("reuse").addEventListener("click", () => {
  take(shown.asked);
  $("detail").close();
});
$("vary").addEventListener("click", () => {
  $("detail").close();
  take(shown.asked);
  $("seed").value = Math.floor(Math.random() * 2 ** 32);
  draw(order());
});
$("compare").addEventListener("click", () => {
  comparing = shown;
  $("detail").close();
  say("Choose the other picture in the history");
});
$("forget").addEventListener("click", async () => {
  await store("readwrite", (pictures) => pictures.clear());
  $("history").replaceChildren();
  $("forget").hidden = true;
});

start();
