// Terminals in a pod. Where the pod has tmux, each is a session of it, which a reload of the page
// comes back to; else it is a plain shell, which ends with the page.

import { post } from "../api.js";
import { button } from "../controls.js";
import { fill, h } from "../dom.js";
import { onPods, work } from "../pods.js";
import { library, Screen } from "../screen.js";
import { keep, recall } from "../stored.js";
import { texts } from "../texts.js";

const words = texts.terminal;
const PREFIX = "podyd-";
const NO_TMUX = 3;
// tmux's socket is in /tmp, which systemd empties while it boots.
const BOOTED = "i=0; while [ /sbin/init -ef /lib/systemd/systemd ] && [ $i -lt 50 ] && ! systemctl -q is-active sysinit.target 2>/dev/null; do i=$((i+1)); sleep 0.2; done";
const LIST = "tmux list-sessions -F '#{session_name} #{session_attached}' 2>/dev/null";

export default async function terminals({ live, signal, ins, pod }) {
  const tabs = h("div", { class: "tablist", role: "tablist", "aria-label": words.tabs(ins) });
  const area = h("div", { class: "screens" });
  const status = h("p", { class: "soft", role: "status" });
  const error = h("p", { class: "error", role: "alert" });
  const create = button(words.create, () => add(null));
  const again = button(words.reconnect, () => (current ? renew(current) : begin()));
  const close = button(words.close, () => drop(current));
  const sessions = h("select", { "aria-label": words.others });
  const full = button(words.full, enlarge);
  const reader = h("input", { type: "checkbox", checked: recall("podyd-screen-reader") === "1" });
  const bar = h("div", { class: "buttons" }, create, sessions, again, close, full, h("label", {}, reader, " ", words.reader));
  const stopped = h("div", { class: "panel", hidden: true }, h("p", {}, words.stopped),
    button(words.start, () => work(pod(), "pod/start", words.starting(ins), { ins }), { kind: "primary" }));
  const running = h("div", {}, bar, tabs, error, status, area, h("p", { class: "soft" }, words.keys));
  const open = [];
  let current = null;
  let others = []; // The sessions of the pod that are not open here, each with how many show it.
  let begun = false;
  let made = 0;

  const key = () => `podyd-terminals ${pod().name}`;

  reader.addEventListener("change", () => {
    keep("podyd-screen-reader", reader.checked ? "1" : "0");
    for (const one of open) one.screen.terminal.options.screenReaderMode = reader.checked;
  });
  sessions.addEventListener("change", () => {
    if (sessions.value) add(sessions.value).then(offer);
  });

  /** Opens a session: by its name, else a new one; `old` is what it takes the place of. Resolves to
   * whether it could. */
  async function add(name, old) {
    fill(error);
    try {
      const [xterm, found] = await Promise.all([library(), prepare(name)]);
      if (signal.aborted || (old && !open.includes(old))) return true;
      const screen = new Screen(xterm, { ins, session: found.session, changed: () => show(), escape: () => current.tab.focus() });
      const number = ++made;
      const tab = h("button", { type: "button", role: "tab", id: `terminal-tab-${number}`, onclick: () => select(one), onkeydown: arrows }, found.session ?? words.plain(number));
      const one = { screen, tab, session: found.session, isOver: false };
      screen.element.setAttribute("role", "tabpanel");
      screen.element.setAttribute("aria-labelledby", tab.id);
      if (old) {
        open[open.indexOf(old)] = one;
        old.tab.replaceWith(tab);
        old.screen.close();
      } else {
        open.push(one);
        tabs.append(tab);
      }
      area.append(screen.element);
      // Another one may have been chosen meanwhile.
      const isChosen = !old || current === old;
      select(isChosen ? one : current);
      screen.open();
      if (isChosen) screen.focus();
      remember();
      ({ others } = found);
      offer();
      return true;
    } catch (refused) {
      if (refused.name === "AbortError") return true;
      fill(error, refused.message);
      show();
      return false;
    }
  }

  /** Makes sure that there is a session; {session: null} where the pod has no tmux. It is made by a
   * command of its own: what a terminal has started ends with the terminal. */
  async function prepare(name) {
    const taken = open.map((one) => one.session);
    const wanted = name ?? "";
    const make = wanted
      ? `n='${wanted.replaceAll(/[^A-Za-z0-9_-]/g, "")}'`
      : `i=1; while tmux has-session -t "=${PREFIX}$i" 2>/dev/null; do i=$((i+1)); done; n=${PREFIX}$i`;
    const cmd = `command -v tmux >/dev/null || exit ${NO_TMUX}; ${BOOTED}; ${make}
tmux has-session -t "=$n" 2>/dev/null || { tmux -u new-session -d -s "$n" -x 100 -y 30 || exit 1
tmux set-option -s -a -q terminal-features ',xterm-256color:RGB'
tmux set-option -t "=$n:" -q status off; tmux set-option -t "=$n:" -q mouse on; }
echo "$n"; ${LIST}`;
    const done = await post("pod/exec", { ins, cmd }, { signal });
    if (done.exit_code === NO_TMUX) return { session: null, others: [] };
    if (done.exit_code !== 0) throw new Error(words.tmuxFailed(done.log.trim()));
    const [session, ...lines] = done.stdout.trim().split("\n");
    return { session, others: lines.map((line) => line.split(" ")).filter(([other]) => other !== session && !taken.includes(other)) };
  }

  function offer() {
    sessions.hidden = others.length === 0;
    fill(sessions, h("option", { value: "" }, words.others),
      others.map(([name, attached]) => h("option", { value: name }, attached === "0" ? name : words.attached(name))));
  }

  function select(one) {
    current = one;
    for (const other of open) {
      const isCurrent = other === one;
      other.tab.setAttribute("aria-selected", String(isCurrent));
      other.tab.tabIndex = isCurrent ? 0 : -1;
      other.screen.element.hidden = !isCurrent;
    }
    one?.screen.resize();
    show();
  }

  function arrows(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "ArrowDown") current.screen.focus();
    else if (step) {
      const next = open[(open.indexOf(current) + step + open.length) % open.length];
      select(next);
      next.tab.focus();
    } else return;
    event.preventDefault();
  }

  async function enlarge() {
    await area.requestFullscreen();
    // Esc is the programs', where the browser lets it: held down, it leaves the full screen.
    navigator.keyboard?.lock?.(["Escape"]);
    current.screen.focus();
  }

  function drop(one) {
    one.screen.close();
    one.tab.remove();
    open.splice(open.indexOf(one), 1);
    remember();
    select(open.at(-1) ?? null);
    // What is typed now shall not press the button again, and close this one too.
    if (current) current.screen.focus();
    else create.focus();
    if (one.session === null || one.screen.state === "ended") return;
    others.push([one.session, "0"]);
    offer();
  }

  /** Opens a session again that has ended: its pod may have been stopped meanwhile. */
  async function renew(one) {
    const { text } = one.screen;
    one.screen.hold();
    if (!(await add(one.session, one))) one.screen.become("lost", text);
  }

  /** Opens what has been open before: here, or when this was loaded the last time. */
  async function begin() {
    for (const one of open.filter(({ isOver }) => isOver)) await renew(one);
    if (open.length) return;
    const kept = JSON.parse(recall(key(), "sessionStorage") ?? "[]");
    for (const name of kept.length ? kept : [null]) await add(name);
  }

  /** Which sessions this browser tab has open, for when it is loaded again. */
  function remember() {
    keep(key(), JSON.stringify(open.map((one) => one.session).filter((name) => name !== null)), "sessionStorage");
  }

  function show() {
    const one = current;
    const [state, text] = [one?.screen.state, one?.screen.text];
    again.hidden = one === null ? error.textContent === "" : ["connecting", "open"].includes(state);
    close.hidden = one === null;
    full.hidden = one === null || !document.fullscreenEnabled;
    fill(status, one === null ? words.none : state === "open" ? (one.session ? words.kept(one.session) : words.notKept) : text);
  }

  const leaving = (event) => {
    if (open.some((one) => one.session === null && one.screen.state === "open")) event.preventDefault();
  };
  window.addEventListener("beforeunload", leaving, { signal });

  onPods(live, () => {
    const isRunning = pod().status === "running";
    stopped.hidden = isRunning;
    running.hidden = !isRunning;
    if (pod().status === "stopped") {
      begun = false;
      // Also where podyd has not said so yet of its session.
      for (const one of open) one.isOver = true;
    }
    if (!isRunning || begun) return;
    begun = true;
    begin();
  }, signal);
  offer();
  show();
  return { element: h("section", { class: "terminal" }, stopped, running), close: () => open.forEach((one) => one.screen.close()) };
}
