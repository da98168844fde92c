// A member's pods: which there are, what is being done with them, what the quota leaves.

import { get, post } from "./api.js";
import { button, field, refuse } from "./controls.js";
import { confirm, form } from "./dialog.js";
import { h } from "./dom.js";
import { bytes } from "./format.js";
import { gpuChoice } from "./gpu-choice.js";
import { plain } from "./names.js";
import { texts } from "./texts.js";
import { run } from "./work.js";

const words = texts.pods;
const PATIENCE_MS = 2000;
export const PROGRESS_MS = 1000;
const CHANGED = "podyd-work";
// What this page does with a pod and podyd has not said yet: its operation, by the instance's name.
const begun = new Map();

/** The pods of a user, sorted by name; `gpus`: how many GPUs of each count for the quota, with those
 * that it waits for. */
export function podsOf(live, user) {
  const more = new Map((live.get("queue") ?? []).map((entry) => [entry.pod, entry.more]));
  return live.all("pod/").filter(([, pod]) => pod.owner === user.name)
    .map(([, pod]) => ({ ...pod, gpus: pod.gpu_ids.length + (more.get(pod.name) ?? 0) }));
}

/** The caller's quota, as it is while the page is open: an admin may change it. */
export async function quotaOf({ live, signal }) {
  const ask = () => get("user/info", {}, { signal, quiet: true });
  const { quota } = await ask();
  live.onReturn(() => ask().then((info) => {
    Object.assign(quota, info.quota);
    tell();
  }).catch(() => {}), signal);
  return quota;
}

/** What is being done with a pod now, as {operation, since?}; undefined if nothing is. */
export function workOn(live, pod) {
  return live.get(`work/${pod.name}`) ?? begun.get(pod.name);
}

/** Calls `changed` now and whenever something about pods or their work changes. */
export function onPods(live, changed, signal) {
  live.on(["pod/", "load/", "work/", "gpu/", "use/", "queue", "me", "host"], changed, signal);
  document.addEventListener(CHANGED, changed, { signal });
}

/** A pod's state in words, with its badge's colour. */
export function stateOf(live, pod) {
  const work = workOn(live, pod);
  if (work) return { text: words.doing[work.operation] ?? words.changing, kind: "warn" };
  return { text: words.states[pod.status] ?? pod.status, kind: { running: "good", error: "bad" }[pod.status] };
}

export function badge({ text, kind }) {
  return h("span", { class: `badge ${kind ?? ""}` }, text);
}

/** Does something with a pod, shown in the tray. `dialog`: what the question stands in; a refusal that
 * comes while it is open is raised, to be shown there; `failed` as of `run`; `asked` resolves to how far
 * it is. Resolves to the answer; undefined if it was refused, or goes on after two seconds, when a
 * dialog need not stay. */
export async function work(pod, path, what, parameters, { dialog, done, failed, asked } = {}) {
  let refused = null;
  begun.set(pod.name, { operation: `/${path}` });
  tell();
  const doing = run(what, (progress) => telling(post(path, parameters), asked, progress), (error) => {
    if (!dialog?.element.open) return failed?.(error) ?? false;
    refused = error;
    return true;
  }).finally(() => {
    begun.delete(pod.name);
    tell();
  });
  const whole = doing.then((value) => {
    if (value !== undefined) done?.(value);
    return value;
  });
  const value = await (dialog ? Promise.race([whole, later(PATIENCE_MS)]) : whole);
  if (refused) throw refused;
  return value;
}

/** `promise`'s value; meanwhile `progress` is told what `asked` resolves to, if that is given. */
export function telling(promise, asked, progress) {
  if (!asked) return promise;
  let over = false;
  // How far it is may be not known for a moment.
  const asking = setInterval(() => asked().then((far) => over || progress(far), () => {}), PROGRESS_MS);
  return promise.finally(() => {
    over = true;
    clearInterval(asking);
  });
}

/** How far the work on a pod is, as {text, share}; the text is `unknown` where podyd is not at it. */
export async function howFar(ins, unknown = "") {
  const { doing, percent, bytes_per_second: speed } = await get("pod/progress", { ins }, { quiet: true });
  return { text: doing === null ? unknown : words.progress(doing, percent, speed && bytes(speed)),
    share: percent === null ? null : percent / 100 };
}

function tell() {
  document.dispatchEvent(new Event(CHANGED));
}

/** Resolves to nothing after so long. */
export function later(ms) {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}

/** The buttons that start, stop, restart and delete a pod; `pod()` gives it as it is now. `deleted` is
 * called afterwards. {element, update()} */
