// What the views share: the service, the models, and the line that says what happens.

export const $ = (id) => document.getElementById(id);
export const SAMPLERS = ["ab4", "ab2", "dpmpp", "heun", "euler", "ddim", "ddpm", "sde"];
// `lists` has the classes and labels of each model; `classes` and `labels` are those of the selected one.
export const shared = { models: [], lists: {}, classes: [], labels: [], view: "images" };

export const model = () => shared.models.find((each) => each.id === $("model").value);
export const ofClips = (of = model()) => of.size.split("x").length === 3; // FRAMESxWIDTHxHEIGHT
export const noun = (of = model()) => (ofClips(of) ? "clip" : "image");
export const sides = (of = model()) => of.size.split("x").slice(-2).map(Number); // width and height
export const source = (text) => `data:image/png;base64,${text}`;
export const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

const said = {}; // the line of each view, which is shown with it: a text or an error

export function say(line, view = shared.view) {
  said[view] = line;
  if (view === shared.view) sayAgain();
}

export const speaker = (view) => (line) => say(line, view);

export function sayAgain() {
  const line = said[shared.view] ?? "";
  $("status").classList.toggle("wrong", line instanceof Error);
  $("status").textContent = line instanceof Error ? line.message : line;
}

const headers = () => {
  const token = sessionStorage.getItem("token");
  return { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) };
};

function unreachable(error) {
  throw error.name === "AbortError" ? error : new Error("The service does not respond. Is ditlab serve still running?");
}

export async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() }).catch(unreachable);
  if (answer.ok) return answer;
  if (answer.status === 401) $("token-row").hidden = false;
  const told = await answer.json().catch(() => null);
  throw Object.assign(new Error(told?.error?.message ?? `the server returned status ${answer.status}`), { status: answer.status });
}

export const post = (path, body, options = {}) => ask(path, { method: "POST", body: JSON.stringify(body), ...options });

export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch(unreachable);
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) yield JSON.parse(block.split("\n").find((line) => line.startsWith("data: ")).slice(6));
  }
}

// The value for a request of a class that is chosen by its place in the list; undefined for none.
export const labelAt = (place) => (place === "" ? undefined : shared.labels[place]);

// The place in the list of the class that a request means; -1 if there is none.
export function placeOf(value, { classes, labels } = shared) {
  const within = (names) => names.findIndex((name) => String(name) === String(value));
  const place = within(labels) >= 0 ? within(labels) : within(classes);
  return place >= 0 ? place : Number(/^index:(\d+)$/.exec(value)?.[1] ?? -1);
}

export function named(value, list) {
  // A label as people call it; `list` has the classes and labels of its model.
  if (value === null) return "none";
  if (typeof value === "object") return `${named(value.first, list)} to ${named(value.second, list)} (${Math.round(100 * value.weight)} %)`;
  return String((list && list.classes[placeOf(value, list)]) ?? value);
}

export function plain(value) {
  // A setting without the quotes and brackets of JSON.
  if (value === null) return "none";
  if (Array.isArray(value)) return value.map(plain).join(" to ");
  if (typeof value === "object") return `${plain(value.first)} to ${plain(value.second)} (${Math.round(100 * value.weight)} %)`;
  return String(value);
}

export const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

export function subject(settings) {
  // What an image shows: its class or its prompt.
  if ("prompt" in settings) return settings.prompt === null ? "image" : plain(settings.prompt);
  return settings.label === null ? "image" : `class ${named(settings.label, shared.lists[settings.model])}`;
}

export function described(settings) {
  return `${subject(settings)}, seed ${plain(settings.seed)}`;
}

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const SMALL = 128; // pixels of a side, below which enlarged pixels stay sharp squares

export function sharp(image) {
  image.addEventListener("load", () => image.classList.toggle("pixels", Math.min(image.naturalWidth, image.naturalHeight) < SMALL));
  return image;
}

export const picture = (properties) => sharp(element("img", properties));
