// All GPUs, live; leases and the queue for them.

import { post } from "../api.js";
import { CardPanel } from "../card.js";
import { field } from "../controls.js";
import { form } from "../dialog.js";
import { fill, h } from "../dom.js";
import { moment, quantity } from "../format.js";
import { history, ofGpu } from "../history.js";
import { turns } from "../queue.js";
import { Table } from "../table.js";
import { texts } from "../texts.js";
import { run } from "../work.js";

const words = texts.cards;

export default function cards(context) {
  return context.path[0] ? one(context, context.path[0]) : all(context);
}

function all({ live, user, signal }) {
  const grid = h("div", { class: "grid" });
  const empty = h("p", { class: "empty" }, words.empty);
  const panels = new Map();
  const line = queue({ live, user });
  live.on(["gpu/", "use/"], () => {
    const indices = live.all("gpu/").map(([index]) => index);
    for (const index of indices) {
      if (!panels.has(index)) panels.set(index, new CardPanel({ index, live, actions: actions({ index, live, user, signal }) }));
    }
    for (const index of panels.keys()) {
      if (!indices.includes(index)) panels.delete(index);
    }
    const elements = [...panels.values()].map((panel) => panel.element);
    if (elements.some((element, at) => grid.children[at] !== element) || grid.children.length !== elements.length) fill(grid, elements);
    for (const panel of panels.values()) panel.update();
    empty.hidden = panels.size > 0;
  }, signal);
  live.on(["queue", "gpu/", "pod/"], line.update, signal);
  const lease = h("button", { type: "button", class: "primary", onclick: () => askLease({ live, user }) }, words.lease);
  return { title: texts.nav.cards, element: h("div", {}, h("h1", {}, texts.nav.cards), h("div", { class: "buttons" }, lease), empty, grid,
    h("h2", { id: "queue" }, words.queue), line.element) };
}

function one({ live, user, signal }, index) {
  const panel = new CardPanel({ index, live, actions: actions({ index, live, user, signal }) });
  panel.details.open = true;
  const missing = h("p", { class: "error" }, words.noGpu(index));
  const curves = history({ title: words.history, signal, load: (span, ended) => ofGpu(index, live.get(`gpu/${index}`))(span, ended) });
  live.on(["gpu/", "use/"], () => {
    const isThere = live.get(`gpu/${index}`) !== undefined;
    panel.element.hidden = curves.hidden = !isThere;
    missing.hidden = isThere;
    panel.update();
  }, signal);
  return { title: words.gpu(index), element: h("div", {}, h("p", {}, h("a", { href: "#/cards" }, words.all)), h("h1", {}, words.gpu(index)), missing, panel.element, curves) };
}

/** The caller's pods, by name. */
function pods(live, user) {
  return live.all("pod/").map(([, pod]) => pod).filter((pod) => pod.owner === user.name);
}

function leaseOf(live, user, index) {
  return live.get(`gpu/${index}`)?.pods.find((holder) => holder.exclusive && holder.owner === user.name);
}

/** The buttons of a GPU: extend and release for who has leased it, else lease. */
function actions({ index, live, user, signal }) {
  if (user === null) return [];
  const lease = h("button", { type: "button", onclick: () => askLease({ live, user, gpus: `${index},` }) }, words.leaseThis);
  const extend = h("button", { type: "button", onclick: () => askExtend({ live, user, index }) }, words.extend);
  const release = h("button", { type: "button", onclick: () => askRelease({ live, user, index }) }, words.release);
  live.on([`gpu/${index}`], () => {
    const isMine = leaseOf(live, user, index) !== undefined;
    lease.hidden = isMine;
    extend.hidden = release.hidden = !isMine;
  }, signal);
  return [lease, extend, release];
}

function ins(live, name) {
  return live.get(`pod/${name}`)?.ins ?? name;
}

