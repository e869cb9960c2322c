// The studio's page: no framework, no build step, nothing from elsewhere.

import * as compare from "./compare.js";
import * as draw from "./draw.js";
import * as inside from "./inside.js";
import * as runs from "./runs.js";
import { $, ask, model, say, shared } from "./service.js";

async function start() {
  try {
    shared.models = (await (await ask("v1/models")).json()).data;
    $("model").replaceChildren(...shared.models.map((each) => new Option(each.id)));
    if (shared.models.length) await pick();
    else await show("runs");
  } catch (error) {
    say(error.message);
  }
}

async function pick() {
  const { id, network, size, sampler, steps, classes } = model();
  $("about").textContent = `${network}, ${size}, ${sampler}, ${steps} steps`;
  const listed = classes ? await (await ask(`v1/classes?model=${encodeURIComponent(id)}`)).json() : { classes: [], labels: [] };
  [shared.classes, shared.labels] = [listed.classes, listed.labels];
  await draw.pick();
  inside.pick();
  compare.pick();
}

async function show(name) {
  for (const button of document.querySelectorAll("[data-view]")) {
    const here = button.dataset.view === name;
    here ? button.setAttribute("aria-current", "page") : button.removeAttribute("aria-current");
    $(`view-${button.dataset.view}`).hidden = !here;
  }
  $("model-row").hidden = $("about").hidden = name === "runs" || name === "compare";
  say("");
  runs.close();
  if (name === "runs") await runs.open();
}

for (const button of document.querySelectorAll("[data-view]"))
  button.addEventListener("click", () => show(button.dataset.view).catch((error) => say(error.message)));
$("model").addEventListener("change", () => pick().catch((error) => say(error.message)));
$("token").addEventListener("change", () => {
  sessionStorage.setItem("token", $("token").value);
  start();
});
for (const view of [inside, compare, runs]) view.connect();
await draw.connect();
await start();
