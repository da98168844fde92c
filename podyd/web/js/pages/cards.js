// All GPUs, live; leases and the queue for them.

import { post } from "../api.js";
import { CardPanel, stateOf } from "../card.js";
import { button, field, refuse } from "../controls.js";
import { form, tell } from "../dialog.js";
import { fill, h, refill, setText } from "../dom.js";
import { duration, moment, quantity, secondsUntil } from "../format.js";
import { gpuChoice } from "../gpu-choice.js";
import { history, ofGpu } from "../history.js";
import { podsOf } from "../pods.js";
import { turns } from "../queue.js";
import { Table } from "../table.js";
import { texts } from "../texts.js";
import { run } from "../work.js";

const words = texts.cards;
const A_MOMENT_MS = 5000;
// So many of who is before one are named; the table has all.
const NAMED = 6;

export default function cards(context) {
  return context.path[0] ? one(context, context.path[0]) : all(context);
}

function all({ live, user, signal, rename }) {
  const grid = h("div", { class: "grid" });
  const empty = h("p", { class: "empty" }, words.empty);
  const panels = new Map();
  const mine = yours({ live, user });
  const line = queue({ live, user });
  let title = texts.nav.cards;
  live.on(["gpu/", "use/"], () => {
    const found = live.all("gpu/");
    const indices = found.map(([index]) => index);
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
    if (panels.size > 0) title = words.freeOf(found.filter(([index, gpu]) => stateOf(gpu, live.get(`use/${index}`) ?? {}).isFree).length, found.length);
    rename(title);
  }, signal);
  live.on(["queue", "gpu/", "use/", "pod/", "host"], () => {
    const when = turns(live);
    line.update(when);
    mine.update(when);
  }, signal);
  const lease = button(words.lease, () => askLease({ live, user }), { kind: "primary" });
  return { title, element: h("div", {}, h("h1", {}, texts.nav.cards), mine.element, h("div", { class: "buttons" }, lease), empty, grid,
    h("h2", { id: "queue" }, words.queue), line.element) };
}

function one({ live, user, signal }, index) {
  const panel = new CardPanel({ index, live, actions: actions({ index, live, user, signal }), isWhole: true });
  const missing = h("p", { class: "error" }, words.noGpu(index));
  const curves = history({ title: words.history, live, signal, load: (span, ended) => ofGpu(index, live.get(`gpu/${index}`))(span, ended) });
  live.on(["gpu/", "use/"], () => {
    const isThere = live.get(`gpu/${index}`) !== undefined;
    panel.element.hidden = curves.hidden = !isThere;
    missing.hidden = isThere;
    panel.update();
  }, signal);
  return { title: words.gpu(index), element: h("div", {}, h("p", {}, h("a", { href: "#/cards" }, words.all)), h("h1", {}, words.gpu(index)), missing, panel.element, curves) };
}

function leaseOf(live, user, index) {
  return live.get(`gpu/${index}`)?.pods.find((holder) => holder.exclusive && holder.owner === user.name);
}

/** The buttons of a GPU: extend and release for who has leased it, else lease or queue for it. */
function actions({ index, live, user, signal }) {
  const lease = button(words.leaseThis, () => askLease({ live, user, chosen: [Number(index)] }));
  const extend = button(words.extend, () => askExtend({ live, user, index }));
  const release = button(words.release, () => askRelease({ live, user, index }));
  live.on([`gpu/${index}`], () => {
    const isMine = leaseOf(live, user, index) !== undefined;
    lease.hidden = isMine;
    extend.hidden = release.hidden = !isMine;
    const gpu = live.get(`gpu/${index}`);
    setText(lease, gpu?.pods.some((holder) => holder.exclusive) ? words.queueForThis : words.leaseThis);
    // It would be waited for until the problem is solved.
    refuse(lease, gpu?.problem ?? null);
  }, signal);
  return [lease, extend, release];
}

function ins(live, name) {
  return live.get(`pod/${name}`)?.ins ?? name;
}

