// The chunks of PNG files, and the settings in them: a tEXt or iTXt chunk with the keyword "ditlab", which holds JSON.

import { crc32 } from "./zip.js";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const LARGEST = 1 << 20; // bytes of a chunk with settings

// The settings in a file; null if it is no PNG, or holds none.
export async function read(file) {
  for (const { kind, data } of chunks(new Uint8Array(await file.arrayBuffer()))) {
    const text = (kind === "tEXt" || kind === "iTXt") && data.length < LARGEST && textOf(kind, data);
    if (text) return parsed(text);
  }
  return null;
}

// The chunks of a file: kind, data, and the whole chunk with its length and sum; none if it is no PNG.
export function* chunks(content) {
  if (SIGNATURE.some((value, i) => content[i] !== value)) return;
  const view = new DataView(content.buffer, content.byteOffset);
  for (let at = 8; at + 12 <= content.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...content.subarray(at + 4, at + 8));
    yield { kind, data: content.subarray(at + 8, at + 8 + length), whole: content.subarray(at, at + 12 + length) };
    at += 12 + length;
  }
}

export function animated(content) {
  for (const { kind } of chunks(content)) {
    if (kind === "acTL") return true;
    if (kind === "IDAT") return false;
  }
  return false;
}

// A chunk of this kind with these data.
export function record(kind, data) {
  const whole = new Uint8Array(12 + data.length);
  const view = new DataView(whole.buffer);
  view.setUint32(0, data.length);
  whole.set(new TextEncoder().encode(kind), 4);
  whole.set(data, 8);
  view.setUint32(8 + data.length, crc32(whole.subarray(4, 8 + data.length)));
  return whole;
}

function textOf(kind, chunk) {
  const end = chunk.indexOf(0);
  if (new TextDecoder("latin1").decode(chunk.subarray(0, end)) !== "ditlab") return null;
  if (kind === "tEXt") return new TextDecoder("latin1").decode(chunk.subarray(end + 1));
  if (chunk[end + 1]) return null; // compressed, which ditlab never writes
  const language = chunk.indexOf(0, end + 3);
  return new TextDecoder().decode(chunk.subarray(chunk.indexOf(0, language + 1) + 1));
}

function parsed(text) {
  try {
    const settings = JSON.parse(text);
    return settings && typeof settings === "object" ? settings : null;
  } catch {
    return null;
  }
}
