// What was generated, in the browser's own database; an image with its settings, and two beside each other.

import { Player, isClip, listed, read } from "./clip.js";
import { command, curl, files, python } from "./copy.js";
import { $, bytes, described, element, picture, plain, post, source, speaker } from "./service.js";
import { zip } from "./zip.js";

const say = speaker("images");
let entries = []; // newest first, as in the list
let shown = null; // the image of the dialog
let comparing = null; // the image that waits for another one
let player = null; // of the clips of the dialog
let changed = null; // called when images have been deleted

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

// Places at the start of the list for the images of a request, so that nothing moves when they come; the first image is
// last in the list.
export function reserve(count) {
  const places = Array.from({ length: count }, () => element("li"));
  $("history").prepend(...places);
  return places.reverse();
}

export async function remember(entry, place) {
  entry.id = await store("readwrite", (pictures) => pictures.add(entry));
  entries.unshift(entry);
  place.replaceWith(item(entry));
  count();
  return entry;
}

export async function restore() {
  entries = (await store("readonly", (pictures) => pictures.getAll())).reverse();
  $("history").replaceChildren(...entries.map(item));
  count();
}

// The images of the newest request that was made with a model, newest first.
export function newest(model) {
  const own = entries.filter((entry) => entry.settings.model === model);
  return own.slice(0, own.findIndex((entry) => entry.place === 0) + 1);
}

export const has = (entry) => entries.includes(entry);

const count = () => ($("forget").disabled = $("zip").disabled = entries.length === 0);

function item(entry) {
  const image = picture({ src: source(entry.picture), alt: described(entry.settings) });
  const button = element("button", { type: "button" }, image);
  listed(button, image, entry.picture);
  button.addEventListener("click", () => select(entry));
  return Object.assign(element("li", {}, button), { entry });
}

// Shows an image, or compares it with the one that waits for another.
export const select = (entry) => (comparing ? besides(entry) : open(entry));

function open(entry) {
  shown = entry;
  $("detail-title").textContent = described(entry.settings);
  show($("detail-image"), entry.picture, described(entry.settings));
  $("detail-other").hidden = $("slider-row").hidden = $("detail-other-clip").hidden = true;
  $("download").href = source(entry.picture);
  $("download").download = `${name(entry)}.png`;
  $("previous").disabled = entries.at(-1) === entry;
  $("next").disabled = entries[0] === entry;
  $("copied").textContent = "";
  settings([entry]);
  play([entry]);
  if (entry.asked.image) beside(entry.asked.image, "the init image", "Left: the result. Right: the init image.");
  if (!$("detail").open) $("detail").showModal();
}

// Shows an image, or prepares the place of a clip, which `play` fills.
function show(image, text, alt) {
  const canvas = $(`${image.id.replace("-image", "")}-clip`);
  image.hidden = isClip(text);
  canvas.hidden = !image.hidden;
  canvas.ariaLabel = image.alt = alt;
  if (image.hidden) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  else image.src = source(text);
}

// Plays one clip, or two beside each other, with the controls of the dialog.
async function play(chosen) {
  const clips = isClip(chosen[0].picture);
  $("detail-player").hidden = $("formats").hidden = !clips;
  $("begin").hidden = clips;
  $("compare").textContent = `Compare with another ${clips ? "clip" : "image"}`;
  player.load([]);
  const moving = [$("detail-clip"), $("detail-other-clip")].filter((canvas, i) => chosen[i] && isClip(chosen[i].picture));
  const parts = await Promise.all(chosen.filter(({ picture }) => isClip(picture)).map(({ picture, settings }) => read(picture, settings)));
  if (shown === chosen[0] && $("detail").open) player.load(moving.map((canvas, i) => [canvas, parts[i]]));
}

