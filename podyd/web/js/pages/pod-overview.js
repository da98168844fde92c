// A pod at a glance: what it is, what it uses, how to get in, and what can be changed.

import { get, post } from "../api.js";
import { meter } from "../chart.js";
import { button, copyable, field, isHeldBack, refuse, showRefusal } from "../controls.js";
import { form } from "../dialog.js";
import { fill, h, refill, setText } from "../dom.js";
import { bytes, bytesOf, moment, quantity } from "../format.js";
import { gpuChoice } from "../gpu-choice.js";
import { highest, history } from "../history.js";
import { written } from "../names.js";
import { PROGRESS_MS, copyPod, howFar, later, left, onPods, podsOf, quotaOf, serverName, stateOf, work, workOn } from "../pods.js";
import { Table } from "../table.js";
import { texts } from "../texts.js";
import { run } from "../work.js";
import { cpu, disk, memory, uptime } from "./pods.js";

const words = texts.overview;
const TICK_MS = 5000;
const WAITING_MS = 1000;

export default async function overview(context) {
  const { live, signal, ins } = context;
  // Its addresses too, so that nothing moves when they come, unless the engine takes long.
  const [quota, info] = await Promise.all([quotaOf(context),
    Promise.race([get("pod/info", { ins }, { signal, quiet: true }).catch(() => null), later(WAITING_MS)])]);
  signal.throwIfAborted();
  const make = (part) => part({ ...context, quota, info });
  const columns = [[use, cards, images].map(make), [facts, connect, limits].map(make)];
  const parts = columns.flat();
  const update = () => parts.forEach((part) => part.update?.());
  onPods(live, update, signal);
  const ticking = setInterval(update, TICK_MS);
  const element = h("div", { class: "columns" }, columns.map((column) => h("div", {}, column.map((part) => part.element))));
  return { element, close: () => clearInterval(ticking) };
}

let panels = 0;

function panel(title, ...children) {
  const id = `panel-${++panels}`;
  return h("section", { class: "panel", "aria-labelledby": id }, h("h2", { id }, title), children);
}

function facts({ live, ins, pod, info: first, signal }) {
  const list = h("dl", { class: "facts" });
  let info = first;
  let { status } = first ?? {};
  let asked = Date.now();
  const update = () => {
    const now = pod();
    // A pod that has started gets its addresses some seconds later.
    const isWaiting = now.status === "running" && info?.addresses.length === 0 && Date.now() - asked >= TICK_MS;
    if (now.status !== status || isWaiting) {
      ({ status } = now);
      ask();
    }
    show();
  };
  const ask = () => {
    asked = Date.now();
    get("pod/info", { ins }, { signal, quiet: true }).then((answer) => {
      info = answer;
      show();
    }).catch(() => {});
  };
  live.onReturn(ask, signal);
  const show = () => {
    const now = pod();
    const lines = {
      image: h("bdi", {}, written(now.image)), name: now.name, created: moment(now.created), up: uptime(live, now),
      addresses: info?.addresses.length ? info.addresses.map((address) => h("div", {}, address)) : texts.none,
      profiles: now.profiles.join(", "),
    };
    refill(list, Object.entries(lines).flatMap(([key, value]) => [h("dt", {}, words.facts[key]), h("dd", {}, value)]));
  };
  return { element: panel(words.factsTitle, list), update };
}

function use({ live, ins, pod, signal }) {
  const meters = h("dl", { class: "facts" });
  const columns = texts.pods.columns;
  // A limit far above what was used would make a flat line of it.
  const top = (values, limit) => Math.min(limit > 0 ? limit : Infinity, 1.25 * highest(values)) || 1;
  const load = async (span) => {
    const { start, step, cpu: cpus, memory_used: used } = await get("pod/history", { ins, span }, { signal, quiet: true });
    return { start, step, curves: [
      { title: columns.memory, values: used, top: top(used, pod().memory_limit), write: bytes },
      { title: columns.cpu, values: cpus, top: top(cpus, pod().cpu_limit), write: (value) => value?.toFixed(2) ?? texts.none },
    ] };
  };
  const update = () => {
    const lines = { memory: memory(live, pod()), cpu: cpu(live, pod()), disk: disk(pod()) };
    refill(meters, Object.entries(lines).flatMap(([key, value]) => [h("dt", {}, columns[key]), h("dd", {}, value)]));
  };
  return { element: panel(words.useTitle, meters, history({ load, live, signal, title: words.past })), update };
}

