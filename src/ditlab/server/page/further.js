// Settings that have no field on the page. Those of a PNG file or of an earlier image are kept, shown, and sent with requests.

import { $, model, plain } from "./service.js";

const NAMES = ["schedule", "shift", "eta", "size", "guidance_rescale", "guidance_channels", "skip_layers", "skip_guidance", "skip_interval", "reuse", "reuse_error"];
let further = {};

// Keeps the settings of a request that the model does not have anyway.
export function keep(asked = {}) {
  const own = (name) => asked[name] === undefined || asked[name] === null || asked[name] === model()[name] || (name === "size" && asked.frames); // frames decide the size of clips
  further = Object.fromEntries(NAMES.filter((name) => !own(name)).map((name) => [name, asked[name]]));
  const words = Object.entries(further).map(([name, value]) => `${name.replaceAll("_", " ")} ${plain(value)}`);
  $("further").hidden = words.length === 0;
  $("further-text").textContent = `Also: ${words.join(", ")}`;
}

export const kept = () => further;

export const connect = () => $("further-none").addEventListener("click", () => keep());
