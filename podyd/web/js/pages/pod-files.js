// The files of a pod that runs: look, download, upload, make folders, delete. Names are whatever root in the pod
// has made of them: text, each in an isolated direction, with what cannot be seen written out.

import { get, ownKey, ownPage, post, read, Refused, url } from "../api.js";
import { button, field } from "../controls.js";
import { confirm, form } from "../dialog.js";
import { fill, h, refill, setText } from "../dom.js";
import { saveByScript } from "../download.js";
import { bytes, moment } from "../format.js";
import { plain, written } from "../names.js";
import { onPods, work } from "../pods.js";
import { Table } from "../table.js";
import { tar } from "../tar.js";
import { texts } from "../texts.js";
import { run } from "../work.js";

const words = texts.files;
const HOME = "/root";
const MARKS = { directory: "/", link: " →", file: "" };
// So many rows are quickly drawn; with more than a few, a filter is of use.
const MAX_ROWS = 500;
const MANY = 12;
// What podyd gives in place of bytes that are no UTF-8: by such a name nothing is found.
const LOST = "\ufffd";
const WAITING_MS = 500;
// Linux's limit of a name.
const MAX_NAME_BYTES = 255;
let uploads = 0;

export default async function files({ live, signal, ins, pod, path: [, , ...parts] }) {
  const place = parts.length ? `/${parts.filter(Boolean).join("/")}` : HOME;
  const error = h("p", { class: "error", role: "alert" });
  const notTaken = h("p", { class: "error", role: "alert" });
  const note = h("p", { class: "soft", role: "status" });
  const chosen = h("input", { type: "file", multiple: true, hidden: true });
  const chosenFolder = h("input", { type: "file", webkitdirectory: true, hidden: true });
  const filter = h("input", { type: "search", class: "filter", "aria-label": words.filter, placeholder: words.filter });
  const filtering = h("p", {}, filter);
  const reading = h("p", { class: "soft" }, words.reading);
  const single = h("div", { class: "panel", hidden: true });
  const within = (name) => `${place === "/" ? "" : place}/${name}`;
  let entries = [];
  let truncated = false;

  const table = new Table({ caption: [words.caption, h("bdi", {}, written(place))], empty: words.empty, key: (entry) => entry.key, columns: [
    { title: words.name, header: true, cell: named },
    { title: words.size, class: "number", cell: (entry) => (entry.type === "file" ? bytes(entry.size) : texts.none) },
    { title: words.mode, class: "mono", cell: (entry) => entry.mode },
    { title: words.modified, class: "up", cell: (entry) => (entry.modified ? moment(entry.modified) : texts.none) },
    { title: words.actions, once: true, cell: (entry) => actions(entry()) },
  ] });

  function named(entry) {
    const name = h("bdi", { class: "name" }, written(entry.name));
    const isPlace = ["directory", "link"].includes(entry.type) && !entry.name.includes(LOST);
    return [isPlace ? h("a", { href: routeOf(ins, within(entry.name)) }, name) : name,
      h("span", { class: "soft" }, MARKS[entry.type] ?? ` (${entry.type})`)];
  }

  function actions(entry) {
    if (entry.name.includes(LOST)) return h("span", { class: "soft" }, words.lostName);
    const isFolder = entry.type === "directory";
    return h("div", { class: "buttons" },
      (isFolder || entry.type === "file") && download(ins, within(entry.name), isFolder),
      button(words.remove, () => remove(entry), { kind: "danger", name: words.removeNamed(plain(entry.name)) }));
  }

  /** `quiet`: the page looks by itself. */
  async function load(quiet) {
    await look(quiet);
    reading.hidden = !signal.aborted;
  }

  async function look(quiet) {
    let found;
    try {
      found = await get("pod/file", { ins, path: place }, { signal, quiet });
    } catch (refused) {
      // It is a file, to which a link leads.
      if (refused.code === "not_podyd") return lookAtFile(quiet);
      return failed(refused);
    }
    const times = new Map();
    entries = found.entries.map((entry) => {
      const time = (times.get(entry.name) ?? 0) + 1;
      times.set(entry.name, time);
      return { ...entry, key: `${time}/${entry.type}/${entry.name}` };
    }).sort((a, b) => (b.type === "directory") - (a.type === "directory") || a.name.localeCompare(b.name));
    ({ truncated } = found);
    setText(error, "");
    single.hidden = true;
    listing.hidden = false;
    draw();
  }

  async function lookAtFile(quiet) {
    try {
      const { size, modified } = await get("pod/file", { ins, path: place, format: "stat" }, { signal, quiet });
      refill(single, h("p", {}, words.single, h("bdi", {}, written(place)), `, ${bytes(size)}`, modified && ", ", modified && moment(modified)),
        h("div", { class: "buttons" }, download(ins, place, false)));
      setText(error, "");
      single.hidden = false;
      listing.hidden = true;
    } catch (refused) {
      failed(refused);
    }
  }

  function failed(refused) {
    if (refused.name === "AbortError") return;
    // What was there may be there still, when podyd or the engine does not answer.
    if (refused.status >= 400 && refused.status < 500) listing.hidden = single.hidden = true;
    setText(error, refused.message);
  }

  function draw() {
    filtering.hidden = entries.length <= MANY;
    const wanted = filtering.hidden ? "" : filter.value.trim().toLowerCase();
    const matching = entries.filter((entry) => entry.name.toLowerCase().includes(wanted));
    table.update(matching.slice(0, MAX_ROWS));
    setText(table.empty, wanted ? words.noMatch : words.empty);
    setText(note, [matching.length > MAX_ROWS && words.some(MAX_ROWS, matching.length), truncated && words.truncated].filter(Boolean).join(" "));
  }

  async function remove(entry) {
    const isFolder = entry.type === "directory";
    const title = words.removeNamed(plain(entry.name));
    const isSure = await confirm({ title, text: isFolder ? words.removeFolder : words.removeText, action: words.remove, danger: true });
    if (!isSure) return;
    await run(title, () => post("pod/file-delete", { ins, path: within(entry.name), recursive: isFolder ? 1 : 0 }));
    load();
  }

  /** Uploads `pieces` (of pieceOf), one after the other, once who replaces something has said so. */
  async function upload(pieces) {
    if (pieces.length === 0) return;
    // What is there may have changed since.
    await load();
    const there = new Map(entries.map((entry) => [entry.name, entry.type]));
    const wanted = [];
    for (const piece of pieces) {
      if (await mayReplace(piece, there.get(piece.name))) wanted.push(piece);
    }
    if (wanted.length === 0) return;
    const cancel = new AbortController();
    await run(wanted.length === 1 ? words.upload(plain(wanted[0].name)) : words.uploadMany(wanted.length),
      (progress) => sendAll(ins, wanted, within, progress, cancel.signal), undefined, () => cancel.abort());
    load();
  }

  /** Whether a piece goes to where there is something of this type; what podyd refuses is not asked. */
  function mayReplace({ name, format }, type) {
    if (type === undefined || (type === "directory") !== (format === "tar") && type !== "link") return true;
    return confirm(format === "tar"
      ? { title: words.merge(plain(name)), text: words.mergeText, action: words.mergeAction, danger: true }
      : { title: words.replace(plain(name)), text: words.replaceText, action: words.replaceAction, danger: true });
  }

  function makeFolder() {
    const name = field(words.name, h("input", { name: "name", required: true, autocomplete: "off", autocapitalize: "none", spellcheck: "false" }), words.folderHint);
    form({ title: words.newFolder, action: words.makeFolder, fields: [name.element], submit: async () => {
      const wanted = name.input.value;
      if (/^(\s*|\.\.?)$|\//.test(wanted) || new TextEncoder().encode(wanted).length > MAX_NAME_BYTES) throw new Error(words.folderHint);
      const path = within(wanted);
      const isThere = await get("pod/file", { ins, path, format: "stat" }).then(() => true, (refused) => {
        if (refused.code === "no_such_file") return false;
        throw refused;
      });
      if (isThere) throw new Error(words.isThere(plain(wanted)));
      // What is unpacked where nothing is makes a folder there.
      await send(ins, path, { format: "tar", body: tar([]) }, () => {}, signal);
      await load();
    } });
  }

  function isFolderShown() {
    return !running.hidden && !listing.hidden;
  }

  function dropped(event) {
    drop.classList.remove("over");
    // They can be asked for now alone.
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file").map((item) => [item.webkitGetAsEntry(), item.getAsFile()]);
    take(async () => {
      // Whoever is quick does not wait until the folder has been read.
      await loading;
      if (!isFolderShown()) throw new Error(words.noFolder);
      return Promise.all(items.map(async ([entry, file]) => (entry?.isDirectory ? folderPiece(entry.name, await inside(entry, "")) : filePiece(file))));
    });
  }

  /** Uploads what `read` resolves to, which may take a while. */
  async function take(read) {
    setText(notTaken, "");
    reading.hidden = false;
    try {
      await upload(await read());
    } catch (wrong) {
      setText(notTaken, wrong.message);
    } finally {
      reading.hidden = true;
    }
  }

  chosen.addEventListener("change", () => {
    const files = [...chosen.files];
    chosen.value = "";
    take(() => files.map(filePiece));
  });
  chosenFolder.addEventListener("change", () => {
    const files = [...chosenFolder.files];
    chosenFolder.value = "";
    if (files.length === 0) return setText(notTaken, words.emptyFolder);
    // "folder/sub/name": a browser does not tell of folders without files.
    const [top] = files[0].webkitRelativePath.split("/");
    take(() => [folderPiece(top, files.map((file) => ({ path: file.webkitRelativePath.slice(top.length + 1), file })))]);
  });
  filter.addEventListener("input", draw);
  const drop = h("section", { class: "files" });
  const stopped = h("div", { class: "panel", hidden: true }, h("p", {}, words.stopped),
    button(texts.terminal.start, () => work(pod(), "pod/start", texts.terminal.starting(ins), { ins }), { kind: "primary" }));
  const listing = h("div", { hidden: true },
    h("div", { class: "buttons" }, button(words.uploadAction, () => chosen.click(), { kind: "primary" }),
      button(words.uploadFolder, () => chosenFolder.click()), button(words.newFolderAction, makeFolder),
      download(ins, place, true), button(words.reload, () => load())),
    chosen, chosenFolder, h("p", { class: "soft" }, words.dropHint), filtering, table.element, note);
  const running = h("div", {}, crumbs(ins, place), reading, error, single, listing);
  fill(drop, notTaken, stopped, running);
  // Beside the list too: a browser would open what is dropped, in place of this page.
  const { documentElement: page } = document;
  page.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.toggle("over", isFolderShown());
  }, { signal });
  page.addEventListener("dragleave", (event) => { if (event.relatedTarget === null) drop.classList.remove("over"); }, { signal });
  page.addEventListener("drop", (event) => {
    event.preventDefault();
    dropped(event);
  }, { signal });

  let wasRunning = false;
  let loading;
  onPods(live, () => {
    const isRunning = pod().status === "running";
    stopped.hidden = isRunning;
    running.hidden = !isRunning;
    if (isRunning && !wasRunning) loading = load();
    wasRunning = isRunning;
  }, signal);
  live.onReturn(() => { if (wasRunning) load(true); }, signal);
  // A slow one is seen to be read.
  await Promise.race([loading, new Promise((resolve) => setTimeout(resolve, WAITING_MS))]);
  return { element: drop };
}

