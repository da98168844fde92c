// What podyd says by itself: one stream of what has changed (/events), kept as values by key, such
// as "gpu/0" or "pod/alice-work". Pages subscribe to keys and are called when these change.

import { get, protocols, socketUrl } from "./api.js";
import { clock, setClock } from "./format.js";

const SILENT_MS = 12_000; // podyd sends something each 5 s.
// A timer of 1 s that is so late, without a message meanwhile: the machine or the page was asleep. (A
// browser lets the timers of a hidden page wait for a minute, but not its messages.) For a page that
// wakes, a last message of so long ago says that there may be no connection any more.
const OLD_MS = 6_000;
// Between attempts, and how much longer each time; so many pages do not ask a busy podyd too often.
const FIRST_RETRY_MS = 200;
const RETRY_GROWTH = 1.5;
const LAST_RETRY_MS = 5_000;
// A network that is just coming up loses what is sent: an attempt gets so long at first, and then as
// long as a podyd may take to which a whole lab comes back.
const ATTEMPT_MS = 1_500;

export class Live {
  constructor() {
    this.values = new Map();
    this.listeners = new Set();
    this.stateListeners = new Set();
    this.isLive = false;
    this.lastMessage = 0; // When the last message came: ms since 1970 by this clock.
    this.lastTime = null; // The same by podyd's clock, in ISO 8601.
    this.retry = FIRST_RETRY_MS;
  }

  /** Connects, and stays connected until `close`. */
  open() {
    this.closed = false;
    this.lastTick = Date.now();
    this.connect();
    this.ticking = setInterval(() => this.tick(), 1000);
    this.listening = new AbortController();
    const wake = (event) => document.visibilityState === "visible" && this.wake(event.type === "online");
    for (const [target, name] of [[document, "visibilitychange"], [document, "resume"], [window, "pageshow"], [window, "online"]]) {
      target.addEventListener(name, wake, { signal: this.listening.signal });
    }
  }

  close() {
    this.closed = true;
    clearInterval(this.ticking);
    clearTimeout(this.retrying);
    this.listening?.abort();
    this.socket?.close();
    this.values.clear();
    this.setLive(false);
  }

  /** The value of a key, undefined if there is none. */
  get(key) {
    return this.values.get(key);
  }

  /** The values of all keys that begin with `prefix`, as [rest of the key, value], sorted. */
  all(prefix) {
    return [...this.values]
      .filter(([key]) => key.startsWith(prefix))
      .map(([key, value]) => [key.slice(prefix.length), value])
      .sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  }

  /** Calls `changed(keys)` once now and whenever a key changes that begins with one of these
   * prefixes; until `signal` is aborted. */
  on(prefixes, changed, signal) {
    if (signal?.aborted) return;
    const listener = (keys) => {
      const mine = keys.filter((key) => prefixes.some((prefix) => key.startsWith(prefix)));
      if (mine.length) changed(mine);
    };
    this.listeners.add(listener);
    signal?.addEventListener("abort", () => this.listeners.delete(listener));
    changed([...this.values.keys()]);
  }

  /** Calls `changed(isLive)` now and whenever the stream is lost or there again. */
  onState(changed, signal) {
    if (signal?.aborted) return;
    this.stateListeners.add(changed);
    signal?.addEventListener("abort", () => this.stateListeners.delete(changed));
    changed(this.isLive);
  }

  /** Calls `again()` when the page is seen again, or podyd or the engine is there again: what is not in the
   * stream may have changed meanwhile. Not while nobody sees it. */
  onReturn(again, signal) {
    const isWell = () => this.isLive && !this.get("host")?.problem;
    let was = isWell();
    const look = ({ type }) => {
      const isBack = isWell() && (!was || type === "visibilitychange");
      was = isWell();
      if (isBack && !document.hidden) again();
    };
    this.onState(look, signal);
    this.on(["host"], look, signal);
    document.addEventListener("visibilitychange", look, { signal });
  }

