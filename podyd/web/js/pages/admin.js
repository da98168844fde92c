// For admins: all pods and people, leases, doctor's findings, what was done lately, GPU hours.

import { Refused, get, post, url } from "../api.js";
import { copyable, field, showRefusal } from "../controls.js";
import { form } from "../dialog.js";
import { fill, h, refill, setText } from "../dom.js";
import { follow } from "../follow.js";
import { bytes, clock, duration, moment, quantity, secondsUntil, stamp, zone } from "../format.js";
import { badge, stateOf } from "../pods.js";
import { Table } from "../table.js";
import { texts } from "../texts.js";
import { run } from "../work.js";

const words = texts.admin;
const PARTS = { pods, people, leases, doctor, log, hours };
// How many entries of the log are shown.
const LOG_ENTRIES = 300;
const TYPING_MS = 400;
// The present month and those before it that podyd keeps.
const MONTHS = 14;
// podyd-doctor.timer runs it each hour.
const LATE_SECONDS = 3 * 3600;
const TICK_MS = 30_000;
const LEVELS = ["error", "warning", "note", "ok"];

export default async function admin(context) {
  if (!context.user.is_admin) throw new Refused(403, { detail: words.forAdmins });
  const name = Object.hasOwn(PARTS, context.path[0]) ? context.path[0] : "pods";
  const tabs = h("nav", { class: "tabs", "aria-label": words.parts }, h("ul", {}, Object.keys(PARTS).map((part) =>
    h("li", {}, h("a", { href: `#/admin/${part}`, "aria-current": part === name && "page" }, words[part])))));
  const content = await PARTS[name](context);
  return { title: words[name], element: h("div", {}, h("h1", {}, words[name]), tabs, content) };
}

/** All pods, or with #/admin/pods/alice those of one person. */
function pods({ path: [, owner], live, signal }) {
  const table = new Table({ caption: words.podsCaption, empty: words.noPods, key: (pod) => pod.name, columns: [
    { title: words.pod, cell: (pod) => h("bdi", {}, pod.name), header: true, sort: (pod) => pod.name }, { title: words.owner, cell: (pod) => pod.owner, sort: (pod) => pod.owner },
    { title: words.state, cell: (pod) => badge(stateOf(live, pod)), sort: (pod) => pod.status }, { title: words.image, cell: (pod) => h("bdi", {}, pod.image), sort: (pod) => pod.image },
    { title: words.gpus, cell: (pod) => pod.gpu_ids.join(", ") || texts.none, sort: (pod) => pod.gpu_ids.length },
    { title: words.cpu, cell: (pod) => (pod.load ? `${quantity(pod.load.cpu, "", 1).trim()} / ${limit(pod.cpu_limit)}` : texts.none), class: "number", sort: (pod) => pod.load?.cpu ?? -1 },
    { title: words.memory, cell: (pod) => (pod.load ? `${bytes(pod.load.memory_used)} / ${bytes(pod.memory_limit)}` : texts.none), class: "number", sort: (pod) => pod.load?.memory_used ?? -1 },
    { title: words.disk, cell: (pod) => `${bytes(pod.disk_used)} / ${bytes(pod.disk_limit)}`, class: "number", sort: (pod) => pod.disk_used ?? -1 },
    { title: words.since, cell: (pod) => (pod.started ? moment(pod.started) : texts.none), sort: (pod) => pod.started ?? "" },
  ] });
  const all = () => live.all("pod/").map(([name, pod]) => ({ ...pod, load: live.get(`load/${name}`) })).filter((pod) => !owner || pod.owner === owner);
  const list = filtered({ table, rows: all, text: (pod) => `${pod.name} ${pod.owner} ${stateOf(live, pod).text} ${pod.image}` });
  live.on(["pod/", "load/", "work/"], list.show, signal);
  return h("div", {}, owner && h("p", {}, words.podsOf(owner), " ", h("a", { href: "#/admin/pods" }, words.allPods)), list.element);
}

/** A table of the rows whose text contains what is typed: {element, show()}. */
function filtered({ table, rows, text }) {
  const filter = field(words.filter, h("input", { type: "search", autocomplete: "off" }));
  const count = h("p", { class: "hint", role: "status" });
  const show = () => {
    const [all, wanted] = [rows(), filter.input.value.trim().toLowerCase()];
    const found = all.filter((row) => text(row).toLowerCase().includes(wanted));
    table.update(found);
    refill(count, wanted ? texts.of(found.length, all.length) : null);
  };
  filter.input.addEventListener("input", show);
  return { element: h("div", {}, filter.element, count, table.element), show };
}

function limit(count) {
  return count < 0 ? texts.noLimit : String(count);
}

