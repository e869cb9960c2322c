// How an image of the history is generated elsewhere: in Python, on the command line, with curl.

import { shared } from "./service.js";

const OPTIONS = ["sampler", "steps", "guidance", "guidance_interval", "guidance_channels", "guidance_rescale", "skip_layers", "skip_guidance", "skip_interval", "schedule", "shift", "eta", "reuse", "reuse_error"];
const LONGEST = 100_000; // characters of a body as an argument, of which shells allow about 130,000
const FRAMES = { 0: "first.png", "-1": "last.png" }; // files of given frames, by their numbers
const between = (value) => value !== null && typeof value === "object";
// The folder or hub id of a model, if the service names it; otherwise only its name.
const pathOf = ({ model }) => shared.models.find(({ id }) => id === model)?.path;
// Python and the command line take the height first; null if the request named no size.
const sizeOf = ({ settings, asked }) => (asked.size ? settings.size.split("x").toSpliced(-2, 2, ...settings.size.split("x").slice(-2).reverse()) : null);
const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

function pythonValue(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `(${value.map(pythonValue).join(", ")}${value.length === 1 ? "," : ""})`;
  if (between(value)) return `ditlab.between(${pythonValue(value.first)}, ${pythonValue(value.second)}, 101)[${Math.round(100 * value.weight)}]`;
  return JSON.stringify(value);
}

// The files that Python and the command read: their names and their contents.
export function files({ asked }) {
  const given = Object.entries(asked.given ?? {}).map(([number, content]) => [FRAMES[number] ?? `frame${number}.png`, content]);
  return [["init.png", asked.image], ["mask.png", asked.mask], ...given].filter(([, content]) => content);
}

const options = (settings) => OPTIONS.filter((name) => settings[name] !== undefined && settings[name] !== null);
const shows = (settings) => settings.prompt ?? settings.label ?? null;

export function python(entry) {
  const { settings, asked } = entry;
  const labels = "prompt" in settings ? pythonValue(settings.prompt) : pythonValue(settings.label);
  const given = options(settings).map((name) => `${name}=${pythonValue(settings[name])}`);
  if (sizeOf(entry)) given.push(`size=(${sizeOf(entry).join(", ")})`);
  if (settings.negative_prompt) given.unshift(`negative_prompt=${pythonValue(settings.negative_prompt)}`);
  if (asked.image) given.push('image=Image.open("init.png")', ...(asked.mask ? ['mask=Image.open("mask.png")', `resample=${settings.resample}`] : []), `strength=${settings.strength}`);
  const frames = Object.keys(asked.given ?? {}).map((number) => `${number}: Image.open("${FRAMES[number] ?? `frame${number}.png`}")`);
  if (frames.length) given.push(`given={${frames.join(", ")}}`);
  for (const key of ["frames", "overlap"]) if (settings[key]) given.push(`${key}=${settings[key]}`);
  const call = [`[${labels}]`, `seeds=[${pythonValue(settings.seed)}]`, ...given].join(", ");
  return `import ditlab\n${frames.length || asked.image ? "from PIL import Image\n" : ""}\npipe = ditlab.load(${pythonValue(pathOf(settings) ?? settings.model)})${pathOf(settings) ? "" : "  # the folder of the model"}\npipe(${call}).save("image")\n`;
}

export function command(entry, file) {
  const { settings, asked } = entry;
  // A PNG holds all settings, also those of an interpolation, which have no options of their own.
  if (between(shows(settings)) || between(settings.seed)) return `ditlab sample ${quoted(pathOf(settings) ?? settings.model)} --like ${quoted(file)}\n`;
  const words = ["ditlab sample", quoted(pathOf(settings) ?? settings.model)];
  if ("prompt" in settings) words.push("--prompts", quoted(settings.prompt));
  else if (settings.label !== null) words.push("--labels", typeof settings.label === "number" ? `index:${settings.label}` : quoted(settings.label));
  if (settings.negative_prompt) words.push("--negative-prompt", quoted(settings.negative_prompt));
  words.push("--seeds", settings.seed);
  for (const name of options(settings)) words.push(`--${name.replaceAll("_", "-")}`, [settings[name]].flat().join(" "));
  if (sizeOf(entry)) words.push("--size", sizeOf(entry).join("x"));
  if (asked.image) words.push("--image init.png", ...(asked.mask ? [`--mask mask.png --resample ${settings.resample}`] : []), `--strength ${settings.strength}`);
  const frames = Object.keys(asked.given ?? {}).map((number) => `${number}=${FRAMES[number] ?? `frame${number}.png`}`);
  if (frames.length) words.push("--given", ...frames);
  for (const key of ["frames", "overlap"]) if (settings[key]) words.push(`--${key}`, settings[key]);
  return `${words.join(" ")}\n`;
}

export function curl({ asked }) {
  // The whole request: an image alone has no request of its own where it is one of an interpolation.
  const body = Object.fromEntries(Object.entries({ ...asked, stream: undefined, partial_images: undefined }).filter(([, value]) => value !== undefined));
  const token = sessionStorage.getItem("token") ? ` -H "Authorization: Bearer $DITLAB_TOKEN"` : "";
  const start = `curl ${location.origin}/v1/images/generations -H 'Content-Type: application/json'${token}`;
  const text = JSON.stringify(body);
  return text.length < LONGEST ? `${start} -d ${quoted(text)}\n` : `${start} --data-binary @- <<'END'\n${text}\nEND\n`;
}
