// The ports on which a pod listens, and the host's that are forwarded to them.

import { get, post } from "../api.js";
import { button, copyable, field, isHeldBack, refuse } from "../controls.js";
import { confirm } from "../dialog.js";
import { fill, h, setText } from "../dom.js";
import { onPods, quotaOf, serverName } from "../pods.js";
import { Table } from "../table.js";
import { texts } from "../texts.js";
import { run } from "../work.js";

const words = texts.ports;
const POLL_MS = 4000;
const SSH = 22;

export default async function ports({ live, signal, ins, pod }) {
  const quota = await quotaOf({ live, signal });
  let listening = null; // Not known yet.
  const error = h("p", { class: "error", role: "alert" });
  const asking = h("p", { class: "soft", role: "status" }, texts.newPod.asking);
  const room = h("p", { class: "soft" });
  const number = field(words.port, h("input", { name: "port", type: "number", min: 1, max: 65535, required: true }), words.portHint);
  const submit = h("button", { type: "submit", class: "primary" }, words.forward);
  const toggles = new Map();

  const table = new Table({
    caption: words.caption, empty: words.none, key: (row) => String(row.port),
    columns: [
      { title: words.columns.port, header: true, cell: (row) => String(row.port) },
      { title: words.columns.listens, cell: (row) => (row.addresses.length ? row.addresses.map((address) => h("div", {}, h("bdi", {}, address))) : listening === null ? texts.none : words.nobody) },
      { title: words.columns.host, cell: (row) => (row.host ? String(row.host) : texts.none) },
      { title: words.columns.reach, cell: (row) => reach(row) },
      { title: words.columns.actions, once: true, cell: (row) => {
        const one = button(words.forward, () => toggle(row()));
        toggles.set(row().port, one);
        return one;
      } },
    ],
  });

  const refused = (wrong) => {
    fill(error, wrong.message);
    return error.isConnected;
  };

  function reach(row) {
    if (row.isLocal) return [words.onlyLocal, h("code", {}, ` pody forward ${ins} ${row.port}`)];
    if (!row.host) return h("code", {}, `pody forward ${ins} ${row.port}`);
    if (row.port === SSH) return h("code", {}, `ssh -p ${row.host} root@${serverName(live)}`);
    const target = new URL("/", location.href);
    Object.assign(target, { protocol: "http:", hostname: serverName(live), port: row.host });
    return [h("a", { href: target.href, target: "_blank", rel: "noopener noreferrer" }, target.href)];
  }

  async function forward(port) {
    fill(error);
    return run(words.forwarding(port), async () => {
      const { port_mapping: mapping } = await post("pod/port", { ins, port });
      return { log: words.forwarded(port, mapping.map((one) => one.split(":")).find(([, inner]) => inner === String(port))?.[0]) };
    }, refused);
  }

  async function toggle(row) {
    if (!row.host) {
      await forward(row.port);
    } else if (await confirm({ title: words.stopTitle(row.host, row.port), text: row.port === SSH ? words.stopSshText : words.stopText, action: words.stop, danger: row.port === SSH })) {
      fill(error);
      await run(words.stopping(row.port), () => post("pod/port-delete", { ins, port: row.port }), refused);
    }
    await poll();
  }

  async function poll() {
    if (signal.aborted) return;
    if (pod().status !== "running") {
      listening = [];
      setText(asking, words.notRunning);
      update();
      return;
    }
    try {
      listening = await get("pod/ports", { ins }, { signal, quiet: true });
      setText(asking, "");
    } catch (wrong) {
      if (wrong.name === "AbortError") return;
      setText(asking, wrong.message);
    }
    update();
  }

  function rows() {
    const found = new Map();
    const row = (port) => {
      if (!found.has(port)) found.set(port, { port, addresses: [], host: null, isLocal: false });
      return found.get(port);
    };
    for (const one of listening ?? []) row(one.port).addresses.push(one.address);
    for (const mapping of pod().port_mapping) {
      const [host, inner] = mapping.split(":").map(Number);
      row(inner).host = host;
    }
    for (const one of found.values()) {
      one.isLocal = one.addresses.length > 0 && one.addresses.every((address) => /^127\.|^(\[?)::1(\]?)$/.test(address));
    }
    return [...found.values()].sort((a, b) => a.port - b.port);
  }

  function update() {
    const all = rows();
    const forwarded = all.filter((row) => row.host).length;
    const isFull = quota.max_ports >= 0 && forwarded >= quota.max_ports;
    table.update(all);
    setText(table.empty, listening === null ? "" : words.none);
    for (const row of all) {
      const one = toggles.get(row.port);
      setText(one, row.host ? words.stop : words.forward);
      one.setAttribute("aria-label", row.host ? words.stopTitle(row.host, row.port) : words.forwardPort(row.port));
      refuse(one, row.host ? null : isFull ? words.full(quota.max_ports) : row.isLocal ? words.localReason : null);
    }
    setText(room, quota.max_ports < 0 ? "" : words.room(forwarded, quota.max_ports));
    refuse(submit, isFull ? words.full(quota.max_ports) : null);
  }

  async function submitted(event) {
    event.preventDefault();
    if (isHeldBack(submit, error)) return;
    if ((await forward(number.input.value)) !== undefined) number.input.value = "";
    await poll();
  }

  onPods(live, update, signal);
  const seen = () => { if (!document.hidden) poll(); };
  const polling = setInterval(seen, POLL_MS);
  document.addEventListener("visibilitychange", seen, { signal });
  live.onState(seen, signal);
  const element = h("div", {}, h("p", { class: "soft" }, words.text),
    h("form", { class: "inline", onsubmit: submitted }, number.element, submit), room, error, table.element, asking,
    h("h2", {}, texts.overview.forward), copyable(texts.overview.forward, `pody forward ${ins} 8888`));
  return { element, close: () => clearInterval(polling) };
}
