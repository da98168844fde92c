// My pods, and a pod's own page at #/pods/<name>/<tab>.

import { meter } from "../chart.js";
import { h, setText } from "../dom.js";
import { bytes, bytesOf, duration, moment } from "../format.js";
import { ownImages } from "../images.js";
import { written } from "../names.js";
import { badge, left, onPods, podsOf, powerButtons, quotaOf, stateOf } from "../pods.js";
import { Table } from "../table.js";
import { texts } from "../texts.js";

const words = texts.pods;
const TICK_MS = 5000;
// With so many, a filter is of use.
const MANY = 8;

export default async function pods(context) {
  if (context.path.length && context.path[0]) {
    const { default: pod } = await import("./pod.js");
    return pod(context);
  }
  return list(context);
}

function list({ live, user, signal }) {
  const powers = new Map();
  const filter = h("input", { type: "search", class: "filter", "aria-label": words.filter, placeholder: words.filter });
  const filtering = h("p", { hidden: true }, filter);
  const sum = h("p", { class: "soft" });
  const table = new Table({
    caption: words.caption,
    key: (pod) => pod.name,
    empty: "",
    columns: [
      { title: words.columns.pod, header: true, once: true, cell: (pod) => h("a", { href: `#/pods/${pod().ins}` }, pod().ins) },
      { title: words.columns.state, cell: (pod) => badge(stateOf(live, pod)) },
      { title: words.columns.image, cell: (pod) => h("bdi", {}, written(pod.image)) },
      { title: words.columns.gpus, cell: (pod) => gpus(live, pod) },
      { title: words.columns.memory, cell: (pod) => memory(live, pod) },
      { title: words.columns.cpu, cell: (pod) => cpu(live, pod) },
      { title: words.columns.disk, cell: disk },
      { title: words.columns.ports, class: "ports", cell: (pod) => ports(pod) },
      { title: words.columns.up, class: "up", cell: (pod) => uptime(live, pod) },
      {
        title: words.columns.actions, once: true, cell: (pod) => {
          const buttons = powerButtons(live, pod);
          powers.set(pod().name, buttons);
          return buttons.element;
        },
      },
    ],
  });
  const create = h("a", { class: "button primary", href: "#/new" }, words.create);
  const waiting = h("p", { class: "soft" }, texts.live.connecting);
  const none = h("div", { class: "panel none", hidden: true }, h("h2", {}, words.none), h("p", {}, words.noneText),
    h("p", {}, h("a", { class: "button primary", href: "#/new" }, words.create)));
  let quota = null;

  function update() {
    const all = podsOf(live, user);
    const problem = live.get("host")?.problem;
    const isKnown = live.get("me") !== undefined && (all.length > 0 || !problem);
    waiting.hidden = isKnown;
    setText(waiting, problem ? words.unknown : texts.live.connecting);
    none.hidden = !isKnown || all.length > 0;
    create.hidden = !none.hidden;
    table.element.hidden = all.length === 0;
    filtering.hidden = all.length <= MANY;
    const wanted = filtering.hidden ? "" : filter.value.trim().toLowerCase();
    const shown = all.filter((pod) =>
      [pod.ins, pod.image, stateOf(live, pod).text].some((text) => text.toLowerCase().includes(wanted)));
    table.update(shown);
    setText(table.empty, words.noMatch(filter.value));
    for (const pod of shown) powers.get(pod.name).update();
    if (isKnown && all.length) setText(sum, words.sum(all, quota && left(quota, all)));
    else setText(sum, "");
  }

  filter.addEventListener("input", update);
  onPods(live, update, signal);
  const ticking = setInterval(update, TICK_MS);
  quotaOf({ live, signal }).then((limits) => {
    quota = limits;
    update();
  }).catch(() => {});
  const element = h("div", {},
    h("div", { class: "between" }, h("h1", {}, words.title), create),
    sum, filtering, waiting, none, table.element, ownImages({ live, signal }));
  return { title: words.title, element, close: () => clearInterval(ticking) };
}

function gpus(live, pod) {
  if (pod.gpu_ids.length === 0) return texts.none;
  return pod.gpu_ids.map((index) => {
    const lease = live.get(`gpu/${index}`)?.pods.find((holder) => holder.pod === pod.name && holder.exclusive);
    return h("div", {}, h("a", { href: `#/cards/${index}` }, words.gpu(index)),
      lease && h("span", { class: "soft" }, ` ${words.until} `, moment(lease.until)));
  });
}

/** Meters of a pod's use, also for its own page. They have their place before it is known, so that
 * nothing moves when it is. */
export function memory(live, pod) {
  const used = live.get(`load/${pod.name}`)?.memory_used ?? null;
  if (pod.status !== "running") return texts.none;
  return meter({ share: pod.memory_limit > 0 ? (used ?? NaN) / pod.memory_limit : null, label: words.columns.memory,
    text: pod.memory_limit > 0 ? bytesOf(used, pod.memory_limit) : bytes(used) });
}

export function cpu(live, pod) {
  const used = live.get(`load/${pod.name}`)?.cpu ?? null;
  if (pod.status !== "running") return texts.none;
  const shown = used?.toFixed(2) ?? texts.none;
  return meter({ share: pod.cpu_limit > 0 ? (used ?? NaN) / pod.cpu_limit : null, label: words.columns.cpu,
    text: pod.cpu_limit > 0 ? texts.of(shown, pod.cpu_limit) : shown });
}

export function disk(pod) {
  const isLimited = pod.disk_limit !== null && pod.disk_limit > 0;
  return meter({ share: isLimited ? (pod.disk_used ?? NaN) / pod.disk_limit : null, label: words.columns.disk,
    text: isLimited ? bytesOf(pod.disk_used, pod.disk_limit) : bytes(pod.disk_used) });
}

/** How long a pod runs. */
export function uptime(live, pod) {
  if (pod.status === "stopped" || !pod.started) return texts.none;
  const seconds = (live.now() - Date.parse(pod.started)) / 1000;
  return h("time", { datetime: pod.started, title: moment(pod.started).title }, duration(seconds < 60 ? seconds : seconds - (seconds % 60)));
}

function ports(pod) {
  if (pod.port_mapping.length === 0) return texts.none;
  return pod.port_mapping.map((mapping) => {
    const [host, inner] = mapping.split(":");
    return h("div", {}, words.mapping(host, inner));
  });
}
