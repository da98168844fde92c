// One GPU: its use, who has it, and what runs on it; a panel that follows the stream.

import { meter } from "./chart.js";
import { fill, h, refill, setText } from "./dom.js";
import { bytes, duration, moment, quantity, secondsUntil } from "./format.js";
import { texts } from "./texts.js";

const words = texts.cards;
const IDLE_SECONDS = 60;

/** A panel for the GPU with this index. `update()` shows what the stream says now; `actions` are
 * elements below it; `isWhole`: it is the page of this GPU, which has its name above it. */
export class CardPanel {
  constructor({ index, live, actions = [], isWhole = false }) {
    this.index = index;
    this.live = live;
    this.isWhole = isWhole;
    this.name = h("span", { class: "soft" });
    this.state = h("span");
    this.use = h("dl", { class: "facts" });
    this.holders = h("ul", { class: "holders" });
    this.problem = h("div");
    this.processes = h("ul", { class: "processes" });
    this.summary = h("summary", {});
    this.details = h("details", { open: isWhole }, this.summary, this.processes);
    const heading = isWhole ? h("h2", {}, this.name, " ", this.state)
      : [h("h2", {}, h("a", { href: `#/cards/${index}` }, words.gpu(index)), " ", this.state), this.name];
    this.element = h("article", { class: "panel gpu", "aria-label": words.gpu(index) }, heading,
      this.problem, this.use, this.holders, this.details, h("div", { class: "buttons" }, actions));
  }

  update() {
    const gpu = this.live.get(`gpu/${this.index}`);
    if (!gpu) return;
    const use = this.live.get(`use/${this.index}`) ?? {};
    setText(this.name, gpu.name);
    put(this.state, stateOf(gpu, use), ({ kind, text }) => h("span", { class: `badge ${kind}` }, text));
    put(this.problem, [gpu.problem, gpu.intruders.length > 0 && words.intruders(gpu.intruders)].filter(Boolean),
      (lines) => lines.map((line) => h("p", { class: "error" }, line)));
    refill(this.use, [...facts(gpu, use), ...(this.isWhole ? identity(gpu) : [])].map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    this.holders.hidden = gpu.pods.length === 0;
    put(this.holders, gpu.pods, (pods) => pods.map((holder) => h("li", {}, holderText(holder, this.live))));
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

function facts(gpu, use) {
  const share = gpu.memory_total && Number.isFinite(use.memory_used) ? use.memory_used / gpu.memory_total : null;
  const known = use.utilisation !== null && use.utilisation !== undefined;
  return [
    [words.utilisation, meter({ share: known ? use.utilisation / 100 : null, label: words.ofGpu(words.utilisation, gpu.index), text: quantity(use.utilisation, "%") })],
    [words.memory, meter({ share, label: words.ofGpu(words.memory, gpu.index), text: ofLimit(use.memory_used, gpu.memory_total, bytes) })],
    [words.power, ofLimit(use.power, gpu.power_limit, (watts) => quantity(watts, "W"))],
    [words.temperature, quantity(use.temperature, "°C")],
    // Between two steps of a program there is a moment without use.
    ...((use.idle ?? 0) < IDLE_SECONDS ? [] : [[words.idle, duration(use.idle)]]),
  ];
}

function identity(gpu) {
  return [[words.uuid, h("code", {}, gpu.uuid || texts.none)], [words.pci, h("code", {}, gpu.pci)]];
}

function ofLimit(value, limit, write) {
  return limit === null || limit === undefined ? write(value) : texts.of(write(value), write(limit));
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
