// Given frames of clips, and the length of clips that are continued beyond that of the model.

import { contentOf } from "./init-image.js";
import { $, element, model, ofClips, sides, source, speaker } from "./service.js";

const say = speaker("images");
const PLACES = { "given-first": "0", "given-last": "-1" }; // field -> number of the frame
let frames = {}; // number -> base64 of an image of the size of the model

export function pick() {
  $("given-set").hidden = !(ofClips() && model().given);
  $("frames").placeholder = model().size.split("x")[0];
  none();
}

function none() {
  frames = {};
  for (const id of Object.keys(PLACES)) $(id).value = "";
  $("frames").value = "";
  show();
}

// Resizes an image and crops it to the middle, as data are in training.
export async function load(id, file) {
  const image = new Image();
  image.src = source(await contentOf(file));
  await image.decode().catch(() => {
    throw new Error(`${file.name} is not an image that this browser can read`);
  });
  const [width, height] = sides();
  const canvas = element("canvas", { width, height });
  const scale = Math.max(width / image.width, height / image.height);
  const [w, h] = [image.width * scale, image.height * scale];
  canvas.getContext("2d").drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
  frames[PLACES[id]] = canvas.toDataURL("image/png").split(",")[1];
  $("given-set").open = true;
  show();
}

function show() {
  for (const [id, number] of Object.entries(PLACES)) {
    $(`${id}-image`).hidden = !frames[number];
    if (frames[number]) $(`${id}-image`).src = source(frames[number]);
  }
  $("given-clear").disabled = Object.keys(frames).length === 0;
}

export function started() {
  const length = $("frames").value === "" ? undefined : Number($("frames").value);
  return { given: Object.keys(frames).length ? { ...frames } : undefined, frames: length };
}

export function resume(asked) {
  none();
  frames = { ...asked.given };
  $("frames").value = asked.frames ?? "";
  show();
}

export function connect() {
  for (const id of Object.keys(PLACES))
    $(id).addEventListener("change", () => {
      const [file] = $(id).files;
      if (file) load(id, file).catch(say);
    });
  $("given-clear").addEventListener("click", none);
}