function connect({ live, ins, pod }) {
  const stopped = h("p", {}, words.startFirst);
  const lines = h("div");
  let shown = null;
  const update = () => {
    const port = pod().port_mapping.map((mapping) => mapping.split(":")).find(([, inner]) => inner === "22")?.[0];
    const host = serverName(live);
    stopped.hidden = pod().status === "running";
    if (shown === `${host}:${port}`) return;
    shown = `${host}:${port}`;
    const block = `Host pod-${ins}\n    HostName ${host}\n    Port ${port}\n    User root`;
    fill(lines,
      port ? [
        h("h3", {}, words.ssh), copyable(words.ssh, `ssh -p ${port} root@${host}`),
        h("h3", {}, words.config), copyable(words.config, block),
        h("p", {}, h("a", { class: "button", href: `vscode://vscode-remote/ssh-remote+root@${host}:${port}/root` }, words.vscode)),
        h("p", { class: "soft" }, words.key),
        copyable(words.copyId, `pody copy-id ${ins}`),
      ] : h("p", {}, words.noSsh, " ", h("a", { href: `#/pods/${ins}/ports` }, words.toPorts)),
      h("h3", {}, words.forward), copyable(words.forward, `pody forward ${ins} 8888`));
  };
  return { element: panel(words.connectTitle, stopped, lines), update };
}

function cards({ live, ins, pod, quota, user, signal }) {
  const table = new Table({
    caption: words.cardsCaption, empty: words.noCards, key: (index) => String(index),
    columns: [
      { title: words.columns.gpu, header: true, cell: (index) => h("a", { href: `#/cards/${index}` }, texts.pods.gpu(index)) },
      { title: words.columns.use, cell: (index) => {
        const now = live.get(`use/${index}`);
        return meter({ share: (now?.utilisation ?? NaN) / 100, label: words.columns.use, text: quantity(now?.utilisation, "%") });
      } },
      { title: words.columns.memory, cell: (index) => {
        const used = live.get(`use/${index}`)?.memory_used ?? null;
        const total = live.get(`gpu/${index}`)?.memory_total ?? null;
        return meter({ share: used === null || !total ? null : used / total, label: words.columns.memory, text: bytesOf(used, total) });
      } },
      { title: words.columns.lease, cell: (index) => {
        const card = live.get(`gpu/${index}`);
        const lease = card?.pods.find((holder) => holder.pod === pod().name && holder.exclusive);
        return [lease ? [words.leased, " ", moment(lease.until)] : words.shared, card?.problem && h("div", { class: "error" }, card.problem)];
      } },
    ],
  });

  function change() {
    const rest = left(quota, podsOf(live, user), pod());
    const closing = new AbortController();
    const choice = gpuChoice({ live, signal: closing.signal, chosen: pod().gpu_ids, hint: texts.newPod.gpusHint(rest.gpus, quota.gpu_count) });
    const force = h("input", { type: "checkbox" });
    const forcing = h("p", { hidden: true }, h("label", {}, force, " ", words.force));
    form({
      title: words.changeTitle(ins), action: words.change, closing, fields: [h("p", {}, words.changeText), choice.element, forcing],
      submit: async (dialog) => {
        try {
          await work(pod(), "pod/gpus", words.changing(ins), { ins, gpus: choice.value(), force: force.checked ? 1 : null }, { dialog });
        } catch (refused) {
          if (["gpu_in_use", "nvml_failed"].includes(refused.code)) forcing.hidden = false;
          throw refused;
        }
      },
    });
  }

  const changeButton = button(words.changeGpus, change);
  const update = () => {
    table.update(pod().gpu_ids);
    refuse(changeButton, busy(live, pod()));
  };
  return { element: panel(words.cardsTitle, table.element, h("div", { class: "buttons" }, changeButton, h("a", { class: "button", href: "#/cards" }, words.lease))), update };
}

function busy(live, pod) {
  return workOn(live, pod) ? texts.pods.busy(stateOf(live, pod).text) : null;
}