function routeOf(ins, path) {
  return `#/pods/${ins}/files/${path.split("/").filter(Boolean).map(encodeURIComponent).join("/")}`;
}

function crumbs(ins, place) {
  const parts = place.split("/").filter(Boolean);
  const links = [["/", "/"], ...parts.map((part, at) => [part, `/${parts.slice(0, at + 1).join("/")}`])];
  return h("nav", { class: "crumbs", "aria-label": words.path }, h("ol", {}, links.map(([name, path], at) =>
    h("li", {}, h("a", { href: routeOf(ins, path), "aria-current": at === links.length - 1 && "location" }, h("bdi", { class: "name" }, written(name)))))));
}

/** A link to download something, a folder as a tar file. */
function download(ins, path, isFolder) {
  const own = path === "/" ? ins : path.split("/").at(-1);
  const href = url("pod/file", { ins, path, format: isFolder ? "tar" : null });
  const name = isFolder ? `${own}.tar` : own;
  const link = h("a", { class: "button", href, download: name, "aria-label": words.downloadNamed(plain(own), isFolder) }, isFolder ? words.downloadTar : words.download);
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const cancel = new AbortController();
    run(words.downloadNamed(plain(own), isFolder), (progress) => fetched(ins, path, href, name, progress, cancel.signal), undefined, () => cancel.abort());
  });
  return link;
}

