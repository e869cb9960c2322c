// The same seeds and classes through several models or settings, in one grid.

import { calm, isClip, still } from "./clip.js";
import { $, SAMPLERS, bytes, described, element, lines, picture, plain, post, shared, source, speaker, subject } from "./service.js";

const say = speaker("compare");
let cancel = null; // an AbortController while a grid is generated; another grid cancels it

export function pick() {
  $("grid-classes-row").hidden = !shared.models.some((each) => each.classes);
  $("grid-prompts-row").hidden = !shared.models.some((each) => each.condition === "text");
  if (!$("variants").children.length) for (const preset of ["draft", "best"]) add({ model: $("model").value, preset });
}

function add(settings = {}) {
  const row = $("variant").content.cloneNode(true).firstElementChild;
  const field = (key) => row.querySelector(`[data-key="${key}"]`);
  field("model").append(...shared.models.map((each) => new Option(each.id)));
  field("sampler").append(...SAMPLERS.map((name) => new Option(name)));
  for (const [key, value] of Object.entries(settings)) field(key).value = value;
  const summarize = () => (row.querySelector("summary").textContent = `Settings: ${wordsOf(request(row))[1]}`);
  row.addEventListener("input", summarize);
  row.querySelector("button").addEventListener("click", () => {
    row.remove();
    number();
  });
  $("variants").append(row);
  number();
  summarize();
}

const number = () => [...$("variants").children].forEach((row, i) => (row.querySelector("legend").textContent = `Row ${i + 1}`));

function request(row) {
  const asked = { n: Number($("grid-count").value), seeds: Number($("grid-seed").value) };
  for (const field of row.querySelectorAll("[data-key]"))
    if (field.value !== "") asked[field.dataset.key] = field.type === "number" ? Number(field.value) : field.value;
  const text = isText(asked.model);
  const names = text ? lines($("grid-prompts").value) : $("grid-classes").value.split(",").map((name) => name.trim()).filter(Boolean);
  if (names.length) asked.labels = Array.from({ length: asked.n }, (_, i) => names[i % names.length]);
  return asked;
}

const isText = (id) => shared.models.find((each) => each.id === id).condition === "text";

function wordsOf(asked) {
  const { model, preset, sampler, steps, guidance } = asked;
  const parts = [preset, sampler, steps && `${steps} steps`, guidance !== undefined && `guidance ${guidance}`];
  return [model, parts.filter(Boolean).join(", ") || "model default"];
}

// What the server used where the row says nothing.
function used(data) {
  const { sampler, steps, guidance } = data[0].settings;
  return { sampler, steps, guidance };
}

async function generate() {
  cancel?.abort();
  const own = (cancel = new AbortController());
  $("grid-cancel").disabled = false;
  try {
    await generateRows(own.signal);
  } catch (error) {
    if (cancel === own) say(error.name === "AbortError" ? "Canceled" : error);
  } finally {
    if (cancel === own) {
      cancel = null;
      $("grid-cancel").disabled = true;
    }
  }
}

// Rows that another request has begun to replace are not added: an aborted request adds none.
async function generateRows(signal) {
  const rows = [...$("variants").children].map(request);
  const mixed = new Set(rows.map(({ model }) => isText(model))).size > 1; // prompts and classes: named at each image
  for (const [i, asked] of rows.entries()) {
    say(`Generating row ${i + 1} of ${rows.length}`);
    const begun = performance.now();
    const { data } = await (await post("v1/images/generations", asked, { signal })).json();
    const seconds = (performance.now() - begun) / 1000;
    const [name, settings] = wordsOf({ ...asked, ...used(data) });
    const head = element("th", { scope: "row" }, name, element("br"), settings, element("br"), `${seconds.toFixed(2)} s`);
    const image = (one) => picture({ src: addressOf(one.b64_json), alt: `${name}, ${settings}: ${described(one.settings)}` });
    const named = (one) => element("figure", {}, image(one), element("figcaption", { textContent: subject(one.settings) }));
    const cells = data.map((one) => element("td", {}, mixed ? named(one) : image(one)));
    const title = (one) => (mixed ? `seed ${plain(one.settings.seed)}` : described(one.settings));
    if (i === 0) {
      $("grid-empty").hidden = true;
      $("table").replaceChildren(element("tr", {}, element("td"), ...data.map((one) => element("th", { scope: "col", textContent: title(one) }))));
    }
    $("table").append(element("tr", {}, head, ...cells));
  }
  $("table").rows[0].scrollIntoView({ block: "nearest" });
  say(`${rows.length} ${rows.length === 1 ? "row" : "rows"} generated`);
}

const addressOf = (text) => (calm() && isClip(text) ? still(bytes(text)) : source(text));

export function connect() {
  $("variant-add").addEventListener("click", () => add({ model: $("model").value }));
  $("grid").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  $("grid-cancel").addEventListener("click", () => cancel?.abort());
}
