// Downloads. A link sends the cookie alone, which is half of the login; a script sends the rest.

import { raw } from "./api.js";
import { h } from "./dom.js";
import { bytes, bytesOf } from "./format.js";
import { texts } from "./texts.js";
import { run } from "./work.js";

// The browser has begun to save it long before.
const KEPT_MS = 60_000;

/** From now on a click on a link that downloads from podyd works. */
export function downloadByScript() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[download]");
    if (!link || link.protocol === "blob:" || event.defaultPrevented) return;
    event.preventDefault();
    const cancel = new AbortController();
    run(texts.work.downloading(link.download), (progress) => saveByScript(link.href, link.download, progress, cancel.signal), undefined, () => cancel.abort());
  });
}

/** Downloads with a script, which the browser keeps on its disk meanwhile; `progress` as of `run`.
 * Raises Refused. */
export async function saveByScript(address, name, progress, signal) {
  const response = await raw(address, signal);
  // Nothing tells how large a folder's tar file will be.
  const size = Number(response.headers.get("Content-Length"));
  let come = 0;
  const counter = new TransformStream({ transform(piece, onward) {
    come += piece.length;
    progress(size ? { text: bytesOf(come, size), share: come / size } : { text: bytes(come) });
    onward.enqueue(piece);
  } });
  // Whatever it is, it is no page of podyd's.
  const headers = { "Content-Type": "application/octet-stream" };
  const file = URL.createObjectURL(await new Response(response.body.pipeThrough(counter), { headers }).blob().catch(() => {
    signal.throwIfAborted();
    throw new Error(texts.errors.cutOff);
  }));
  h("a", { href: file, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(file), KEPT_MS);
}
