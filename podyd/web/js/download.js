// Downloads. A link sends the cookie alone, which is half of the login; a script sends the rest.

import { raw } from "./api.js";
import { h } from "./dom.js";
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
    run(texts.work.downloading(link.download), () => saveByScript(link.href, link.download, cancel.signal), undefined, () => cancel.abort());
  });
}

/** Downloads with a script, which the browser keeps on its disk meanwhile. Raises Refused. */
export async function saveByScript(address, name, signal) {
  const response = await raw(address, signal);
  const file = URL.createObjectURL(await response.blob().catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error(texts.errors.cutOff);
  }));
  h("a", { href: file, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(file), KEPT_MS);
}
