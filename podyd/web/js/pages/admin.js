// For admins: all pods and people, leases, doctor's findings, what was done lately, GPU hours.

import { get, post, url } from "../api.js";
import { form } from "../dialog.js";
import { fill, h } from "../dom.js";
import { bytes, moment, quantity } from "../format.js";
import { Table } from "../table.js";
import { texts } from "../texts.js";
import { run } from "../work.js";

const words = texts.admin;
const PARTS = { pods, people, leases, doctor, log, hours };

export default async function admin(context) {
  if (!context.user.is_admin) throw new Error(words.forAdmins);
  const name = Object.hasOwn(PARTS, context.path[0]) ? context.path[0] : "pods";
  const tabs = h("nav", { class: "tabs", "aria-label": words.parts }, h("ul", {}, Object.keys(PARTS).map((part) =>
    h("li", {}, h("a", { href: `#/admin/${part}`, "aria-current": part === name && "page" }, words[part])))));
  const content = await PARTS[name](context);
  return { title: words[name], element: h("div", {}, h("h1", {}, words[name]), tabs, content) };
}

function pods({ live, signal }) {
  const table = new Table({ caption: words.podsCaption, empty: words.noPods, key: (pod) => pod.name, columns: [
    { title: words.pod, cell: (pod) => h("bdi", {}, pod.name), header: true }, { title: words.owner, cell: (pod) => pod.owner },
    { title: words.state, cell: (pod) => pod.status }, { title: words.image, cell: (pod) => h("bdi", {}, pod.image) }, { title: words.gpus, cell: (pod) => pod.gpu_ids.join(", ") || texts.none },
    { title: words.cpu, cell: (pod) => (pod.load ? `${quantity(pod.load.cpu, "", 1).trim()} / ${limit(pod.cpu_limit)}` : texts.none), class: "number" },
    { title: words.memory, cell: (pod) => (pod.load ? `${bytes(pod.load.memory_used)} / ${bytes(pod.memory_limit)}` : texts.none), class: "number" },
    { title: words.disk, cell: (pod) => `${bytes(pod.disk_used)} / ${bytes(pod.disk_limit)}`, class: "number" },
    { title: words.since, cell: (pod) => (pod.started ? moment(pod.started) : texts.none) },
  ] });
  return filtered({ live, signal, keys: ["pod/", "load/"], table, matches: (pod, text) => `${pod.name} ${pod.owner} ${pod.status} ${pod.image}`.toLowerCase().includes(text),
    rows: () => live.all("pod/").map(([name, pod]) => ({ ...pod, load: live.get(`load/${name}`) })) });
}

function filtered({ live, signal, keys, table, rows, matches }) {
  const filter = h("input", { id: "filter", type: "search", autocomplete: "off" });
  const show = () => table.update(rows().filter((row) => matches(row, filter.value.trim().toLowerCase())));
  filter.addEventListener("input", show);
  live.on(keys, show, signal);
  return h("div", {}, h("div", { class: "field" }, h("label", { for: "filter" }, words.filter), filter), table.element);
}

function limit(count) {
  return count < 0 ? texts.noLimit : String(count);
}

async function people({ signal }) {
  const table = new Table({ caption: words.peopleCaption, empty: words.nobody, key: (person) => person.user, columns: [
    { title: words.person, cell: (person) => person.user, header: true }, { title: words.role, cell: (person) => (person.is_admin ? words.isAdmin : words.isMember) },
    ...[["pods", "max_pods", limit], ["gpus", "gpu_count", limit], ["disk", "disk_total", bytes], ["images", "max_images", limit], ["image_size", "image_size", bytes]].map(([used, most, shown]) =>
      ({ title: words.used[used], class: "number", cell: (person) => `${person.used[used] === null ? texts.none : shown(person.used[used])} / ${shown(person.quota[most])}` })),
    { title: words.memoryEach, class: "number", cell: (person) => bytes(person.quota.memory_limit) }, { title: words.cpusEach, class: "number", cell: (person) => limit(person.quota.cpu_limit) },
  ] });
  table.update(await get("admin/people", {}, { signal }));
  return table.element;
}

