// A pod's snapshots.

import { get, post } from "../api.js";
import { button, field, isHeldBack, refuse, showRefusal } from "../controls.js";
import { confirm } from "../dialog.js";
import { fill, h, setText } from "../dom.js";
import { bytes, moment } from "../format.js";
import { plain, written } from "../names.js";
import { copyPod, howFar, onPods, quotaOf, stateOf, work, workOn } from "../pods.js";
import { Table } from "../table.js";
import { texts } from "../texts.js";
import { run } from "../work.js";

const words = texts.snapshots;

export default async function snapshots(context) {
  const { live, signal, ins, pod } = context;
  const [quota, first] = await Promise.all([
    quotaOf(context), get("pod/snapshots", { ins }, { signal, quiet: true }),
  ]);
  let all = first;
  const error = h("p", { class: "error", role: "alert" });
  const room = h("p", { class: "soft" });
  const name = field(words.name, h("input", { name: "name", maxlength: 63, autocomplete: "off", spellcheck: "false", placeholder: words.usual }), words.nameHint);
  const make = h("button", { type: "submit", class: "primary" }, words.make);
  const buttons = new Map();

  const table = new Table({
    caption: words.caption, empty: words.none, key: (snapshot) => snapshot.name,
    columns: [
      { title: words.columns.name, header: true, class: "title", cell: (snapshot) => h("bdi", {}, written(snapshot.name)) },
      { title: words.columns.created, cell: (snapshot) => moment(snapshot.created) },
      { title: words.columns.size, class: "number", cell: (snapshot) => bytes(snapshot.size) },
      { title: words.columns.actions, once: true, cell: (snapshot) => {
        const row = actions(snapshot());
        buttons.set(snapshot().name, row);
        return h("div", { class: "buttons" }, row);
      } },
    ],
  });

  /** Shows an error here, while this page is open. */
  const refused = (wrong) => {
    fill(error, wrong.message);
    return error.isConnected;
  };
  const act = async (what, path, parameters, failed = refused) => {
    fill(error);
    await run(what, () => post(path, { ins, ...parameters }), failed);
    await refresh();
  };

  function actions({ name: snapshot, created }) {
    const shown = plain(snapshot);
    return [
      button(words.restore, async () => {
        const sure = await confirm({ title: words.restoreTitle(ins, shown), text: [words.restoreText, moment(created), ". ", pod().status === "running" && words.restoreRunning], action: words.restore, danger: true });
        if (!sure) return;
        fill(error);
        await work(pod(), "pod/restore", words.restoring(ins, shown), { ins, name: snapshot }, { failed: refused, asked: () => howFar(ins) });
        await refresh();
      }, { name: words.restoreTitle(ins, shown) }),
      button(words.copy, () => copyPod({ ...context, quota, pod: pod(), snapshot }), { name: texts.pods.copyTitle(ins, shown) }),
      button(words.delete, async () => {
        const sure = await confirm({ title: words.deleteTitle(shown), text: words.deleteText, action: words.delete, danger: true });
        if (sure) await act(words.deleting(shown), "pod/snapshot-delete", { name: snapshot });
      }, { kind: "danger", name: words.deleteTitle(shown) }),
    ];
  }

  async function refresh() {
    if (signal.aborted) return;
    try {
      all = await get("pod/snapshots", { ins }, { signal, quiet: true });
      update();
    } catch (wrong) {
      if (wrong.name !== "AbortError") refused(wrong);
    }
  }

  function update() {
    table.update([...all].reverse());
    const busy = workOn(live, pod()) ? texts.pods.busy(stateOf(live, pod()).text) : null;
    for (const row of buttons.values()) for (const one of row) refuse(one, busy);
    const isFull = quota.max_snapshots >= 0 && all.length >= quota.max_snapshots;
    setText(room, quota.max_snapshots < 0 ? "" : words.room(all.length, quota.max_snapshots));
    refuse(make, busy ?? (isFull ? words.full(quota.max_snapshots) : null));
  }

  async function submit(event) {
    event.preventDefault();
    if (isHeldBack(make, error)) return;
    let isMade = true;
    await act(words.making(ins), "pod/snapshot", { name: name.input.value.trim() || null }, (wrong) => {
      isMade = false;
      showRefusal(wrong, { name }, error);
      return error.isConnected;
    });
    if (isMade) name.input.value = "";
  }

  // Another window, or `pody`, may have made one.
  live.onReturn(refresh, signal);
  let doing;
  onPods(live, () => {
    const before = doing;
    doing = live.get(`work/${pod().name}`)?.operation;
    if (before?.startsWith("/pod/snapshot") && doing !== before) refresh();
    update();
  }, signal);
  const element = h("div", {}, h("p", { class: "soft" }, words.text),
    h("form", { class: "inline", onsubmit: submit }, name.element, make), room, error, table.element);
  return { element };
}
