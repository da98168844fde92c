// A tar file of files that the browser has: a Blob, of which nothing is read before it is sent. It
// is GNU's format, which the tar of busybox reads, too.

const BLOCK = 512;
const NAME_BYTES = 100;
// What is larger does not fit into a header's eleven octal digits.
const OCTAL_SIZE = 8 ** 11;
const FILE = "0", FOLDER = "5", LONG_NAME = "L";
const utf8 = new TextEncoder();

/** `entries`: [{path: "folder/name", file}]; one without a file is a folder. */
export function tar(entries) {
  return new Blob([...entries.flatMap(member), new Uint8Array(2 * BLOCK)]);
}

function member({ path, file }) {
  const name = utf8.encode(file ? path : `${path}/`);
  const parts = [];
  if (name.length > NAME_BYTES) {
    // It ends with a NUL.
    parts.push(header(utf8.encode("././@LongLink"), LONG_NAME, name.length + 1, 0), name, new Uint8Array(1), padding(name.length + 1));
  }
  parts.push(header(name.slice(0, NAME_BYTES), file ? FILE : FOLDER, file?.size ?? 0, file?.lastModified ?? Date.now()));
  if (file) parts.push(file, padding(file.size));
  return parts;
}

function padding(size) {
  return new Uint8Array((BLOCK - (size % BLOCK)) % BLOCK);
}

function header(name, type, size, modified) {
  const block = new Uint8Array(BLOCK);
  const put = (at, text) => block.set(utf8.encode(text), at);
  const octal = (at, digits, value) => put(at, value.toString(8).padStart(digits, "0"));
  block.set(name);
  octal(100, 7, type === FOLDER ? 0o755 : 0o644);
  octal(108, 7, 0);
  octal(116, 7, 0);
  if (size < OCTAL_SIZE) {
    octal(124, 11, size);
  } else {
    block[124] = 0x80;
    new DataView(block.buffer).setBigUint64(128, BigInt(size));
  }
  octal(136, 11, Math.max(0, Math.floor(modified / 1000)));
  put(156, type);
  put(257, "ustar  ");
  // The sum is that of the header with spaces in its place.
  put(148, "        ");
  const sum = block.reduce((total, byte) => total + byte, 0);
  put(148, `${sum.toString(8).padStart(6, "0")}\0`);
  return block;
}