/** Downloads once podyd has said that it can be, since a browser shows nobody why not. */
async function fetched(ins, path, href, name, progress, signal) {
  await get("pod/file", { ins, path, format: "stat" }, { signal });
  await saveByScript(href, name, progress, signal);
  return { log: words.downloaded };
}

/** What is uploaded at once: a file, or a folder with all that is in it as a tar file, which appears
 * in the pod whole or not at all. */
function filePiece(file) {
  return { name: file.name, body: file, mtime: Math.max(0, Math.floor(file.lastModified / 1000)) };
}

function folderPiece(name, entries) {
  return { name, body: tar(entries), format: "tar" };
}

/** All that is in a folder that was dropped, for `tar`. `path`: what is before the names, "" or "sub/". */
async function inside(folder, path) {
  const found = [];
  try {
    const reader = folder.createReader();
    // It gives some at a time, at last none.
    let some;
    do {
      some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      found.push(...some);
    } while (some.length);
    const lists = [];
    for (const entry of found) {
      const below = path + entry.name;
      if (entry.isDirectory) lists.push([{ path: below }], await inside(entry, `${below}/`));
      else lists.push([{ path: below, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }]);
    }
    return lists.flat();
  } catch (wrong) {
    if (!(wrong instanceof DOMException)) throw wrong;
    throw new Error(words.unreadable(plain(folder.fullPath.slice(1)), wrong.message));
  }
}