async function people({ live, signal }) {
  const used = (name, most, shown) => ({ title: words.used[name], class: "number", sort: (person) => person.used[name] ?? Infinity,
    cell: (person) => ofQuota(person.used[name], person.quota[most], shown) });
  const table = new Table({ caption: words.peopleCaption, empty: words.nobody, key: (person) => person.user, columns: [
    { title: words.person, cell: (person) => h("a", { href: `#/admin/pods/${encodeURIComponent(person.user)}` }, person.user), header: true, sort: (person) => person.user },
    { title: words.role, cell: (person) => (person.is_admin ? words.isAdmin : words.isMember), sort: (person) => -person.is_admin },
    used("pods", "max_pods", limit), used("gpus", "gpu_count", limit), used("disk", "disk_total", bytes), used("images", "max_images", limit), used("image_size", "image_size", bytes),
    { title: words.memoryEach, class: "number", cell: (person) => bytes(person.quota.memory_limit) }, { title: words.cpusEach, class: "number", cell: (person) => limit(person.quota.cpu_limit) },
  ] });
  let all = [];
  const list = filtered({ table, rows: () => all, text: (person) => `${person.user} ${person.is_admin ? words.isAdmin : words.isMember}` });
  const error = await follow({ live, signal, keys: ["pod/", "queue", "admin"],
    mark: () => JSON.stringify([live.get("admin")?.actions, live.get("queue"), live.all("pod/").map(([, pod]) => [pod.owner, pod.gpu_ids, pod.disk_limit])]),
    load: async (quiet) => {
      all = await get("admin/people", {}, { signal, quiet });
      list.show();
    } });
  return h("div", {}, error, h("p", { class: "hint" }, words.gpusCounted), list.element);
}

/** How much of how much; null is used where something has no limit itself. */
function ofQuota(used, most, shown) {
  if (most >= 0) return texts.of(used === null ? texts.noLimit : shown(used), shown(most));
  return used === null ? texts.noLimit : texts.account.unlimited(shown(used));
}

function leases({ live, signal }) {
  const table = new Table({ caption: words.leasesCaption, empty: words.noLeases, key: (row) => `${row.index} ${row.pod}`, columns: [
    { title: words.gpu, cell: (row) => row.index, header: true }, { title: words.pod, cell: (row) => h("bdi", {}, row.pod) }, { title: words.owner, cell: (row) => row.owner },
    { title: words.since, cell: (row) => moment(row.since) }, { title: words.until, cell: (row) => moment(row.until) },
    { title: words.actions, once: true, cell: (row) => end(row, words.end, (reason) => ({ pod: row().pod, gpus: `${row().index},`, reason })) },
  ] });
  const line = new Table({ caption: words.queueCaption, empty: texts.cards.queueEmpty, key: (entry) => entry.pod, columns: [
    { title: texts.cards.place, cell: (entry) => entry.place, header: true }, { title: words.pod, cell: (entry) => h("bdi", {}, entry.pod) }, { title: words.owner, cell: (entry) => entry.owner },
    { title: words.gpus, cell: (entry) => texts.cards.choice(entry.gpus) }, { title: texts.cards.howLong, cell: (entry) => quantity(entry.hours, "h", 1) }, { title: words.since, cell: (entry) => moment(entry.since) },
    { title: words.actions, once: true, cell: (entry) => end(entry, words.remove, (reason) => ({ pod: entry().pod, gpus: "none", reason })) },
  ] });
  live.on(["gpu/", "queue"], () => {
    table.update(live.all("gpu/").flatMap(([index, gpu]) => gpu.pods.filter((holder) => holder.exclusive).map((holder) => ({ ...holder, index }))));
    line.update(live.get("queue") ?? []);
  }, signal);
  return h("div", {}, table.element, h("h2", {}, texts.cards.queue), line.element);
}

/** A button that ends a lease, or a place in the queue, with a reason that its holder is sent. */
function end(row, label, request) {
  const what = `${label}: ${row().pod}`;
  return h("button", { type: "button", class: "danger", "aria-label": what, onclick: () => {
    const reason = field(words.reason, h("input", { required: true, maxlength: "300", autocomplete: "off" }), words.endText(row().owner));
    form({ title: what, action: label, fields: [reason.element], submit: async () => {
      const answer = await post("admin/release", request(reason.input.value));
      run(what, async () => answer);
    } });
  } }, label);
}

async function doctor({ live, signal }) {
  const table = new Table({ caption: words.doctorCaption, empty: words.allWell, key: (item) => `${item.check} ${item.what}`, columns: [
    { title: words.level, cell: (item) => badge({ text: item.level, kind: words.levels[item.level] ?? "warn" }) }, { title: words.check, cell: (item) => item.check, header: true },
    { title: words.finding, cell: (item) => item.what }, { title: words.advice, cell: (item) => item.do && h("code", {}, item.do) },
  ] });
  const age = h("p", {});
  const none = h("div", {});
  let found = {};
  const say = () => {
    const seconds = found.time ? -secondsUntil(found.time, live) : 0;
    refill(age, found.time && [words.checkedAt, " ", moment(found.time), `, ${words.ago(duration(Math.max(0, seconds - (seconds % 60))))}.`, seconds > LATE_SECONDS && h("span", { class: "error" }, ` ${words.late}`)]);
  };
  const error = await follow({ live, signal, keys: ["admin"], mark: () => live.get("admin")?.findings, load: async (quiet) => {
    found = await get("admin/doctor", {}, { signal, quiet });
    table.element.hidden = found.findings === null;
    table.update([...(found.findings ?? [])].sort((a, b) => LEVELS.indexOf(a.level) - LEVELS.indexOf(b.level)));
    fill(none, found.findings === null && [h("p", {}, found.problem), copyable(words.keepCommand, "sudo podyd doctor --keep"), h("p", {}, words.timer), copyable(words.timerCommand, "systemctl status podyd-doctor.timer")]);
    say();
  } });
  const ticking = setInterval(say, TICK_MS);
  signal.addEventListener("abort", () => clearInterval(ticking));
  return h("div", {}, error, age, none, table.element);
}

