// One terminal on the screen: xterm.js with the page's colours, and the session behind it.

import { get } from "./api.js";
import { toClipboard } from "./controls.js";
import { h } from "./dom.js";
import { bytes } from "./format.js";
import { Shell } from "./shell.js";
import { recall } from "./stored.js";
import { makeStylesStrict } from "./strict-styles.js";
import { texts } from "./texts.js";

const words = texts.terminal;
const QUIET_MS = 100;
// Of a session of tmux that was left and goes on; tmux itself says 0 then too.
const LEFT = 75;
// What is answered to who asks without a WebSocket, if with one nothing is refused.
const UPGRADE_REQUIRED = 426;
const RETRY_MS = [500, 1000, 2000, 4000, 8000, 8000, 8000, 8000];

let loading;

/** xterm.js, loaded with the first terminal: {Terminal, FitAddon}. */
export function library() {
  makeStylesStrict();
  loading ??= Promise.all([
    import("../vendor/xterm/xterm.mjs"), import("../vendor/xterm/addon-fit.mjs"), styles(),
  ]).then(([{ Terminal }, { FitAddon }]) => ({ Terminal, FitAddon }));
  // It may come the next time.
  loading.catch(() => { loading = undefined; });
  return loading;
}

function styles() {
  return new Promise((resolve, reject) => {
    document.head.append(h("link", { rel: "stylesheet", href: "web/vendor/xterm/xterm.css", onload: resolve, onerror: () => reject(new Error(texts.errors.unreachable)) }));
  });
}

/** `session`: the name of its tmux session, null for a plain shell. `changed()` is called when its
 * `state` ("connecting", "open", "lost" or "ended") or its `text`, why so, has changed; `escape()` at
 * the key that leaves it. */