function askLease({ live, user, chosen = [] }) {
  const mine = podsOf(live, user);
  if (mine.length === 0) {
    tell({ title: words.leaseTitle, text: words.needsPod, details: [h("p", {}, h("a", { class: "button primary", href: "#/new" }, words.newPod))] });
    return;
  }
  const pod = field(words.pod, h("select", { required: true }, mine.map((item) => h("option", { value: item.ins }, item.ins))));
  const closing = new AbortController();
  const gpus = gpuChoice({ live, signal: closing.signal, lease: true, chosen });
  const hours = field(words.hours, hoursField("8"));
  const wait = h("input", { type: "checkbox", checked: true });
  const ends = live.get("host")?.ends_sharers ?? null;
  const dialog = form({ title: words.leaseTitle, action: words.leaseOrQueue, closing, named: { ins: pod, hours },
    fields: [pod.element, gpus.element, hours.element, h("p", {}, h("label", {}, wait, " ", words.wait)),
      ends !== null && h("p", { class: "hint" }, ends ? words.endsSharers : words.waitsForSharers)],
    submit: async () => {
      const answer = await post(wait.checked ? "gpu/queue" : "gpu/lease", { ins: pod.input.value, gpus: gpus.value(), hours: hours.input.value });
      run(words.leaseFor(pod.input.value), async () => answer);
    } });
  wait.addEventListener("change", () => setText(dialog.button, wait.checked ? words.leaseOrQueue : words.leaseNow));
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
  form({ title: words.releaseTitle(index), fields, action: words.releaseAction(used.length), submit: async () => {
    const answer = await post("gpu/release", { ins: ins(live, lease.pod), gpus: `${index},`, force: used.length ? 1 : 0 });
    run(words.releaseTitle(index), async () => answer);
  } });
}

function hoursField(value) {
  return h("input", { type: "number", min: "0.1", step: "any", required: true, value });
}

/** What the caller's pods have of GPUs, and when those that wait get theirs; `update(turns)`. */
function yours({ live, user }) {
  const list = h("ul");
  const update = (when) => {
    const mine = podsOf(live, user);
    const gpus = live.all("gpu/").map(([, gpu]) => gpu);
    const leases = gpus.flatMap((gpu) => gpu.pods.filter((holder) => holder.exclusive && holder.owner === user.name)
      .map((holder) => h("li", {}, words.yoursLeased(gpu.index, ins(live, holder.pod)), " ", moment(holder.until), ` (${words.left(duration(secondsUntil(holder.until, live)))}).`)));
    const shared = mine.map((pod) => [pod.ins, gpus.filter((gpu) => gpu.pods.some((holder) => holder.pod === pod.name && holder.attached && !holder.exclusive))])
      .filter(([, having]) => having.length > 0).map(([name, having]) => h("li", {}, words.yoursShared(name, having.map((gpu) => gpu.index))));
    const entries = live.get("queue") ?? [];
    const waiting = entries.flatMap((entry, at) => (entry.owner !== user.name ? [] : [h("li", {},
      words.yoursWaits(ins(live, entry.pod), words.choice(entry.gpus), entry.place, entries.length), " ", whoIsBefore(when[at].before), " ", turnText(when[at], live))]));
    const lines = [...leases, ...shared, ...waiting];
    refill(list, lines.length ? lines : h("li", {}, mine.length ? words.yoursNone : [words.needsPod, " ", h("a", { href: "#/new" }, words.newPod)]));
  };
  return { element: h("section", { class: "panel yours", "aria-labelledby": "yours" }, h("h2", { id: "yours" }, words.yours), list), update };
}

function whoIsBefore(entries) {
  if (entries.length === 0) return words.beforeNone;
  return words.before(entries.length, entries.slice(0, NAMED).map((entry) => words.beforeOne(entry.pod, entry.owner, words.choice(entry.gpus))));
}

function turnText({ time, sharers }, live) {
  if (sharers.length > 0) return words.yourTurnShared(sharers);
  if (time === null) return words.yourTurnUnknown;
  if (time - live.now() < A_MOMENT_MS) return words.yourTurnNow;
  return [`${words.yourTurn} `, moment(new Date(time).toISOString()), ` ${words.yourTurnEnd}`];
}

/** The queue with the time of each turn; who waits can leave it. `update(turns)`. */
function queue({ live, user }) {
  const table = new Table({ caption: words.queueCaption, empty: words.queueEmpty, key: (entry) => entry.pod, columns: [
    { title: words.place, cell: (entry) => entry.place, header: true },
    { title: words.pod, cell: (entry) => entry.pod },
    { title: words.owner, cell: (entry) => (entry.owner === user.name ? words.you : entry.owner) },
    { title: words.wants, cell: (entry) => words.choice(entry.gpus) },
    { title: words.howLong, cell: (entry) => quantity(entry.hours, "h", entry.hours % 1 ? 1 : 0) },
    { title: words.waitsSince, cell: (entry) => moment(entry.since) },
    { title: words.turn, cell: ({ turn }) => (turn.time === null ? words.turnUnknown
      : turn.time - live.now() < A_MOMENT_MS ? words.turnNow : moment(new Date(turn.time).toISOString())) },
    { title: "", once: true, cell: (entry) => entry().owner === user.name && button(words.leave, () => leave(live, entry())) },
  ] });
  const update = (when) => table.update((live.get("queue") ?? []).map((entry, at) => ({ ...entry, turn: when[at] })));
  return { element: table.element, update };
}

function leave(live, entry) {
  run(words.leaveOf(entry.pod), () => post("gpu/release", { ins: ins(live, entry.pod), gpus: "none" }));
}
