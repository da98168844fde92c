// The files of a pod that runs: look, download, upload, delete. Names are whatever root in the pod
// has made of them: text, each in an isolated direction.

import { get, post, read, Refused, url } from "../api.js";
import { button } from "../controls.js";
import { confirm } from "../dialog.js";
import { fill, h } from "../dom.js";
import { bytes, moment } from "../format.js";
import { onPods, podsOf, work } from "../pods.js";
import { Table } from "../table.js";
import { texts } from "../texts.js";
import { run } from "../work.js";

const words = texts.files;
const HOME = "/root";
const MARKS = { directory: "/", link: " →" };

export default async function files(context, ins) {
  const { live, user, go, signal, path: [, , ...parts] } = context;
  const place = parts.length && parts.some(Boolean) ? `/${parts.filter(Boolean).join("/")}` : parts.length ? "/" : HOME;
  const error = h("p", { class: "error", role: "alert" });
  const note = h("p", { class: "soft", role: "status" });
  const chosen = h("input", { type: "file", multiple: true, class: "visually-hidden", tabindex: "-1", "aria-hidden": "true" });
  const within = (name) => `${place === "/" ? "" : place}/${name}`;
  const pod = () => podsOf(live, user).find((one) => one.ins === ins);

  const table = new Table({ caption: words.caption(place), empty: words.empty, key: (entry) => entry.name, columns: [
    { title: words.name, header: true, once: true, cell: (entry) => named(entry()) },
    { title: words.size, class: "number", cell: (entry) => (entry.type === "file" ? bytes(entry.size) : texts.none) },
    { title: words.mode, class: "mono", cell: (entry) => entry.mode },
    { title: words.modified, cell: (entry) => (entry.modified ? moment(entry.modified) : texts.none) },
    { title: words.actions, once: true, cell: (entry) => actions(entry()) },
  ] });

  function named(entry) {
    const name = h("bdi", {}, entry.name);
    const href = ["directory", "link"].includes(entry.type) ? routeOf(ins, within(entry.name)) : null;
    return [href ? h("a", { href }, name) : name, h("span", { class: "soft" }, MARKS[entry.type] ?? (entry.type === "file" ? "" : ` (${entry.type})`))];
  }

  function actions(entry) {
    const isFolder = entry.type === "directory";
    return h("div", { class: "buttons" },
      (isFolder || entry.type === "file") && download(ins, within(entry.name), entry.name, isFolder),
      button(words.remove, () => remove(entry), { kind: "danger", name: words.removeNamed(entry.name) }));
  }

  async function load() {
    try {
      const found = await get("pod/file", { ins, path: place, format: null }, { signal });
      fill(error);
      table.element.hidden = false;
      table.update(found.entries.sort((a, b) => (b.type === "directory") - (a.type === "directory") || a.name.localeCompare(b.name)));
      fill(note, found.truncated && words.truncated);
    } catch (refused) {
      if (refused.name === "AbortError") return;
      table.element.hidden = true;
      fill(error, refused.message);
    }
  }

  async function remove(entry) {
    const isFolder = entry.type === "directory";
    const isSure = await confirm({ title: words.removeNamed(entry.name), text: isFolder ? words.removeFolder : words.removeText, action: words.remove, danger: true });
    if (!isSure) return;
    await run(words.removeNamed(entry.name), () => post("pod/file-delete", { ins, path: within(entry.name), recursive: isFolder ? 1 : 0 }));
    load();
  }

  async function upload(list) {
    const there = new Set([...table.rows.keys()]);
    for (const file of list) {
      if (there.has(file.name) && !(await confirm({ title: words.replace(file.name), text: words.replaceText, action: words.replaceAction, danger: true }))) continue;
      const cancel = new AbortController();
      run(words.upload(file.name), (progress) => send(ins, within(file.name), file, progress, cancel.signal), undefined, () => cancel.abort()).then(load);
    }
  }

  chosen.addEventListener("change", () => {
    upload([...chosen.files]);
    chosen.value = "";
  });
  const drop = h("section", { class: "files", ondragover: (event) => event.preventDefault(), ondrop: (event) => {
    event.preventDefault();
    upload([...event.dataTransfer.files]);
  } });
  const stopped = h("div", { class: "panel", hidden: true }, h("p", {}, words.stopped),
    button(texts.terminal.start, () => work(pod(), "pod/start", texts.terminal.starting(ins), { ins }), { kind: "primary" }));
  const running = h("div", {}, crumbs(ins, place), h("div", { class: "buttons" }, button(words.uploadAction, () => chosen.click(), { kind: "primary" }),
    download(ins, place, place === "/" ? "root" : place.split("/").at(-1), true), button(words.reload, load)), chosen, h("p", { class: "soft" }, words.dropHint), error, table.element, note);
  fill(drop, stopped, running);

  let wasRunning = false;
  onPods(live, () => {
    const isRunning = pod()?.status === "running";
    stopped.hidden = isRunning || pod() === undefined;
    running.hidden = !isRunning;
    if (isRunning && !wasRunning) load();
    wasRunning = isRunning;
  }, signal);
  return { element: drop };
}

function routeOf(ins, path) {
  return `#/pods/${ins}/files/${path.split("/").filter(Boolean).map(encodeURIComponent).join("/")}${path === "/" ? "/" : ""}`;
}

function crumbs(ins, place) {
  const parts = place.split("/").filter(Boolean);
  const links = [["/", "/"], ...parts.map((part, at) => [part, `/${parts.slice(0, at + 1).join("/")}`])];
  return h("nav", { class: "crumbs", "aria-label": words.path }, h("ol", {}, links.map(([name, path], at) =>
    h("li", {}, h("a", { href: routeOf(ins, path), "aria-current": at === links.length - 1 && "location" }, h("bdi", {}, name))))));
}

/** A link with which the browser itself downloads, a folder as a tar file. */
function download(ins, path, name, isFolder) {
  return h("a", { class: "button", href: url("pod/file", { ins, path, format: isFolder ? "tar" : null }), download: isFolder ? `${name}.tar` : name,
    "aria-label": words.downloadNamed(name, isFolder) }, isFolder ? words.downloadTar : words.download);
}

/** Uploads a file. XMLHttpRequest alone tells how far an upload is. */
function send(ins, path, file, progress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url("pod/file-put", { ins, path, mtime: Math.floor(file.lastModified / 1000) }));
    request.upload.onprogress = ({ loaded }) => progress({ text: words.progress(bytes(loaded), bytes(file.size)), share: file.size ? loaded / file.size : 1 });
    request.onload = () => read(new Response(request.responseText, { status: request.status })).then(resolve, reject);
    request.onerror = () => reject(new Refused(0, { detail: texts.errors.unreachable, code: "unreachable" }));
    request.onabort = () => reject(new DOMException("", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