// The image that was made before (1) or after (-1) the shown one.
function step(by) {
  const entry = entries[entries.indexOf(shown) + by];
  if (entry) open(entry);
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

function beside(other, alt, text) {
  show($("detail-other"), other, alt);
  $("slider-row").hidden = false;
  $("slider-text").textContent = text;
  slide();
}

function besides(entry) {
  const first = comparing;
  comparing = null;
  say("");
  open(first);
  const shape = isClip(first.picture) ? "clip" : "image";
  $("detail-title").textContent = `${described(first.settings)} / ${described(entry.settings)}`;
  beside(entry.picture, described(entry.settings), `Left: this ${shape}. Right: the other ${shape}.`);
  settings([first, entry]);
  play([first, entry]);
  $("slider").focus();
}

const slide = () => $("detail-picture").style.setProperty("--cut", `${$("slider").value}%`);

async function animate(entry) {
  // The same request again gives the same image; this time with its trajectory.
  say("Generating the trajectory");
  const asked = { ...entry.asked, stream: false, animation: true };
  const { data } = await (await post("v1/images/generations", asked)).json();
  save(`data:image/gif;base64,${data[entry.place].animation_b64}`, `${name(entry)}.gif`);
  say("");
}

// The request for one image or clip again; one between two others has no request of its own.
function alone({ asked, settings, place }) {
  const what = settings.prompt ?? settings.label ?? null;
  const again = { ...asked, stream: false, partial_images: undefined };
  if ([what, settings.seed].some((value) => value !== null && typeof value === "object")) return [again, place];
  return [{ ...again, n: 1, labels: what === null ? undefined : [what], seeds: settings.seed, to_label: undefined, to_seed: undefined }, 0];
}

async function convert(entry, format) {
  $("copied").textContent = `Generating the clip as ${format.toUpperCase()}`;
  const [asked, place] = alone(entry);
  const { data } = await (await post("v1/images/generations", { ...asked, format })).json();
  save(`data:${format === "mp4" ? "video" : "image"}/${format};base64,${data[place].b64_json}`, `${name(entry)}.${format}`);
  $("copied").textContent = "";
}

const save = (href, download) => element("a", { href, download }).click();

function saveAll() {
  const files = entries.map((entry) => [`${String(entry.id).padStart(5, "0")}-${name(entry).replace(/[^\w.-]+/g, "-")}.png`, bytes(entry.picture)]);
  const address = URL.createObjectURL(zip(files));
  save(address, "ditlab-images.zip");
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

async function remove(entry) {
  await store("readwrite", (pictures) => pictures.delete(entry.id));
  const i = entries.indexOf(entry);
  entries.splice(i, 1);
  [...$("history").children].find((child) => child.entry === entry).remove();
  count();
  changed();
  entries.length ? open(entries[Math.min(i, entries.length - 1)]) : $("detail").close();
}

async function copy(text, read = []) {
  try {
    await navigator.clipboard.writeText(text);
    $("copied").textContent = "Copied";
  } catch {
    $("copied").textContent = text; // the browser allows no access to the clipboard
  }
  const links = read.map(([download, content]) => element("a", { href: source(content), download, textContent: download }));
  if (links.length) $("copied").append(". Files that it reads:", ...links.flatMap((link) => [" ", link]));
}

// Gives the view what is done with an image: `take` its settings, `again` with another seed, `begin` with it, and what
// is done when images have been `deleted`.
export function connect({ take, again, begin, deleted }) {
  changed = deleted;
  const closing = (work) => () => {
    $("detail").close();
    work(shown);
  };
  $("slider").addEventListener("input", slide);
  const pull = (event) => {
    if ($("slider-row").hidden || !event.buttons) return;
    const box = $("detail-picture").getBoundingClientRect();
    $("slider").value = (100 * (event.clientX - box.left)) / box.width;
    slide();
  };
  for (const kind of ["pointerdown", "pointermove"]) $("detail-picture").addEventListener(kind, pull);
  $("detail-picture").addEventListener("dragstart", (event) => $("slider-row").hidden || event.preventDefault());
  $("close").addEventListener("click", () => $("detail").close());
  $("previous").addEventListener("click", () => step(1));
  $("next").addEventListener("click", () => step(-1));
  $("detail").addEventListener("keydown", (event) => {
    if (event.target.type === "range") return;
    if (event.key === "ArrowLeft") step(1);
    if (event.key === "ArrowRight") step(-1);
  });
  $("reuse").addEventListener("click", closing((entry) => take(entry.asked)));
  $("vary").addEventListener("click", closing((entry) => again(entry.asked)));
  $("begin").addEventListener("click", closing((entry) => begin(entry.picture)));
  $("animate").addEventListener("click", closing((entry) => animate(entry).catch(say)));
  player = new Player($("detail-player"));
  $("detail").addEventListener("close", () => player.load([]));
  for (const button of $("formats").children)
    button.addEventListener("click", () => convert(shown, button.dataset.format).catch((error) => ($("copied").textContent = error.message)));
  $("remove").addEventListener("click", () => remove(shown).catch(say));
  $("copy-python").addEventListener("click", () => copy(python(shown), files(shown)));
  $("copy-cli").addEventListener("click", () => copy(command(shown, `${name(shown)}.png`), files(shown)));
  $("copy-curl").addEventListener("click", () => copy(curl(shown)));
  $("compare").addEventListener("click", closing((entry) => {
    comparing = entry;
    const other = isClip(entry.picture) ? "clip" : "image";
    say(`Select the other ${other} in the history`);
  }));
  $("zip").addEventListener("click", saveAll);
  $("forget").addEventListener("click", async () => {
    if (!confirm(`Delete ${entries.length === 1 ? "the only image" : `all ${entries.length} images`} of the history?`)) return;
    await store("readwrite", (images) => images.clear());
    [entries, comparing] = [[], null];
    for (const child of [...$("history").children]) if (child.entry) child.remove(); // images in progress keep their places
    count();
    changed();
  });
}
