// The page: no framework, no build step, nothing from elsewhere.

import * as compare from "./compare.js";
import * as images from "./images.js";
import * as inspect from "./inspect.js";
import * as runs from "./runs.js";
import * as tips from "./tips.js";
import { $, ask, model, ofClips, say, sayAgain, shared, sides } from "./service.js";

async function start() {
  const failure = await load().catch((error) => error);
  try {
    await images.restore();
    if (failure) throw failure;
    for (const button of document.querySelectorAll('[type="submit"], #variant-add')) button.disabled = !shared.models.length;
    if (shared.models.length) return await pick();
    for (const view of ["images", "inspect", "compare"]) say("No model is served: restart ditlab serve when the run has a checkpoint", view);
    await show("runs");
  } catch (error) {
    say(error);
  }
}

// The models and their classes, which also the history needs for its names.
async function load() {
  shared.models = (await (await ask("v1/models")).json()).data;
  const get = async ({ id }) => [id, await (await ask(`v1/classes?model=${encodeURIComponent(id)}`)).json()];
  shared.lists = Object.fromEntries(await Promise.all(shared.models.filter((each) => each.classes).map(get)));
  $("model").replaceChildren(...shared.models.map((each) => new Option(each.id)));
}

// Shows the selected model in all views.
async function pick() {
  const { id, network, size, sampler, steps } = model();
  const [frames] = size.split("x");
  const about = ofClips() ? `${frames} frames of ${sides().join("x")}` : size;
  $("about").textContent = `${network}, ${about}, ${sampler}, ${steps} steps`;
  Object.assign(shared, shared.lists[id] ?? { classes: [], labels: [] });
  await images.pick();
  inspect.pick();
  compare.pick();
}

async function show(name) {
  shared.view = name;
  for (const button of document.querySelectorAll("[data-view]")) {
    const here = button.dataset.view === name;
    here ? button.setAttribute("aria-current", "page") : button.removeAttribute("aria-current");
    $(`view-${button.dataset.view}`).hidden = !here;
  }
  for (const actions of document.querySelectorAll("[data-for]")) actions.hidden = actions.dataset.for !== name;
  $("model-row").hidden = $("about").hidden = name === "runs" || name === "compare";
  $("progress").style.visibility = name === "images" ? "" : "hidden";
  $("bar").hidden = name === "runs";
  sayAgain();
  runs.close();
  if (name === "runs") await runs.open();
}

function paint(theme) {
  document.documentElement.style.colorScheme = theme;
  $("theme").value = theme;
}

for (const button of document.querySelectorAll("[data-view]"))
  button.addEventListener("click", () => show(button.dataset.view).catch(say));
$("model").addEventListener("change", () => pick().catch(say));
$("theme").addEventListener("change", () => {
  localStorage.setItem("theme", $("theme").value);
  paint($("theme").value);
});
$("token-row").addEventListener("submit", (event) => event.preventDefault());
$("token").addEventListener("change", () => {
  sessionStorage.setItem("token", $("token").value);
  start();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("detail").open)
    document.querySelector(`[data-for="${shared.view}"] [type="submit"]`)?.click();
});
paint(localStorage.getItem("theme") ?? "");
for (const part of [inspect, compare, runs, tips]) part.connect();
const choose = (id) => {
  $("model").value = id;
  return pick();
};
images.connect(choose, () => show("images"));
await start();