function askLease({ live, user, gpus = "1" }) {
  const mine = pods(live, user);
  const pod = h("select", { required: true }, mine.map((item) => h("option", { value: item.ins }, item.ins)));
  const which = h("input", { required: true, value: gpus, autocomplete: "off" });
  const hours = hoursField("8");
  const wait = h("input", { type: "checkbox", checked: true });
  const fields = mine.length === 0
    ? [h("p", {}, words.needsPod), h("p", {}, h("a", { href: "#/new" }, words.newPod))]
    : [field(words.pod, pod).element, field(words.which, which, words.whichHint).element, field(words.hours, hours).element,
      h("p", {}, h("label", {}, wait, " ", words.wait))];
  form({ title: words.leaseTitle, fields, action: words.leaseAction, submit: async () => {
    if (mine.length === 0) throw new Error(words.needsPod);
    const answer = await post(wait.checked ? "gpu/queue" : "gpu/lease", { ins: pod.value, gpus: which.value, hours: hours.value });
    run(words.leaseFor(pod.value), async () => answer);
  } });
}

function askExtend({ live, user, index }) {
  const lease = leaseOf(live, user, index);
  const hours = hoursField("8");
  form({ title: words.extendTitle(index), fields: [h("p", {}, words.until, " ", moment(lease.until)), field(words.hoursFromNow, hours, words.neverShorter).element],
    action: words.extendAction, submit: async () => {
      const answer = await post("gpu/lease", { ins: ins(live, lease.pod), gpus: `${index},`, hours: hours.value });
      run(words.extendTitle(index), async () => answer);
    } });
}

function askRelease({ live, user, index }) {
  const lease = leaseOf(live, user, index);
  const used = live.get(`use/${index}`)?.processes.filter((process) => process.pod === lease.pod) ?? [];
  const force = h("input", { type: "checkbox", required: true });
  const fields = [h("p", {}, words.releaseText(index, lease.pod)),
    used.length > 0 && h("ul", {}, used.map((process) => h("li", {}, h("code", {}, h("bdi", {}, process.cmd))))),
    used.length > 0 && h("p", {}, h("label", {}, force, " ", words.releaseForce(used.length)))];
  form({ title: words.releaseTitle(index), fields, action: words.releaseAction, submit: async () => {
    const answer = await post("gpu/release", { ins: ins(live, lease.pod), gpus: `${index},`, force: used.length ? 1 : 0 });
    run(words.releaseTitle(index), async () => answer);
  } });
}

function hoursField(value) {
  return h("input", { type: "number", min: "0.1", step: "any", required: true, value });
}

/** The queue with the time of each turn; who waits can leave it. */
function queue({ live, user }) {
  const table = new Table({ caption: words.queueCaption, empty: words.queueEmpty, key: (entry) => entry.pod, columns: [
    { title: words.place, cell: (entry) => entry.place, header: true },
    { title: words.pod, cell: (entry) => entry.pod },
    { title: words.owner, cell: (entry) => (entry.owner === user?.name ? words.you : entry.owner) },
    { title: words.wants, cell: (entry) => words.choice(entry.gpus) },
    { title: words.howLong, cell: (entry) => quantity(entry.hours, "h", entry.hours % 1 ? 1 : 0) },
    { title: words.waitsSince, cell: (entry) => moment(entry.since) },
    { title: words.turn, cell: (entry) => (entry.turn === null ? words.turnUnknown : moment(new Date(entry.turn).toISOString())) },
    { title: "", once: true, cell: (entry) => entry().owner === user?.name
      && h("button", { type: "button", onclick: () => leave(live, entry()) }, words.leave) },
  ] });
  const update = () => {
    const entries = live.get("queue") ?? [];
    const when = turns(entries, live.all("gpu/").map(([, gpu]) => gpu), live.now());
    table.update(entries.map((entry, at) => ({ ...entry, turn: when[at] })));
  };
  return { element: table.element, update };
}

function leave(live, entry) {
  run(words.leaveOf(entry.pod), () => post("gpu/release", { ins: ins(live, entry.pod), gpus: "none" }));
}
