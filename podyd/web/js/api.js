// The HTTP API: each call is one of podyd's own, at a relative URL, so that it also works below a
// prefix behind a proxy.

import { keep, recall } from "./stored.js";
import { texts } from "./texts.js";

// Half of the login: the cookie, which is the other one, goes to every port of this host name, and
// so to what a pod serves there. This is kept where no other port can read it.
const KEY = "podyd-key";
// In place of a key, where a call has a login of its own.
const OWN_LOGIN = Symbol("own login");
let key = recall(KEY);

/** Logs in, or raises Refused. */
export async function logIn(login) {
  const answer = await post("user/login", {}, { login });
  ({ key } = answer);
  keep(KEY, key);
}

/** What tells podyd that its own page asks, also before it is logged in. Another tab may have logged
 * in meanwhile. */
export function ownPage() {
  return { "X-Podyd-Page": ownKey() ?? "1" };
}

/** The key of the page's login as it is now. */
export function ownKey() {
  return recall(KEY) ?? key;
}

/** The protocols of a WebSocket, which tell the same. */
export function protocols() {
  const own = ownKey();
  return own ? ["podyd", `podyd-key.${own}`] : ["podyd"];
}

/** What podyd refused, or why it could not be asked (`status` 0). `message` is its own sentence with
 * its advice; `code` as in the API. */
export class Refused extends Error {
  constructor(status, body) {
    super([body.detail, body.advice].filter(Boolean).join(" "));
    this.status = status;
    this.code = body.code;
    this.body = body;
  }
}

/** The URL of a call, absolute, with its parameters; undefined and null ones are left out. */
export function url(path, parameters = {}) {
  const target = new URL(path, document.baseURI.split("#")[0]);
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined && value !== null) target.searchParams.set(name, String(value));
  }
  return target;
}

/** GET a JSON answer: get("pod/info", {ins: "work"}). `quiet`: the page asks by itself, which does
 * not keep the session from ending. Raises Refused. */
export function get(path, parameters, { signal, quiet } = {}) {
  return answer(url(path, parameters), { signal, headers: quiet ? { "X-Podyd-Live": "1" } : {} });
}

/** POST; the parameters go in the body. `login`: {user, password} in place of the session. */
export function post(path, parameters = {}, { signal, login } = {}) {
  const given = Object.entries(parameters).filter(([, v]) => v !== undefined && v !== null);
  const headers = { "Content-Type": "application/json" };
  // Without the second one podyd takes it for a login that the browser has added by itself.
  if (login) Object.assign(headers, { Authorization: basic(login), "X-Podyd-Login": "1" });
  return answer(url(path), {
    method: "POST", signal, headers, body: JSON.stringify(Object.fromEntries(given)),
  });
}

/** The response to a GET whose answer is no JSON, at its head; at a URL or a path. Raises Refused. */
export async function raw(target, signal) {
  const asked = ownKey();
  const response = await ask(url(target), { signal });
  if (!response.ok) await read(response, asked);
  return response;
}

async function answer(target, options) {
  const asked = options.headers?.Authorization === undefined ? ownKey() : OWN_LOGIN;
  return read(await ask(target, options), asked);
}

async function ask(target, options) {
  try {
    return await fetch(target, {
      ...options, headers: { ...options.headers, ...ownPage() }, credentials: "same-origin", cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
}

/** The JSON of a response to what was asked with the key `asked`. Raises Refused; that the login has ended
 * is told to who listens, unless somebody has logged in again since. What is not JSON, which may be a file
 * of any size, is not read: code `not_podyd`. */
export async function read(response, asked) {
  const isJson = response.headers.get("Content-Type")?.startsWith("application/json");
  const body = isJson ? await json(response) : null;
  if (!isJson) response.body?.cancel().catch(() => {});
  if (response.ok && body !== null) return body;
  const refused = new Refused(
    response.status, body ?? { detail: texts.errors.notPodyd(response.status), code: "not_podyd" },
  );
  if (response.status === 401 && asked === ownKey()) {
    document.dispatchEvent(new CustomEvent("podyd-logged-out", { detail: refused }));
  }
  throw refused;
}

function unreachable() {
  return new Refused(0, { detail: texts.errors.unreachable, code: "unreachable" });
}

async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error instanceof SyntaxError) return null;
    throw unreachable();
  }
}

function basic({ user, password }) {
  const bytes = new TextEncoder().encode(`${user}:${password}`);
  return `Basic ${btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))}`;
}

/** The URL of a WebSocket of the API. */
export function socketUrl(path, parameters) {
  const target = url(path, parameters);
  target.protocol = target.protocol === "https:" ? "wss:" : "ws:";
  return target;
}
