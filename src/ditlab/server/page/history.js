// What was drawn, in the browser's own database; a picture by itself, and two beside each other.

import { $, described, element, plain, post, say, source } from "./service.js";

let shown = null; // the picture of the dialog
let comparing = null; // the picture that waits for another one

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

export async function remember(entry) {
  entry.id = await store("readwrite", (pictures) => pictures.add(entry));
  $("history").prepend(item(entry));
  $("forget").hidden = false;
}

export async function restore() {
  const entries = await store("readonly", (pictures) => pictures.getAll());
  $("history").replaceChildren(...entries.reverse().map(item));
  $("forget").hidden = entries.length === 0;
}

function item(entry) {
  const image = element("img", { src: source(entry.picture), alt: described(entry.settings) });
  const button = element("button", { type: "button" }, image);
  button.addEventListener("click", () => (comparing ? besides(entry) : open(entry)));
  return element("li", {}, button);
}

function open(entry) {
  shown = entry;
  $("detail-title").textContent = described(entry.settings);
  $("detail-image").src = source(entry.picture);
  $("detail-image").alt = described(entry.settings);
  $("detail-other").hidden = $("slider-row").hidden = true;
  $("download").href = source(entry.picture);
  $("download").download = `${name(entry)}.png`;
  settings([entry]);
  $("detail").showModal();
}

function name({ settings }) {
  const word = (value) => (value !== null && typeof value === "object" ? `${value.first}-to-${value.second}` : value);
  const subject = String(word("prompt" in settings ? settings.prompt : settings.label)).slice(0, 80);
  return `${settings.model}-${subject}-${word(settings.seed)}`;
}

function settings(entries) {
  const keys = [...new Set(entries.flatMap((entry) => Object.keys(entry.settings)))];
  $("detail-settings").replaceChildren(
    ...keys.flatMap((key) => [
      element("dt", { textContent: key.replaceAll("_", " ") }),
      element("dd", { textContent: entries.map((entry) => (key in entry.settings ? plain(entry.settings[key]) : "model default")).join(" / ") }),
    ]),
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

async function animate(entry) {
  // The same order again gives the same picture; this time with its way.
  say("Generating the trajectory");
  const asked = { ...entry.asked, stream: false, animation: true };
  const { data } = await (await post("v1/images/generations", asked)).json();
  const link = element("a", { href: `data:image/gif;base64,${data[entry.place].animation_b64}`, download: `${name(entry)}.gif` });
  link.click();
  say("");
}

// Gives the view what is done with a picture: `take` its settings, `again` with another seed, `begin` with it.
export function connect({ take, again, begin }) {
  const closing = (work) => () => {
    $("detail").close();
    work(shown);
  };
  $("slider").addEventListener("input", slide);
  $("close").addEventListener("click", () => $("detail").close());
  $("reuse").addEventListener("click", closing((entry) => take(entry.asked)));
  $("vary").addEventListener("click", closing((entry) => again(entry.asked)));
  $("begin").addEventListener("click", closing((entry) => begin(entry.picture)));
  $("animate").addEventListener("click", closing((entry) => animate(entry).catch((error) => say(error.message))));
  $("compare").addEventListener("click", closing((entry) => {
    comparing = entry;
    say("Select the other image in the history");
  }));
  $("forget").addEventListener("click", async () => {
    await store("readwrite", (pictures) => pictures.clear());
    $("history").replaceChildren();
    $("forget").hidden = true;
  });
}
