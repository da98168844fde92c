// The page's frame: who is logged in, which page is shown, and whether what it shows is live.
//
// A page is a module of pages/ whose default function gets a context and returns
// {title, element, close?}:
//   context.path    what follows the page's name in the URL: #/pods/work/files -> ["work", "files"]
//   context.user    {name, is_admin}; null on the wall view of who is not logged in
//   context.live    what podyd says by itself (live.js)
//   context.go      opens another page: go("/pods/work")
//   context.rename  gives the page another title
//   context.whyNot  says why a part of it cannot be shown: whyNot(error, signal)
//   context.signal  aborted when the page is left: for fetches and subscriptions

import { Refused, get, post, raw } from "./api.js";
import { closeDialogs } from "./dialog.js";
import { downloadByScript } from "./download.js";
import { fill, h, refill, setText } from "./dom.js";
import { moment } from "./format.js";
import { Live } from "./live.js";
import login from "./pages/login.js";
import { keep, recall } from "./stored.js";
import { texts } from "./texts.js";
import { run, tray } from "./work.js";

const PAGES = ["pods", "new", "cards", "account", "admin", "wall"];
// Where a page that is not in the navigation belongs.
const BELONGS = { new: "pods" };
const WAITING_MS = 700;
const FIRST_DATA_MS = 8000;
const AGAIN_MS = 2000;
const THEME = "podyd-theme";
const root = document.getElementById("app");
const live = new Live();
let user = null;
let worker = null; // Whose work the tray has.
let leaving = new AbortController();
let unframing = new AbortController();
let shown = 0;
let version = null;

function go(path) {
  if (location.hash === `#${path}`) show();
  else location.hash = path;
}

/** Ends what the page that is shown does: fetches, subscriptions, questions. Returns the number of
 * the next one; who comes back late sees by it that yet another is shown. */
function leave() {
  leaving.abort();
  leaving = new AbortController();
  closeDialogs();
  return ++shown;
}