/** Uploads pieces one after the other; what is refused does not hold up the others. */
async function sendAll(ins, pieces, within, progress, signal) {
  const all = pieces.reduce((sum, { body }) => sum + body.size, 0);
  const refusals = [];
  let before = 0;
  let done = 0;
  let last;
  if (++uploads === 1) window.addEventListener("beforeunload", ask);
  try {
    for (const [at, piece] of pieces.entries()) {
      const sending = (sent) => progress({ text: words.progress(bytes(before + sent), bytes(all), pieces.length > 1 && at + 1, pieces.length), share: all ? (before + sent) / all : 1 });
      sending(0);
      try {
        last = await send(ins, within(piece.name), piece, sending, signal);
        done += 1;
      } catch (refused) {
        if (refused.name === "AbortError") {
          return { log: [words.cancelled(done, pieces.length), refused.isSent && words.mayBe(plain(piece.name)), ...refusals].filter(Boolean).join(" ") };
        }
        refusals.push(pieces.length > 1 ? `${plain(piece.name)}: ${refused.message}` : refused.message);
      }
      before += piece.body.size;
    }
  } finally {
    if (--uploads === 0) window.removeEventListener("beforeunload", ask);
  }
  if (refusals.length) throw new Error(refusals.join(" "));
  return pieces.length === 1 ? last : { log: words.uploaded(pieces.length) };
}

function ask(event) {
  event.preventDefault();
}

/** Uploads a piece. XMLHttpRequest alone tells how far an upload is. An AbortError says by `isSent`
 * that podyd may have it all. */
function send(ins, path, { body, format, mtime }, progress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const asked = ownKey();
    let isSent = false;
    const aborted = () => reject(Object.assign(new DOMException("", "AbortError"), { isSent }));
    request.open("POST", url("pod/file-put", { ins, path, format, mtime }));
    for (const [name, value] of Object.entries(ownPage())) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded }) => progress(loaded);
    request.upload.onload = () => { isSent = true; };
    request.onload = () => read(new Response(request.responseText, { status: request.status,
      headers: { "Content-Type": request.getResponseHeader("Content-Type") ?? "" } }), asked).then(resolve, reject);
    request.onerror = () => reject(new Refused(0, { detail: words.cutOff, code: "unreachable" }));
    request.onabort = aborted;
    signal.addEventListener("abort", () => request.abort());
    if (signal.aborted) aborted();
    else request.send(body);
  });
}
