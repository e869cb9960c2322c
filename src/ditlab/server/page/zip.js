// A ZIP file of files that are compressed already (PKWARE's APPNOTE 6.3, method 0).

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

export function crc32(content) {
  let sum = 0xffffffff;
  for (const byte of content) sum = TABLE[(sum ^ byte) & 255] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

// A record: a signature, then [number of bytes, value] pairs, little endian.
function record(signature, fields) {
  const sizes = [4, ...fields.map(([size]) => size)];
  const content = new DataView(new ArrayBuffer(sizes.reduce((a, b) => a + b)));
  let at = 0;
  for (const [i, value] of [signature, ...fields.map(([, value]) => value)].entries()) {
    sizes[i] === 4 ? content.setUint32(at, value, true) : content.setUint16(at, value, true);
    at += sizes[i];
  }
  return content.buffer;
}

// `files` are [name, bytes] pairs; the names must differ.
export function zip(files) {
  const [parts, directory] = [[], []];
  let offset = 0;
  for (const [name, content] of files) {
    const text = new TextEncoder().encode(name);
    const DATE = 0x21; // 1 January 1980, so that equal images make equal files
    const about = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, DATE], [4, crc32(content)], [4, content.length], [4, content.length], [2, text.length], [2, 0]];
    const head = record(0x04034b50, about);
    directory.push(record(0x02014b50, [[2, 20], ...about, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), text);
    parts.push(head, text, content);
    offset += head.byteLength + text.length + content.length;
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const end = record(0x06054b50, [[2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
