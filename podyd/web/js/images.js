// The images that a member has made.

import { get, post } from "./api.js";
import { button } from "./controls.js";
import { confirm } from "./dialog.js";
import { fill, h } from "./dom.js";
import { bytes, moment } from "./format.js";
import { written } from "./names.js";
import { Table } from "./table.js";
import { texts } from "./texts.js";
import { run } from "./work.js";

const words = texts.images;

/** A section with them, hidden while there are none. */
export function ownImages({ live, signal }) {
  const error = h("p", { class: "error", role: "alert" });
  const table = new Table({
    caption: words.caption, empty: "", key: (image) => image.name,
    columns: [
      { title: words.columns.name, header: true, class: "title", cell: (image) => h("bdi", {}, written(image.name)) },
      { title: words.columns.description, cell: (image) => h("bdi", {}, written(image.description)) },
      { title: words.columns.size, class: "number", cell: (image) => bytes(image.size) },
      { title: words.columns.created, cell: (image) => moment(image.created) },
      { title: words.columns.actions, once: true, cell: (image) =>
        button(words.delete, () => remove(image().name), { kind: "danger", name: words.deleteImage(image().name) }) },
    ],
  });
  const element = h("section", { hidden: true, "aria-labelledby": "own-images" }, h("h2", { id: "own-images" }, words.title), error, table.element);

  async function refresh() {
    if (signal.aborted) return;
    try {
      const names = await get("host/images", {}, { signal, quiet: true });
      const all = await Promise.all(names.map((image) => get("image/inspect", { image }, { signal, quiet: true }).catch(() => null)));
      // A member sees nobody's but their own and an admin's, which has no owner.
      table.update(all.filter((info) => info?.owner));
      element.hidden = table.rows.size === 0 && !error.textContent;
    } catch { /* The page says already that podyd or the engine does not answer. */ }
  }

  async function remove(image) {
    const sure = await confirm({ title: words.deleteTitle(image), text: words.deleteText, action: words.delete, danger: true });
    if (!sure) return;
    fill(error);
    await run(words.deleting(image), () => post("image/delete", { image }), (refused) => {
      fill(error, refused.message);
      return error.isConnected;
    });
    await refresh();
  }

  let making = 0;
  live.on(["work/"], () => {
    const now = live.all("work/").filter(([, work]) => work.operation === "/pod/commit").length;
    if (now < making) refresh();
    making = now;
  }, signal);
  live.onReturn(refresh, signal);
  refresh();
  return element;
}
