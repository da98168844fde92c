// One GPU: its use, who has it, and what runs on it; a panel that follows the stream.

import { meter } from "./chart.js";
import { fill, h, refill, setText } from "./dom.js";
import { bytes, bytesOf, duration, moment, quantity, secondsUntil } from "./format.js";
import { texts } from "./texts.js";

const words = texts.cards;
const IDLE_SECONDS = 60;
// So many of who shares a GPU have room in a small panel.
const FEW = 2;

/** A panel for the GPU with this index. `update()` shows what the stream says now; `actions` are
 * elements below it; `isWhole`: it is the page of this GPU, which has its name above it; `isSmall`: it has
 * what there is room for among many. */
export class CardPanel {
  constructor({ index, live, actions = [], isWhole = false, isSmall = false }) {
    this.index = index;
    this.live = live;
    this.isWhole = isWhole;
    this.isSmall = isSmall;
    this.name = h("span", { class: "soft" });
    this.state = h("span");
    this.use = h("dl", { class: "facts" });
    this.holders = h("ul", { class: "holders" });
    this.problem = h("div");
    this.processes = h("ul", { class: "processes" });
    this.summary = h("summary", {});
    this.details = h("details", { open: isWhole }, this.summary, this.processes);
    const name = isWhole ? this.name : isSmall ? words.gpu(index) : h("a", { href: `#/cards/${index}` }, words.gpu(index));
    const heading = h("h2", {}, name, " ", this.state);
    // In a small one, what has no room is below.
    const parts = isSmall ? [heading, this.problem, this.holders, this.use, this.name]
      : [heading, !isWhole && this.name, this.problem, this.use, this.holders, this.details, h("div", { class: "buttons" }, actions)];
    this.element = h("article", { class: `panel gpu${isSmall ? " small" : ""}`, "aria-label": words.gpu(index) }, parts);
  }

  update() {
    const gpu = this.live.get(`gpu/${this.index}`);
    if (!gpu) return;
    const use = this.live.get(`use/${this.index}`) ?? {};
    setText(this.name, gpu.name);
    put(this.state, stateOf(gpu, use), ({ kind, text }) => h("span", { class: `badge ${kind}` }, text));
    put(this.problem, [gpu.problem, gpu.intruders.length > 0 && words.intruders(gpu.intruders)].filter(Boolean),
      (lines) => lines.map((line) => h("p", { class: "error" }, line)));
    refill(this.use, [...(this.isSmall ? few(gpu, use) : facts(gpu, use)), ...(this.isWhole ? identity(gpu) : [])].map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    this.holders.hidden = gpu.pods.length === 0;
    refill(this.holders, this.isSmall ? fewHolders(gpu.pods) : gpu.pods.map((holder) => h("li", {}, holderText(holder, this.live))));
    const processes = use.processes ?? [];
    this.details.hidden = processes.length === 0;
    setText(this.summary, words.processes(processes.length));
    put(this.processes, processes, (all) => all.map(processLine));
  }
}

/** Fills an element where its data has changed, so that nothing moves under the mouse. */
function put(element, data, make) {
  const now = JSON.stringify(data);
  if (element.shown === now) return;
  element.shown = now;
  fill(element, make(data));
}

/** What a GPU is to who looks for one. */
export function stateOf(gpu, use) {
  if (gpu.problem) return { kind: "bad", text: words.problem };
  if (gpu.pods.some((holder) => holder.exclusive)) return { kind: "warn", text: words.leased };
  if ((use.processes ?? []).length) return { kind: "warn", text: words.inUse };
  return { kind: "good", text: words.free, isFree: true };
}

function meters(gpu, use, memory) {
  const share = gpu.memory_total && Number.isFinite(use.memory_used) ? use.memory_used / gpu.memory_total : null;
  const known = use.utilisation !== null && use.utilisation !== undefined;
  return [
    [words.utilisation, meter({ share: known ? use.utilisation / 100 : null, label: words.ofGpu(words.utilisation, gpu.index), text: quantity(use.utilisation, "%") })],
    [words.memory, meter({ share, label: words.ofGpu(words.memory, gpu.index), text: memory })],
  ];
}

function facts(gpu, use) {
  return [
    ...meters(gpu, use, gpu.memory_total === null ? bytes(use.memory_used) : bytesOf(use.memory_used, gpu.memory_total)),
    [words.power, use.power === undefined || gpu.power_limit === null ? quantity(use.power, "W") : texts.of(quantity(use.power, "W"), quantity(gpu.power_limit, "W"))],
    [words.temperature, quantity(use.temperature, "°C")],
    // Between two steps of a program there is a moment without use.
    ...((use.idle ?? 0) < IDLE_SECONDS ? [] : [[words.idle, duration(use.idle)]]),
  ];
}

function few(gpu, use) {
  return [...meters(gpu, use, bytes(use.memory_used)), [words.heat, [quantity(use.temperature, "°C"), quantity(use.power, "W")].join(" · ")]];
}

function identity(gpu) {
  return [[words.uuid, h("code", {}, gpu.uuid || texts.none)], [words.pci, h("code", {}, gpu.pci)]];
}

/** Who has leased it, else who shares it; the name of an instance begins with its owner's. */
function fewHolders(pods) {
  const name = (holder) => h("strong", {}, h("bdi", {}, holder.pod));
  const lessee = pods.find((holder) => holder.exclusive);
  if (lessee) return h("li", {}, name(lessee), ` ${words.until} `, moment(lessee.until));
  const shown = pods.slice(0, FEW).flatMap((holder, at) => [at > 0 && ", ", name(holder)]);
  return pods.length > 0 && h("li", {}, shown, pods.length > FEW && ` ${words.more(pods.length - FEW)}`, ` ${words.share(pods.length)}`);
}

function holderText(holder, live) {
  const who = [h("strong", {}, h("bdi", {}, holder.pod)), ` (${holder.owner})`];
  // Who has leased it may get it only in a moment, when what others have on it is ended.
  if (!holder.exclusive) return [...who, ` ${holder.attached ? words.shared : words.onlyProcess}`];
  const left = secondsUntil(holder.until, live);
  return [...who, ` ${words.until} `, moment(holder.until), left > 0 ? ` (${words.left(duration(left))})` : ""];
}

function processLine(process) {
  return h("li", {}, h("code", {}, h("bdi", {}, process.cmd)), h("span", { class: "soft" }, " ",
    [process.pod || words.host, bytes(process.gpu_memory_used), process.uptime !== null && words.since(duration(process.uptime)),
      process.idle >= IDLE_SECONDS && words.idleFor(duration(process.idle))].filter(Boolean).join(" · ")));
}
