// The classes that can be selected, and the small images of them, which the server generates when it has time.

import { shownAddress } from "./clip.js";
import { $, ask, element, model, picture, shared } from "./service.js";

const THUMBNAILS = 60; // classes, or example prompts, for which images are requested
const WAIT = 5000; // milliseconds until a thumbnail is requested again, if the server was busy for too long
let chosen = new Set(); // indices of classes
let wanted = 0; // number of the latest request for thumbnails; earlier ones end

export const selected = () => [...chosen].sort((a, b) => a - b);

export function select(places) {
  chosen = new Set(places);
  [...$("classes").children].forEach((button, i) => button.setAttribute("aria-pressed", String(chosen.has(i))));
  $("classes-none").disabled = chosen.size === 0;
  $("classes-hint").textContent = chosen.size ? `${chosen.size} of ${shared.classes.length} selected.` : "If no class is selected, all classes are used in turn.";
}

// Fills the list; `examples` is told of each thumbnail: its number and its address.
export function list(examples) {
  $("search").value = "";
  $("classes").replaceChildren(...shared.classes.map(classButton));
  select([]);
  thumbnails(examples);
}

function classButton(name, i) {
  const button = element("button", { type: "button" }, picture({ alt: "" }), name);
  button.addEventListener("click", () => select(chosen.has(i) ? selected().filter((each) => each !== i) : [...chosen, i]));
  return button;
}

// Requests the thumbnails of the model one after another.
export async function thumbnails(examples) {
  const { id, classes, prompts, model_hash } = model();
  const number = ++wanted;
  const count = Math.min(THUMBNAILS, classes || prompts.length || 4);
  for (let i = 0; i < count; i++) {
    // The hash is no parameter: it keeps the browser from showing thumbnails of earlier weights.
    const address = await thumbnail(`v1/thumbnails/${i}?model=${encodeURIComponent(id)}&weights=${model_hash}`, number);
    if (number !== wanted) return;
    if (!address) continue; // the name is enough
    if (classes) $("classes").children[i].querySelector("img").src = address;
    examples(i, address);
  }
}

// One at a time, so that connections remain for other requests; the server answers when it has had time for it.
async function thumbnail(path, number) {
  while (number === wanted) {
    try {
      const answer = await ask(path);
      return shownAddress(await answer.blob());
    } catch (error) {
      if (error.status !== 429) return null;
      await new Promise((resolve) => setTimeout(resolve, WAIT));
    }
  }
  return null;
}

function search() {
  const text = $("search").value.trim().toLowerCase();
  for (const button of $("classes").children) button.hidden = !button.textContent.toLowerCase().includes(text);
}

export function connect() {
  $("search").addEventListener("input", search);
  $("search").addEventListener("keydown", (event) => event.key === "Enter" && !event.ctrlKey && event.preventDefault());
  $("classes-none").addEventListener("click", () => select([]));
}
