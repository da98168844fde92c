// The GPUs for a display on the wall: large, nothing to click, also without a login where podyd.yaml
// allows it.

import { CardPanel } from "../card.js";
import { fill, h } from "../dom.js";
import { moment } from "../format.js";
import { turns } from "../queue.js";
import { texts } from "../texts.js";

const words = texts.cards;

export default function wall({ live, signal }) {
  const grid = h("div", { class: "grid" });
  const line = h("ol", { class: "line" });
  const lineTitle = h("h2", {}, words.queue);
  const heading = h("h1", {}, texts.nav.cards);
  const panels = new Map();
  live.on(["gpu/", "use/", "queue", "host"], () => {
    const indices = live.all("gpu/").map(([index]) => index);
    if (indices.join() !== [...panels.keys()].join()) {
      panels.clear();
      for (const index of indices) panels.set(index, new CardPanel({ index, live }));
      fill(grid, [...panels.values()].map((panel) => panel.element));
    }
    for (const panel of panels.values()) panel.update();
    const host = live.get("host");
    if (host) fill(heading, words.on(host.name));
    const entries = live.get("queue") ?? [];
    const when = turns(live);
    lineTitle.hidden = entries.length === 0;
    fill(line, entries.map((entry, at) => h("li", {}, h("strong", {}, h("bdi", {}, entry.pod)), ` (${entry.owner}) ${words.wantsGpus(words.choice(entry.gpus))}`,
      when[at].time !== null && [` ${words.about} `, moment(new Date(when[at].time).toISOString())])));
  }, signal);
  return { title: texts.nav.wall, element: h("div", {}, heading, grid, lineTitle, line) };
}