function limits({ live, ins, pod, quota, user }) {
  const size = (label, key) => field(label, h("input", { name: key, autocomplete: "off" }), "");
  const inputs = {
    memory: size(texts.newPod.memory, "memory"), cpu: size(texts.newPod.cpu, "cpu"), disk: size(texts.newPod.disk, "disk"),
  };
  const error = h("p", { class: "error", role: "alert" });
  const done = h("p", { class: "soft", role: "status" });
  const submit = h("button", { type: "submit" }, words.changeLimits);

  const update = () => {
    const now = pod();
    const rest = left(quota, podsOf(live, user), now);
    const shown = (value) => (value === null || value === undefined ? texts.none : bytes(value));
    setText(inputs.memory.hint, words.limitHint(shown(now.memory_limit), bytes(quota.memory_limit)));
    setText(inputs.cpu.hint, words.limitHint(now.cpu_limit < 0 ? texts.noLimit : now.cpu_limit, quota.cpu_limit < 0 ? texts.noLimit : quota.cpu_limit));
    const most = [rest.disk, quota.disk_limit].filter((value) => value !== null && value >= 0);
    setText(inputs.disk.hint, now.disk_limit === null ? words.noDiskLimits : words.limitHint(shown(now.disk_limit), most.length ? bytes(Math.min(...most)) : texts.noLimit));
    inputs.disk.input.disabled = now.disk_limit === null;
    refuse(submit, busy(live, now));
  };

  async function change(event) {
    event.preventDefault();
    fill(error);
    fill(done);
    if (isHeldBack(submit, error)) return;
    const wanted = Object.entries(inputs).map(([name, { input }]) => [name, input.value.trim() || null]);
    if (wanted.every(([, value]) => value === null)) {
      fill(error, words.nothingToChange);
      return;
    }
    const answer = await run(words.limiting(ins), () => post("pod/limits", { ins, ...Object.fromEntries(wanted) }), (refused) => {
      if (!error.isConnected) return false;
      showRefusal(refused, inputs, error);
      return true;
    });
    if (answer === undefined) return;
    for (const { input } of Object.values(inputs)) input.value = "";
    fill(done, words.limitsChanged);
  }

  return { element: panel(words.limitsTitle, h("p", { class: "soft" }, words.limitsText),
    h("form", { onsubmit: change }, Object.values(inputs).map(({ element }) => element), error, done, h("div", { class: "buttons" }, submit))), update };
}

function images(context) {
  const { live, ins, pod, quota, user, signal } = context;
  const making = h("div", { hidden: true });
  const text = h("span");
  const bar = h("progress", { "aria-label": words.making(ins) });
  const error = h("p", { class: "error", role: "alert" });
  let polling = null;

  const cancel = button(words.cancelCommit, () => {
    run(words.cancelling(ins), () => post("pod/commit-cancel", { ins }), (refused) => {
      fill(error, refused.message);
      return error.isConnected;
    });
  });
  making.append(h("p", {}, words.underWay, " ", text), h("div", { class: "buttons" }, bar, cancel));

  function commit() {
    fill(error);
    const tag = field(words.tag, h("input", { name: "tag", autocomplete: "off", spellcheck: "false", placeholder: ins }), words.tagHint(user.name));
    const msg = field(words.message, h("input", { name: "msg", maxlength: 1000 }), "");
    form({
      title: words.commitTitle(ins), action: words.commit, fields: [h("p", {}, words.commitText(quota, bytes)), tag.element, msg.element],
      submit: (dialog) => work(pod(), "pod/commit", words.making(ins),
        { ins, tag: tag.input.value.trim() || null, msg: msg.input.value.trim() || null }, { dialog, asked }),
    });
  }

  const asked = () => howFar(ins, words.beginning);

  async function poll() {
    try {
      const now = await asked();
      setText(text, now.text);
      if (now.share === null) bar.removeAttribute("value");
      else bar.value = now.share;
    } catch { /* The next one may come through. */ }
  }

  const commitButton = button(words.commit, commit, { name: words.commitTitle(ins) });
  const copyButton = button(words.copyPod, () => copyPod({ ...context, pod: pod() }));
  const update = () => {
    const isMaking = workOn(live, pod())?.operation === "/pod/commit";
    if (isMaking && polling === null) {
      setText(text, words.beginning);
      bar.removeAttribute("value");
      polling = setInterval(poll, PROGRESS_MS);
      poll();
    } else if (!isMaking && polling !== null) {
      clearInterval(polling);
      polling = null;
    }
    const hadFocus = document.activeElement === cancel;
    making.hidden = !isMaking;
    if (hadFocus && making.hidden) commitButton.focus();
    refuse(commitButton, busy(live, pod()));
    refuse(copyButton, busy(live, pod()) ?? (left(quota, podsOf(live, user)).pods === 0 ? texts.newPod.full(quota.max_pods) : null));
  };
  signal.addEventListener("abort", () => clearInterval(polling));
  return { element: panel(words.imageTitle, h("p", {}, words.imageText), making, error, h("div", { class: "buttons" }, commitButton, copyButton)), update };
}