function leases({ live, signal }) {
  const table = new Table({ caption: words.leasesCaption, empty: words.noLeases, key: (row) => `${row.index} ${row.pod}`, columns: [
    { title: words.gpu, cell: (row) => row.index, header: true }, { title: words.pod, cell: (row) => h("bdi", {}, row.pod) }, { title: words.owner, cell: (row) => row.owner },
    { title: words.since, cell: (row) => moment(row.since) }, { title: words.until, cell: (row) => moment(row.until) },
    { title: "", once: true, cell: (row) => end(row, words.end, (reason) => ({ pod: row().pod, gpus: `${row().index},`, reason })) },
  ] });
  const line = new Table({ caption: words.queueCaption, empty: texts.cards.queueEmpty, key: (entry) => entry.pod, columns: [
    { title: texts.cards.place, cell: (entry) => entry.place, header: true }, { title: words.pod, cell: (entry) => h("bdi", {}, entry.pod) }, { title: words.owner, cell: (entry) => entry.owner },
    { title: words.gpus, cell: (entry) => texts.cards.choice(entry.gpus) }, { title: texts.cards.howLong, cell: (entry) => quantity(entry.hours, "h", 1) }, { title: words.since, cell: (entry) => moment(entry.since) },
    { title: "", once: true, cell: (entry) => end(entry, words.remove, (reason) => ({ pod: entry().pod, gpus: "none", reason })) },
  ] });
  live.on(["gpu/", "queue"], () => {
    table.update(live.all("gpu/").flatMap(([index, gpu]) => gpu.pods.filter((holder) => holder.exclusive).map((holder) => ({ ...holder, index }))));
    line.update(live.get("queue") ?? []);
  }, signal);
  return h("div", {}, table.element, h("h2", {}, texts.cards.queue), line.element);
}

/** A button that ends a lease, or a place in the queue, with a reason that its holder is sent. */
function end(row, label, request) {
  return h("button", { type: "button", class: "danger", onclick: () => {
    const reason = h("input", { id: "reason", required: true, maxlength: "500" });
    form({ title: `${label}: ${row().pod}`, action: label, fields: [h("p", {}, words.endText(row().owner)), h("div", { class: "field" }, h("label", { for: "reason" }, words.reason), reason)],
      submit: async () => {
        const answer = await post("admin/release", request(reason.value));
        run(`${label}: ${row().pod}`, async () => answer);
      } });
  } }, label);
}

async function doctor({ signal }) {
  const { time, findings, problem } = await get("admin/doctor", {}, { signal });
  if (findings === null) return h("p", { class: "error" }, problem);
  const table = new Table({ caption: words.doctorCaption, empty: words.allWell, key: (item) => `${item.check} ${item.what}`, columns: [
    { title: words.level, cell: (item) => h("span", { class: `badge ${words.levels[item.level] ?? "warn"}` }, item.level) }, { title: words.check, cell: (item) => item.check, header: true },
    { title: words.finding, cell: (item) => item.what }, { title: words.advice, cell: (item) => item.do },
  ] });
  table.update(findings);
  return h("div", {}, h("p", {}, words.checkedAt, " ", moment(time)), table.element);
}

async function log({ signal }) {
  const table = new Table({ caption: words.logCaption, empty: words.noActions, key: (item) => item.id, columns: [
    { title: words.time, cell: (item) => moment(item.time) }, { title: words.person, cell: (item) => item.user }, { title: words.call, cell: (item) => h("code", {}, item.operation), header: true },
    { title: words.pod, cell: (item) => h("bdi", {}, item.pod ?? "") }, { title: words.outcome, cell: (item) => (item.status < 400 ? words.ok : `${item.status} ${item.code ?? ""}`) },
  ] });
  table.update((await get("admin/log", { limit: 300 }, { signal })).map((item, at) => ({ ...item, id: `${item.time} ${at}` })));
  return table.element;
}

async function hours({ signal }) {
  const month = h("input", { id: "month", type: "month", value: new Date().toISOString().slice(0, 7), required: true });
  const table = new Table({ caption: words.hoursCaption, empty: words.noHours, key: (item) => item.user, columns: [
    { title: words.person, cell: (item) => item.user, header: true }, { title: words.gpuHours, class: "number", cell: (item) => quantity(item.hours, "h", 1) },
    { title: words.leasedHours, class: "number", cell: (item) => quantity(item.leased_hours, "h", 1) },
  ] });
  const csv = h("a", { download: "" }, words.csv);
  const error = h("p", { class: "error", role: "alert" });
  const show = async () => {
    if (!month.value) return;
    fill(error);
    csv.href = url("stat/gpu-hours", { month: month.value, format: "csv" });
    csv.download = `gpu-hours-${month.value}.csv`;
    try {
      table.update(await get("stat/gpu-hours", { month: month.value }, { signal }));
    } catch (refused) {
      if (refused.name !== "AbortError") fill(error, refused.message);
    }
  };
  month.addEventListener("change", show);
  await show();
  return h("div", {}, h("div", { class: "field" }, h("label", { for: "month" }, words.month), month), h("p", {}, csv), error, table.element);
}