async function show() {
  const [name = "", ...path] = location.hash.replace(/^#\/?/, "").split("/").map(decode);
  const mine = leave();
  if (isOutdated()) {
    location.reload();
    return;
  }
  const { signal } = leaving;
  const page = name || "pods";
  applyTheme(page === "wall" && ["light", "dark"].includes(path[0]) ? path[0] : theme());
  // A display without a login follows the stream; at the form, nothing is followed.
  if (user === null && page !== "wall") return logIn();
  if (user === null && live.closed) return withoutLogin();
  const main = frame(page);
  // What was there stays meanwhile, unless it takes so long that it should be said.
  const waiting = setTimeout(() => fill(main, h("h1", { class: "visually-hidden" }, texts.nav[BELONGS[page] ?? page]), h("p", { class: "waiting" }, live.isLive ? texts.live.loading : texts.live.connecting)), WAITING_MS);
  signal.addEventListener("abort", () => clearTimeout(waiting));
  let view;
  try {
    if (!PAGES.includes(page)) throw new Refused(404, { detail: texts.errors.noPage });
    const [{ default: make }] = await Promise.all([
      import(`./pages/${page}.js`),
      // No page shall say that there is nothing, only because nothing is known yet.
      live.until(() => live.values.size > 0, FIRST_DATA_MS, signal),
    ]);
    if (mine !== shown) return;
    view = await make({ path, user, live, go, rename, whyNot, signal });
  } catch (error) {
    if (error.name === "AbortError") return;
    view = { title: texts.errors.title, element: h("div", {}, h("h1", {}, texts.errors.title), whyNot(error, signal)) };
  } finally {
    clearTimeout(waiting);
  }
  if (mine !== shown) {
    view.close?.();
    return;
  }
  if (view.close) signal.addEventListener("abort", () => view.close());
  rename(view.title);
  fill(main, view.element);
  const heading = main.querySelector("h1") ?? main;
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

/** What was raised, as an element. A module could not be loaded, or a call not be made: once podyd, or
 * the engine, is there again, both can, and the page is shown anew. */
function whyNot(error, signal) {
  if (!(error instanceof Refused)) console.error(error);
  live.onReturn(show, signal);
  const isModule = error instanceof TypeError && !live.isLive;
  return h("p", { class: "error", role: "alert" }, isModule ? texts.errors.unreachable : error.message);
}

function rename(title) {
  document.title = texts.title(title);
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** The frame around a page, made once per login; returns its <main>. */
function frame(page) {
  let main = document.getElementById("main");
  if (main === null) {
    main = h("main", { id: "main" });
    unframing = new AbortController();
    fill(root, h("a", { class: "skip", href: "#main", onclick: skip }, texts.nav.skip), header(), banner(), main, tray);
  }
  for (const link of root.querySelectorAll("nav a")) {
    if (link.dataset.page === (BELONGS[page] ?? page)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  root.classList.toggle("wall", page === "wall");
  return main;
}

function skip(event) {
  event.preventDefault();
  document.querySelector("#main h1")?.focus();
}

function header() {
  const names = ["pods", "cards", "account", ...(user?.is_admin ? ["admin"] : []), "wall"];
  const links = names.map((name) =>
    h("li", {}, h("a", { href: `#/${name}`, data: { page: name } }, texts.nav[name], name === "account" && [" ", unread()])));
  return h("header", {}, h("strong", { class: "brand" }, "podyd"),
    user && h("nav", { "aria-label": texts.nav.label }, h("ul", {}, links)),
    h("div", { class: "who" }, themes(), user && h("span", { class: "user" }, user.name),
      user && h("button", { type: "button", class: "quiet", onclick: logOut }, texts.nav.logout)));
}

/** How many notices have not been read. */
function unread() {
  const element = h("span", { class: "badge", hidden: true });
  live.on(["me"], () => {
    const count = live.get("me")?.unread ?? 0;
    element.hidden = count === 0;
    setText(element, texts.nav.unread(count));
  }, unframing.signal);
  return element;
}

function themes() {
  const select = h("select", { "aria-label": texts.nav.theme },
    ["auto", "light", "dark"].map((name) => h("option", { value: name }, texts.nav[name])));
  select.value = theme();
  select.addEventListener("change", () => {
    keep(THEME, select.value);
    applyTheme(select.value);
  });
  return select;
}

function theme() {
  return recall(THEME) ?? "auto";
}

function applyTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
}

/** Says that what is shown is not live, and since when; or what is wrong with the server. */
function banner() {
  const element = h("div", { class: "banner", role: "status", hidden: true });
  const show = () => {
    const problem = live.get("host")?.problem;
    const since = live.lastTime;
    element.hidden = live.isLive && !problem;
    document.documentElement.classList.toggle("stale", !live.isLive);
    if (live.isLive) refill(element, problem);
    else if (since) refill(element, texts.live.lost, " ", moment(since));
    else refill(element, texts.live.connecting);
  };
  live.onState(show, unframing.signal);
  live.on(["host"], show, unframing.signal);
  return element;
}

/** Shows the form; `why`: what is said in it at first. */
function logIn(why) {
  leave();
  unframing.abort();
  live.close();
  document.documentElement.classList.remove("stale");
  const view = login({ why, loggedIn });
  rename(view.title);
  fill(root, view.element);
  view.focus();
}

async function loggedIn() {
  ({ user } = await get("user/info"));
  if (user.name !== worker) fill(tray);
  worker = user.name;
  fill(root);
  live.open();
  show();
}

async function logOut() {
  try {
    await post("user/logout");
  } catch (error) {
    // The session goes on, unless it has ended before.
    if (error.status !== 401) {
      run(texts.nav.logout, () => Promise.reject(error));
      return;
    }
  }
  user = null;
  fill(tray);
  withoutLogin();
}

/** For who has no session: the wall where podyd.yaml shows it to everybody, else the form. */
async function withoutLogin(why) {
  let isOpen = await isWallOpen();
  if (isOpen !== true) logIn(why);
  // podyd may be just starting, and at such a display there is nobody.
  while (isOpen === null) {
    await new Promise((resolve) => { setTimeout(resolve, AGAIN_MS); });
    if (user !== null) return;
    isOpen = await isWallOpen();
  }
  if (isOpen !== true || user !== null) return;
  live.close();
  unframing.abort();
  fill(root);
  live.open();
  show();
}

/** Whether this is the wall, and everybody here may see it; null if podyd does not answer. */
async function isWallOpen() {
  if (!isWall()) return false;
  try {
    await raw("status.txt");
    return true;
  } catch (error) {
    return error.status > 0 && error.status < 500 ? false : null;
  }
}

function isWall() {
  return location.hash.startsWith("#/wall");
}

document.addEventListener("podyd-logged-out", (event) => {
  if (user === null) return;
  user = null;
  // The page may have been logged out in another tab, and the API speaks of HTTP Basic then.
  const { code, message } = event.detail;
  withoutLogin(code === "unauthorized" ? texts.login.loggedOut : `${texts.login.ended} ${message}`);
});
/** Whether podyd has been updated since this page was loaded: new modules do not fit to old ones. */
function isOutdated() {
  return version !== null && (live.get("host")?.podyd ?? version) !== version;
}

live.on(["host"], () => {
  version ??= live.get("host")?.podyd ?? null;
  // Where nobody works, it need not wait for the next page.
  if (isOutdated() && isWall()) location.reload();
});
live.on(["me"], () => {
  if (user === null) return;
  const me = live.get("me");
  // The stream may go on without a login, where it is for all; this call says that the login has ended.
  if (me === undefined) get("user/info", {}, { quiet: true }).catch(() => {});
  // In another tab somebody else has logged in.
  else if (me.user !== user.name) location.reload();
});
window.addEventListener("hashchange", show);
applyTheme(theme());
downloadByScript();
try {
  await loggedIn();
} catch (error) {
  withoutLogin(error.status === 401 ? undefined : error.message);
}