  /** Resolves once `isSo()` by what podyd says, after `limit` ms, or when `signal` is aborted. */
  until(isSo, limit, signal) {
    if (isSo() || signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const done = new AbortController();
      const finish = () => {
        clearTimeout(timer);
        done.abort();
        resolve();
      };
      const timer = setTimeout(finish, limit);
      signal.addEventListener("abort", finish, { signal: done.signal });
      this.on([""], () => { if (isSo()) finish(); }, done.signal);
    });
  }

  /** The time now by podyd's clock, in ms since 1970. */
  now() {
    return clock();
  }

  /** Connects anew. One that has not opened in time gives way to the next: browsers try one at a time. */
  connect() {
    const old = this.socket;
    const socket = new WebSocket(socketUrl("events"), protocols());
    this.socket = socket;
    old?.close();
    this.connectedAt = Date.now();
    let wasOpen = false;
    this.connectIn(Math.max(2 * this.retry, ATTEMPT_MS));
    socket.onopen = () => {
      if (socket !== this.socket) return;
      clearTimeout(this.retrying);
      this.connectedAt = Date.now();
    };
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      const message = JSON.parse(event.data);
      if (wasOpen && this.hasWaited(message)) {
        this.restart();
        return;
      }
      wasOpen = true;
      this.take(message);
    };
    socket.onclose = () => {
      if (socket !== this.socket || this.closed) return;
      this.setLive(false);
      // All pages of a podyd that stops lose it together.
      this.connectIn(this.retry * (0.5 + Math.random()));
      // A browser does not say why: perhaps the login has ended, and then this call says so.
      if (!wasOpen) get("user/info", {}, { quiet: true }).catch(() => {});
    };
  }

  connectIn(ms) {
    clearTimeout(this.retrying);
    this.retrying = setTimeout(() => {
      this.setLive(false);
      this.connect();
    }, ms);
    this.retry = Math.min(this.retry * RETRY_GROWTH, LAST_RETRY_MS);
  }

  /** What is shown may be of long ago, and the connection gone. */
  restart() {
    this.setLive(false);
    this.retry = FIRST_RETRY_MS;
    this.connect();
  }

  /** Whether a connection was begun, or opened, a moment ago, which needs no other one. */
  isNew() {
    return this.socket.readyState <= WebSocket.OPEN && Math.abs(Date.now() - this.connectedAt) < ATTEMPT_MS;
  }

  /** The page is seen again, or runs again; `isElsewhere`: perhaps in another network. */
  wake(isElsewhere) {
    const isOld = Date.now() - this.lastMessage > OLD_MS;
    if ((isOld || isElsewhere) && !this.isNew()) this.restart();
  }

  tick() {
    const now = Date.now();
    // A clock that was set back tells nothing of how long that was.
    const wasAsleep = now - Math.max(this.lastTick, this.lastMessage) > OLD_MS || now < this.lastTick - OLD_MS;
    this.lastTick = now;
    const isSilent = now - Math.max(this.lastMessage, this.connectedAt) > SILENT_MS;
    if ((wasAsleep || isSilent) && !this.isNew()) this.restart();
  }

  /** Whether a message came while nothing ran here, and is of then. */
  hasWaited(message) {
    return Date.now() - this.lastTick > OLD_MS && clock() - Date.parse(message.time) > OLD_MS;
  }

  take(message) {
    this.lastMessage = Date.now();
    this.lastTime = message.time ?? this.lastTime;
    setClock(message.time);
    this.retry = FIRST_RETRY_MS;
    // A newer podyd may say more, or less, than this page knows.
    const { set = {}, gone = [], whole = false } = message;
    const changed = new Set([...Object.keys(set), ...gone]);
    if (whole) {
      for (const key of this.values.keys()) changed.add(key);
      this.values.clear();
    }
    for (const [key, value] of Object.entries(set)) this.values.set(key, value);
    for (const key of gone) this.values.delete(key);
    const keys = [...changed];
    if (keys.length) callAll(this.listeners, keys);
    this.setLive(true);
  }

  setLive(isLive) {
    if (isLive === this.isLive) return;
    this.isLive = isLive;
    callAll(this.stateListeners, isLive);
  }
}

/** Calls each; what one raises is reported, and keeps nothing from the others. */
function callAll(listeners, value) {
  for (const listener of [...listeners]) {
    try {
      listener(value);
    } catch (error) {
      reportError(error);
    }
  }
}