export function powerButtons(live, pod, deleted) {
  const ins = pod().ins;
  const act = (path) => work(pod(), path, words.working[`/${path}`](ins), { ins });
  const start = button(words.start, () => act("pod/start"), { name: words.startPod(ins) });
  const stop = button(words.stop, async () => {
    if (await confirm({ title: words.stopTitle(ins), text: words.stopText, action: words.stop })) act("pod/stop");
  }, { name: words.stopPod(ins) });
  const restart = button(words.restart, async () => {
    if (await confirm({ title: words.restartTitle(ins), text: words.stopText, action: words.restart })) act("pod/restart");
  }, { name: words.restartPod(ins) });
  const remove = button(words.delete, async () => {
    const sure = await confirm({ title: words.deleteTitle(ins), action: words.deletePod(ins), typed: ins, danger: true,
      text: words.deleteText, details: [h("ul", {}, words.lost(pod(), bytes, hasClaims(live, pod())).map((line) => h("li", {}, line)))] });
    if (sure && (await act("pod/delete")) !== undefined) deleted?.();
  }, { kind: "danger", name: words.deletePod(ins) });
  const element = h("div", { class: "buttons", role: "group", "aria-label": words.actions(ins) }, start, stop, restart, remove);
  const update = () => {
    const state = stateOf(live, pod());
    const busy = workOn(live, pod()) && words.busy(state.text);
    const isOff = pod().status === "stopped";
    const focused = document.activeElement;
    // What is frozen or broken may be started as well as stopped.
    start.hidden = pod().status === "running";
    stop.hidden = isOff;
    // The one that was pressed may have gone.
    if ([start, stop].includes(focused) && focused.hidden) (isOff ? start : stop).focus();
    refuse(start, busy);
    refuse(stop, busy);
    refuse(restart, busy || (isOff ? words.notRunning : null));
    refuse(remove, busy);
  };
  update();
  return { element, update };
}

/** Whether a pod has leased a GPU or waits for one. */
function hasClaims(live, pod) {
  return (live.get("queue") ?? []).some((entry) => entry.pod === pod.name)
    || live.all("gpu/").some(([, card]) => card.pods.some((holder) => holder.exclusive && holder.pod === pod.name));
}

/** What a quota leaves: {pods, gpus, disk}, null where it has no limit. `but`: a pod that does not
 * count, since its own figure is asked for. */
export function left(quota, pods, but) {
  const others = pods.filter((pod) => pod.name !== but?.name);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const rest = (limit, used) => (limit < 0 ? null : Math.max(0, limit - used));
  return {
    pods: rest(quota.max_pods, others.length),
    gpus: rest(quota.gpu_count, sum(others.map((pod) => pod.gpus))),
    disk: rest(quota.disk_total, sum(others.map((pod) => Math.max(0, pod.disk_limit ?? 0)))),
  };
}

/** The server's name for ssh: that of this page's URL; through a tunnel, its own. */
export function serverName(live) {
  const isTunnel = /^(localhost|127\..*|\[::1\])$/.test(location.hostname);
  return (isTunnel && live.get("host")?.name) || location.hostname;
}

/** Who has a GPU now, in words. */
export function holders(card) {
  const lessee = card.pods.find((holder) => holder.exclusive);
  if (lessee) return { lessee, text: words.leasedBy(lessee.owner, lessee.pod) };
  const having = card.pods.filter((holder) => holder.attached).map((holder) => holder.pod);
  return { lessee: null, text: having.length ? words.sharedBy(having) : words.nobody };
}

/** What a quota leaves for the disk of a new pod, in words. */
export function diskHint(quota, rest) {
  return texts.newPod.diskHint(rest.disk === null ? null : bytes(rest.disk), quota.disk_limit < 0 ? null : bytes(quota.disk_limit));
}

/** Asks for a new name and copies a pod, or a snapshot of it, to it; leads to the copy. */
export function copyPod({ pod, snapshot, live, user, quota, go, signal }) {
  const rest = left(quota, podsOf(live, user));
  const closing = new AbortController();
  const gpus = gpuChoice({ live, signal: closing.signal, usual: true, hint: texts.newPod.gpusHint(rest.gpus, quota.gpu_count) });
  const isLimited = pod.disk_limit !== null;
  const disk = field(texts.newPod.disk, h("input", { name: "disk", autocomplete: "off", placeholder: texts.newPod.usual, disabled: !isLimited }),
    isLimited ? diskHint(quota, rest) : texts.overview.noDiskLimits);
  const name = field(texts.newPod.name, h("input", { name: "to", required: true, maxlength: 63, autocomplete: "off", autocapitalize: "none", spellcheck: "false" }), texts.newPod.nameHint);
  form({
    title: words.copyTitle(pod.ins, snapshot && plain(snapshot)), action: words.copy, closing,
    fields: [h("p", {}, words.copyText), name.element, gpus.element, disk.element], named: { to: name, disk },
    submit: (dialog) => {
      const to = name.input.value.trim();
      const done = () => { if (!signal.aborted) go(`/pods/${to}`); };
      return work(pod, "pod/copy", words.copying(pod.ins, to), { ins: pod.ins, to, snapshot, gpus: gpus.value(), disk: disk.input.value.trim() || null }, { dialog, done, asked: () => howFar(to) });
    },
  });
}
