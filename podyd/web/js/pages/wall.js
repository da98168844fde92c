// The GPUs for a display on the wall: large, all in one window, nothing to click; also without a login
// where podyd.yaml allows it.

import { CardPanel, stateOf } from "../card.js";
import { fill, h, refill, setText } from "../dom.js";
import { clock, moment } from "../format.js";
import { turns } from "../queue.js";
import { texts } from "../texts.js";

const words = texts.cards;
// So many of those who wait have room below the GPUs.
const WAITING = 3;

export default function wall({ live, signal, rename }) {
  const grid = h("div", { class: "grid" });
  const line = h("ol", { class: "line" });
  const heading = h("h1", {}, texts.nav.wall);
  const free = h("strong");
  const time = h("span");
  const empty = h("p", { class: "empty" }, words.empty);
  const panels = new Map();
  let title = texts.nav.wall;
  live.on(["gpu/", "use/", "host"], () => {
    const gpus = live.all("gpu/");
    const indices = gpus.map(([index]) => index);
    if (indices.join() !== [...panels.keys()].join()) {
      panels.clear();
      for (const index of indices) panels.set(index, new CardPanel({ index, live, isSmall: true }));
      fill(grid, [...panels.values()].map((panel) => panel.element));
      const columns = Math.ceil(Math.sqrt(indices.length * 2)) || 1;
      grid.style.setProperty("--columns", columns);
      grid.style.setProperty("--rows", Math.ceil(indices.length / columns) || 1);
    }
    for (const panel of panels.values()) panel.update();
    empty.hidden = gpus.length > 0;
    const host = live.get("host");
    if (host) setText(heading, words.on(host.name));
    setText(free, gpus.length ? words.freeOf(gpus.filter(([index, gpu]) => stateOf(gpu, live.get(`use/${index}`) ?? {}).isFree).length, gpus.length) : "");
    title = [heading.textContent, free.textContent].filter(Boolean).join(", ");
    rename(title);
  }, signal);
  live.on(["queue", "gpu/", "use/", "host"], () => {
    const entries = live.get("queue") ?? [];
    const when = turns(live);
    line.hidden = entries.length === 0;
    refill(line, entries.slice(0, WAITING).map((entry, at) => h("li", {}, h("strong", {}, h("bdi", {}, entry.pod)), ` (${entry.owner}) ${words.wantsGpus(words.choice(entry.gpus))}`,
      when[at].time !== null && [` ${words.about} `, moment(new Date(when[at].time).toISOString())])),
    entries.length > WAITING && h("li", { class: "more" }, words.more(entries.length - WAITING)));
  }, signal);
  // It stands still where nothing is live.
  const tick = () => live.isLive && refill(time, moment(new Date(clock()).toISOString()));
  const ticking = setInterval(tick, 1000);
  signal.addEventListener("abort", () => clearInterval(ticking));
  tick();
  return { title, element: h("div", { class: "display" }, h("div", { class: "between" }, heading, free, time), empty, grid, line) };
}