export class Screen {
  constructor({ Terminal, FitAddon }, { ins, session, changed, escape }) {
    this.ins = ins;
    this.session = session;
    this.changed = changed;
    this.state = "connecting";
    this.text = words.connecting;
    this.retries = 0;
    this.host = h("div", { class: "screen" });
    this.element = h("div", { class: "screen-frame" }, this.host);
    this.terminal = new Terminal({
      allowProposedApi: false, cursorBlink: false, fontFamily: "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace",
      fontSize: 14, macOptionIsMeta: true, scrollback: 5000, theme: colours(),
      screenReaderMode: recall("podyd-screen-reader") === "1",
    });
    this.fit = new FitAddon();
    this.terminal.loadAddon(this.fit);
    this.terminal.attachCustomKeyEventHandler((event) => this.key(event, escape));
    this.terminal.onData((text) => this.shell?.send(new TextEncoder().encode(text)));
    this.terminal.onBinary((text) => this.shell?.send(Uint8Array.from(text, (char) => char.charCodeAt(0))));
    this.sizes = new ResizeObserver(() => {
      clearTimeout(this.resizing);
      this.resizing = setTimeout(() => this.resize(), QUIET_MS);
    });
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.recolour = () => { this.terminal.options.theme = colours(); };
    this.dark.addEventListener("change", this.recolour);
    this.themes = new MutationObserver(this.recolour);
    this.themes.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  /** Draws it and connects; to be called once its element is in the document. */
  open() {
    this.terminal.open(this.host);
    this.terminal.textarea.setAttribute("aria-label", words.label(this.ins));
    this.fit.fit();
    this.sizes.observe(this.host);
    this.connect();
  }

  connect() {
    clearTimeout(this.retrying);
    const { rows, cols } = this.terminal;
    this.shell = new Shell({
      ins: this.ins, rows, cols, cmd: this.session && attach(this.session),
      output: (data, taken) => {
        if (this.state !== "open") this.become("open", "");
        this.retries = 0;
        this.terminal.write(data, taken);
      },
      // A program that fills the screen draws what differs from what it drew before.
      maySkip: () => this.terminal.buffer.active.type === "normal",
      // CAN ends what it stopped in, and the colours end.
      skipped: (count) => this.terminal.write(`\x18\x1b[m\r\n${words.skipped(bytes(count))}\r\n`),
      ended: (end) => this.ended(end),
    });
  }

  async ended(end) {
    const { shell } = this;
    const why = end ?? await this.refusal();
    if (this.shell !== shell) return; // It has been closed or held meanwhile.
    this.shell = null;
    const mayPass = why === null || why.code === "shutting_down" || why.status >= 500;
    const wait = this.session === null ? undefined : RETRY_MS[this.retries];
    if (mayPass && wait !== undefined) {
      this.become("lost", words.retrying);
      this.retries += 1;
      this.retrying = setTimeout(() => this.connect(), wait);
    } else if (why === null) this.become("lost", this.session === null ? words.lostPlain : words.lost);
    else if (why.code === "shutting_down") this.become("lost", this.session === null ? words.restarted : words.lost);
    else this.become("ended", reason(why, this.session));
  }

  /** Why podyd refuses a session, which a browser does not say of a WebSocket; null if it does not, or
   * cannot be asked. */
  async refusal() {
    try {
      await get("pod/shell", { ins: this.ins, rows: this.terminal.rows, cols: this.terminal.cols }, { quiet: true });
    } catch (refused) {
      if (refused.status > 0 && refused.status !== UPGRADE_REQUIRED) return { ...refused.body, status: refused.status };
    }
    return null;
  }

  /** Ends it, for another one that is to take its place; what it shows stays. */
  hold() {
    clearTimeout(this.retrying);
    this.shell?.close();
    this.shell = null;
    this.become("connecting", words.connecting);
  }

  become(state, text) {
    this.state = state;
    this.text = text;
    this.changed();
  }

  resize() {
    if (!this.host.isConnected || this.host.offsetParent === null) return;
    this.fit.fit();
    this.shell?.resize(this.terminal.rows, this.terminal.cols);
  }

  /** Keys that are the page's and not the terminal's; false keeps one from the terminal. */
  key(event, escape) {
    if (!event.ctrlKey || !event.shiftKey) return true;
    if (event.type === "keydown" && event.code === "KeyC") {
      event.preventDefault();
      if (this.terminal.hasSelection()) toClipboard(this.terminal.getSelection());
    } else if (event.type === "keydown" && event.code === "ArrowUp") {
      event.preventDefault();
      escape();
    }
    // The browser itself pastes at Ctrl-Shift-V.
    return !["KeyC", "KeyV", "ArrowUp"].includes(event.code);
  }

  focus() {
    this.terminal.focus();
  }

  close() {
    clearTimeout(this.retrying);
    clearTimeout(this.resizing);
    this.sizes.disconnect();
    this.themes.disconnect();
    this.dark.removeEventListener("change", this.recolour);
    this.shell?.close();
    this.shell = null;
    this.terminal.dispose();
    this.element.remove();
  }
}

/** What shows a session of tmux in a terminal. */
function attach(session) {
  return `tmux -u attach-session -t '=${session}' || exit; ! tmux has-session -t '=${session}' 2>/dev/null || exit ${LEFT}`;
}

/** Why a session has ended, in words; `session`: its name in tmux, null for a plain shell. */
function reason(end, session) {
  if (end.detail) return [end.detail, end.advice].filter(Boolean).join(" ");
  const ofTmux = session !== null && { 0: words.sessionEnded, 1: words.sessionGone, [LEFT]: words.left }[end.exit_code];
  if (ofTmux) return ofTmux(session);
  const parts = [end.timed_out ? words.timedOut : end.exit_code > 128 ? words.signal(end.exit_code - 128) : words.exited(end.exit_code)];
  if (end.oom_killed) parts.push(words.oom(end.memory_limit));
  return parts.join(" ");
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { background: of("--terminal"), foreground: of("--terminal-text"), cursor: of("--terminal-text"), selectionBackground: "#4d94dd88" };
}
