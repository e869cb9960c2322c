// The settings that ditlab writes into PNG files: a tEXt or iTXt chunk with the keyword "ditlab", which holds JSON.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const LARGEST = 1 << 20; // bytes of a chunk with settings

// The settings in a file; null if it is no PNG, or holds none.
export async function read(file) {
  const content = new Uint8Array(await file.arrayBuffer());
  if (SIGNATURE.some((value, i) => content[i] !== value)) return null;
  const view = new DataView(content.buffer);
  for (let at = 8; at + 12 <= content.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...content.subarray(at + 4, at + 8));
    const text = (kind === "tEXt" || kind === "iTXt") && length < LARGEST && textOf(kind, content.subarray(at + 8, at + 8 + length));
    if (text) return parsed(text);
    at += 12 + length;
  }
  return null;
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
