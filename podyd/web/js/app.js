// The page's frame: who is logged in, which page is shown, and whether what it shows is live.
//
// A page is a module of pages/ whose default function gets a context and returns
// {title, element, close?}:
//   context.path    what follows the page's name in the URL: #/pods/work/files -> ["work", "files"]
//   context.user    {name, is_admin}; null on the wall view of who is not logged in
//   context.live    what podyd says by itself (live.js)
//   context.go      opens another page: go("/pods/work")
//   context.signal  aborted when the page is left: for fetches and subscriptions

import { get, post } from "./api.js";
import { downloadByScript } from "./download.js";
import { fill, h, refill } from "./dom.js";
import { moment } from "./format.js";
import { Live } from "./live.js";
import { texts } from "./texts.js";
import { tray } from "./work.js";

const PAGES = ["pods", "new", "cards", "account", "admin", "wall"];
// Where a page that is not in the navigation belongs.
const BELONGS = { new: "pods" };
const WAITING_MS = 700;
const THEME = "podyd-theme";
const root = document.getElementById("app");
const live = new Live();
let user = null;
let leaving = new AbortController();
let shown = 0;

function go(path) {
  if (location.hash === `#${path}`) show();
  else location.hash = path;
}

async function show() {
  const [name = "", ...path] = location.hash.replace(/^#\/?/, "").split("/").map(decode);
  leaving.abort();
  leaving = new AbortController();
  const mine = ++shown;
  const page = name || "pods";
  if (user === null && page !== "wall") return logIn();
  const main = frame(page);
  // What was there stays meanwhile, unless it takes so long that it should be said.
  const waiting = setTimeout(() => fill(main, h("h1", { class: "visually-hidden" }, texts.nav[BELONGS[page] ?? page]), h("p", { class: "waiting" }, texts.live.connecting)), WAITING_MS);
  let view;
  try {
    if (!PAGES.includes(page)) throw new Error(texts.errors.noPage);
    const { default: make } = await import(`./pages/${page}.js`);
    if (mine !== shown) return;
    view = await make({ path, user, live, go, signal: leaving.signal });
  } catch (error) {
    if (error.name === "AbortError") return;
    console.error(error);
    view = { title: texts.title(), element: h("div", {}, h("h1", {}, texts.errors.title),
      h("p", { class: "error", role: "alert" }, error.message)) };
  } finally {
    clearTimeout(waiting);
  }
  if (mine !== shown) {
    view.close?.();
    return;
  }
  if (view.close) leaving.signal.addEventListener("abort", () => view.close());
  document.title = texts.title(view.title);
  fill(main, view.element);
  const heading = main.querySelector("h1") ?? main;
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
  window.scrollTo(0, 0);
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
    h("li", {}, h("a", { href: `#/${name}`, data: { page: name } }, texts.nav[name])));
  return h("header", {}, h("strong", { class: "brand" }, "podyd"),
    user && h("nav", { "aria-label": texts.nav.label }, h("ul", {}, links)),
    h("div", { class: "who" }, themes(), user && h("span", { class: "user" }, user.name),
      user && h("button", { type: "button", class: "quiet", onclick: logOut }, texts.nav.logout)));
}

function themes() {
  const select = h("select", { "aria-label": texts.nav.theme },
    ["auto", "light", "dark"].map((name) => h("option", { value: name }, texts.nav[name])));
  select.value = theme();
  select.addEventListener("change", () => {
    try {
      localStorage.setItem(THEME, select.value);
    } catch { /* A browser that stores nothing has the system's colours next time. */ }
    applyTheme(select.value);
  });
  return select;
}

function theme() {
  try {
    return localStorage.getItem(THEME) ?? "auto";
  } catch {
    return "auto";
  }
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
    const since = live.lastMessage && new Date(live.lastMessage).toISOString();
    element.hidden = live.isLive && !problem;
    document.documentElement.classList.toggle("stale", !live.isLive);
    if (live.isLive) refill(element, problem);
    else if (since) refill(element, texts.live.lost, " ", moment(since));
    else refill(element, texts.live.connecting);
  };
  live.onState(show);
  live.on(["host"], show);
  return element;
}

async function logIn(why) {
  live.close();
  const { default: make } = await import("./pages/login.js");
  const view = make({ why, loggedIn });
  document.title = texts.title(view.title);
  fill(root, view.element);
  view.focus();
}

async function loggedIn() {
  ({ user } = await get("user/info"));
  fill(root);
  live.open();
  show();
}

async function logOut() {
  await post("user/logout").catch(() => {});
  user = null;
  logIn();
}

document.addEventListener("podyd-logged-out", (event) => {
  if (user === null) return;
  user = null;
  leaving.abort();
  logIn(event.detail.message);
});
window.addEventListener("hashchange", show);
applyTheme(theme());
downloadByScript();
try {
  await loggedIn();
} catch (error) {
  if (location.hash.startsWith("#/wall")) {
    live.open();
    show();
  } else {
    logIn(error.status === 401 ? undefined : error.message);
  }
}