async function log({ live, signal }) {
  const table = new Table({ caption: words.logCaption(zone()), empty: words.noActions, key: (item) => item.id, columns: [
    { title: words.time, cell: (item) => stamp(item.time) }, { title: words.person, cell: (item) => item.user }, { title: words.call, cell: (item) => h("code", {}, item.operation), header: true },
    { title: words.pod, cell: (item) => h("bdi", {}, item.pod) }, { title: words.outcome, cell: (item) => (item.status < 400 ? words.ok : `${item.status} ${item.code}`) },
  ] });
  const calls = h("datalist", { id: "calls" });
  const seen = new Set();
  const input = (attributes) => h("input", { type: "search", autocomplete: "off", spellcheck: "false", autocapitalize: "none", ...attributes });
  const filters = { user: field(words.person, input()), pod: field(words.pod, input()), call: field(words.call, input({ list: "calls" })) };
  const more = h("p", { class: "hint" });
  const wrong = h("p", { class: "error", role: "alert" });
  let asked = 0;
  const load = async (quiet) => {
    const mine = ++asked;
    const wanted = Object.fromEntries(Object.entries(filters).map(([name, one]) => [name, one.input.value.trim() || undefined]));
    const entries = await get("admin/log", { ...wanted, limit: LOG_ENTRIES }, { signal, quiet });
    if (mine !== asked) return;
    // The same entry has the same key when newer ones have come: those of one second count from the oldest.
    const ofSecond = new Map();
    const rows = entries.reverse().map((item) => {
      const at = ofSecond.get(item.time) ?? 0;
      ofSecond.set(item.time, at + 1);
      return { ...item, id: `${item.time} ${at}` };
    });
    table.update(rows.reverse());
    setText(table.empty, Object.values(wanted).some(Boolean) ? words.noSuchActions : words.noActions);
    for (const { operation } of rows) {
      if (!seen.has(operation)) calls.append(h("option", { value: operation }));
      seen.add(operation);
    }
    refill(more, rows.length === LOG_ENTRIES && words.newest(LOG_ENTRIES));
  };
  let typing;
  const ask = async () => {
    fill(wrong);
    for (const one of Object.values(filters)) one.error(null);
    try {
      await load(false);
    } catch (refused) {
      if (refused.name !== "AbortError") showRefusal(refused, filters, wrong);
    }
  };
  for (const one of Object.values(filters)) {
    one.input.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(ask, TYPING_MS);
    });
  }
  signal.addEventListener("abort", () => clearTimeout(typing));
  const error = await follow({ live, signal, keys: ["admin"], mark: () => live.get("admin")?.actions, load });
  return h("div", {}, h("div", { class: "pair", role: "search" }, Object.values(filters).map((one) => one.element)), calls, wrong, error, table.element, more);
}

async function hours({ live, signal }) {
  const now = new Date(clock());
  const months = Array.from({ length: MONTHS }, (_, back) => new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() - back)).toISOString().slice(0, 7));
  const month = field(words.month, h("select", {}, months.map((name) => h("option", { value: name }, name))));
  const table = new Table({ caption: words.hoursCaption, empty: words.noHours, key: (item) => item.user, columns: [
    { title: words.person, cell: (item) => item.user, header: true, sort: (item) => item.user },
    { title: words.gpuHours, class: "number", cell: (item) => quantity(item.hours, "h", 2), sort: (item) => item.hours },
    { title: words.leasedHours, class: "number", cell: (item) => quantity(item.leased_hours, "h", 2), sort: (item) => item.leased_hours },
  ] });
  const csv = h("a", { download: "" }, words.csv);
  const asOf = h("p", { class: "hint", role: "status" });
  const error = h("p", { class: "error", role: "alert" });
  const show = async () => {
    const wanted = { month: month.input.value };
    fill(error);
    csv.href = url("stat/gpu-hours", { ...wanted, format: "csv" });
    csv.download = `gpu-hours-${wanted.month}.csv`;
    try {
      const rows = await get("stat/gpu-hours", wanted, { signal });
      if (wanted.month !== month.input.value) return;
      const total = rows.reduce((sum, item) => sum + item.hours, 0);
      table.update(rows);
      fill(asOf, words.sum(quantity(total, "h", 2)), " ", wanted.month === months[0] && [words.asOf, " ", moment(new Date(clock()).toISOString())]);
    } catch (refused) {
      if (refused.name !== "AbortError") fill(error, refused.message);
    }
  };
  month.input.addEventListener("change", show);
  live.onReturn(show, signal);
  await show();
  return h("div", {}, month.element, h("p", {}, csv), error, asOf, table.element);
}
